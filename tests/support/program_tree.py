"""Every command of the program, loaded, by the words that call it."""

from typing import Any

from processor.cli.common.lazy_group import load
from processor.cli.main import COMMANDS

Words = tuple[str, ...]


def all_commands() -> dict[Words, Any]:
    """Groups and what is in them; the program itself is `()` and not among them."""
    found: dict[Words, Any] = {}
    for name, entry in COMMANDS.items():
        _add(found, (name,), load(name, entry))
    return found


def _add(found: dict[Words, Any], words: Words, command: Any) -> None:
    found[words] = command
    for name, inner in getattr(command, "commands", {}).items():
        _add(found, (*words, name), inner)
