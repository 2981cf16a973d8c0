"""Decide commands, keep flows, publish what happened."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: that of the installed distribution."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    from processor.errors import DISTRIBUTION

    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:  # run from a source tree
        return "0+unknown"
