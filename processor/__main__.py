"""Start the program `taskflow`, also as `python -m processor`, if what it needs is installed."""

import sys

from processor.errors import missing_extra


def entry_point() -> int:
    """Run the program and return its exit code; 2 where its extra is not installed."""
    try:
        from processor.cli.main import entry_point as run
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        sys.stderr.write(f"{missing}\n")
        return 2
    return run()


if __name__ == "__main__":
    sys.exit(entry_point())
