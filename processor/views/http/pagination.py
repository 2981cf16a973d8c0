"""Opaque cursors and positions for clients, checked when they come back."""

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

INTEGER_LIMIT: Final = 2**63
_PARTITION: Final = re.compile(r"0|[1-9][0-9]{0,4}")


class BadCursor(ValueError):
    """It is none of ours, or belongs to another question."""


def _pack(value: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()


def _unpack(text: str) -> Any:
    try:
        raw = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), b"-_", validate=True)
        return orjson.loads(raw)
    except (ValueError, binascii.Error):
        raise BadCursor from None


def keyset(kind: str, *key: int) -> str:
    """Goes on behind the item with this key, in the order of `kind`."""
    return _pack([kind, *key])


def read_keyset(text: str, kind: str, length: int) -> tuple[int, ...]:
    """Raises BadCursor."""
    match _unpack(text):
        case [str(named), *key] if named == kind and len(key) == length:
            if all(_is_integer(part) for part in key):
                return tuple(int(part) for part in key)
    raise BadCursor


def vector(positions: Mapping[int, int]) -> str:
    """An event id for each partition."""
    return _pack({str(partition): at for partition, at in sorted(positions.items())})


def read_vector(text: str) -> dict[int, int]:
    """Raises BadCursor."""
    value = _unpack(text)
    if isinstance(value, dict) and all(
        _PARTITION.fullmatch(key) and _is_integer(at) for key, at in value.items()
    ):
        return {int(key): at for key, at in value.items()}
    raise BadCursor


def _is_integer(value: Any) -> bool:
    return type(value) is int and 0 <= value < INTEGER_LIMIT
