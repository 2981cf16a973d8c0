"""`python -m processor` is `taskflow`."""

import sys

from processor.cli.main import entry_point

sys.exit(entry_point())
