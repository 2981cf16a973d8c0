"""`python -m processor` is `taskflow`."""

import sys

from processor.cli import main

sys.exit(main())
