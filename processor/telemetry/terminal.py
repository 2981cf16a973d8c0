"""Escape control and bidirectional characters, so that a terminal shows text and does not obey it.

The senders of commands choose goals, keys and headers. On a terminal their control characters
would move the cursor or set the title, and their formatting characters reorder or hide what stands
beside them, so both are written out. In a pipe or a file they stay as they are.
"""

import re
from typing import Final

OBEYED: Final = re.compile(
    "["
    "\x00-\x1f\x7f-\x9f"  # C0, DEL, C1
    "\u00ad\u061c\u180e\u200b\u200e\u200f"  # invisible; directional marks
    "\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"  # line ends, overrides, isolates
    "\U0001d173-\U0001d17a\U000e0000-\U000e007f"  # musical controls, tags
    "\ud800-\udfff"  # lone surrogates, which have no bytes of their own
    "]"
)
"""Joiners stay: Persian, Hindi and emoji are written with them."""


def visible(text: str, *, keep: str = "") -> str:
    """Write out what a terminal would obey, as `\\x1b` or `\\u202e`, but the characters `keep`."""
    return OBEYED.sub(lambda found: found[0] if found[0] in keep else _escape(found[0]), text)


def visible_json(text: str) -> str:
    """The same JSON, with `\\u` escapes in the place of what a terminal would obey."""
    return OBEYED.sub(lambda found: _json_escape(found[0]), text)


def _escape(character: str) -> str:
    code = ord(character)
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _json_escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
