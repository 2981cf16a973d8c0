"""`python -m processor` is `taskflow`."""

import sys

from processor.cli.main import main

sys.exit(main())
