"""Parse a path into a flow: `state.price`, or in full `$.state_json.price`.

Both spellings are read everywhere; `json_path.written` prints the full one.
"""

import difflib
from collections.abc import Collection, Mapping
from typing import Final

from processor.contract.flow import Flow
from processor.ops.json_path import Path, parse_start

SHORT: Final[Mapping[str, str]] = {"state": "state_json", "wait": "wait_json"}
FIELDS: Final = (*Flow.model_fields,)
STEPS: Final = "steps"
"""Beside the fields of a flow, where its whole history is known: its steps by run id."""


def parse_flow_path(text: str, *, also: Collection[str] = ()) -> Path:
    """A place in a flow: one of its fields, one of `also`, or what lies in it; `$` is all of it.

    Raises ValueError, whose text names the fields that come near.
    """
    text = text.strip()
    path, end = parse_flow_path_start(text, also=also)
    if end < len(text):
        raise ValueError(
            f"{text[end:]!r} is not understood: a path is like state.price or "
            "$.state_json.items[0]['a name']"
        )
    return path


def parse_flow_path_start(text: str, *, also: Collection[str] = ()) -> tuple[Path, int]:
    """The path at the start of `text`, and where it ends. Raises ValueError as
    `parse_flow_path` does."""
    path, end = parse_start(text)
    if not path:
        return path, end
    first, *inner = path
    known = sorted({*FIELDS, *SHORT, *also})
    if first not in known:
        near = [name for name in known if name.startswith(f"{first}_")]
        near = near or difflib.get_close_matches(str(first), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"they are {', '.join(known)}."
        raise ValueError(
            f"a flow has no field {first!r}; {hint} What it keeps is under state, as state.price"
        )
    return (SHORT.get(str(first), first), *inner), end
