"""Say how the program was called, so that what is to be typed next can be copied."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from processor.settings import Settings, variable

NAME: Final = "taskflow"
REPEATED: Final = ("bootstrap_servers", "topic_prefix", "state_dir", "views_http")
"""Settings by which commands find brokers, topics, tables and views."""


def program_as_called(argv0: str | None = None, *, found: str | None = None) -> str:
    """The word, or words, that start this program again: `taskflow` where the shell finds it, or
    the path that was used.

    `found`: where the shell finds `taskflow`; None: ask.
    """
    called = sys.argv[0] if argv0 is None else argv0
    on_path = found if found is not None else (shutil.which(NAME) or "")
    if Path(called).name == "__main__.py":
        installed = Path(sys.executable).with_name(NAME)
        if not installed.is_file():
            return f"{shlex.quote(sys.executable)} -m processor"
        called = str(installed)
    if Path(called).name != NAME:  # another program that uses the commands
        return NAME
    if on_path and _is_same(on_path, called):
        return NAME
    return shlex.quote(_relative(called))


def settings_to_repeat(settings: Settings) -> str | None:
    """A shell line that sets, in another terminal, what commands read and these settings have
    otherwise than by default; None if nothing differs."""
    usual = Settings()
    differing = {
        variable(field): str(value)
        for field in REPEATED
        if (value := getattr(settings, field)) != getattr(usual, field)
    }
    if not differing:
        return None
    return "export " + " ".join(f"{name}={shlex.quote(v)}" for name, v in differing.items())


def _is_same(one: str, other: str) -> bool:
    try:
        return Path(one).samefile(other)
    except OSError:
        return False


def _relative(path: str) -> str:
    """A path within the working directory as seen from there."""
    try:
        return str(Path(path).absolute().relative_to(Path.cwd()))
    except ValueError:
        return path
