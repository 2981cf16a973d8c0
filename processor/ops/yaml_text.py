"""Write mappings, lists and scalars as YAML that every reader takes for the same values."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

_PLAIN: Final = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_NOT_A_TEXT: Final = {"true", "false", "yes", "no", "on", "off", "null", "y", "n"}
"""What readers of YAML 1.1 take for something else, in any case."""


def to_yaml(value: Mapping[str, Any] | list[Any]) -> str:
    """A document in block style. A text is in quotes unless it is a plain word."""
    return "\n".join(_lines(value)) + "\n"


def _lines(value: Mapping[str, Any] | list[Any]) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if inner and isinstance(inner, Mapping | list):
                yield f"{_scalar(key)}:"
                yield from (f"  {line}" for line in _lines(inner))
            else:
                yield f"{_scalar(key)}: {_scalar(inner)}"
        return
    for inner in value:
        nested = inner and isinstance(inner, Mapping | list)
        first, *others = _lines(inner) if nested else [_scalar(inner)]
        yield f"- {first}"
        yield from (f"  {line}" for line in others)


def _scalar(value: Any) -> str:
    plain = isinstance(value, str) and _PLAIN.fullmatch(value)
    if plain and value.lower() not in _NOT_A_TEXT:
        return str(value)
    # JSON is YAML, also for what is empty.
    return json.dumps(value, ensure_ascii=False)
