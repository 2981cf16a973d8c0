"""Store A2A values in a flow: small ones in its state, others in observed steps.

A flow's state holds 256 KiB and a step's result 64 KiB (contract, check 17), without numbers beyond
±(2^53-1). A step is named by a digest of its content, so writing it again, also by another replica,
changes nothing. Steps that the flow's state does not refer to are ignored.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, Protocol

import orjson

INLINE_MAX_BYTES: Final = 4 * 1024
PIECE_MAX_BYTES: Final = 60 * 1024
DEPTH_MAX: Final = 40
INTEGER_MAX: Final = 2**53 - 1
DIGEST_BYTES: Final = 12


@dataclass(frozen=True, slots=True)
class Piece:
    """An observed step that holds a value or a part of it."""

    run_id: str
    task: str
    result_json: Any


class HasResult(Protocol):
    """A step, as far as values need it."""

    result_json: Any


def encode_value(
    value: Mapping[str, Any], *, task: str, name: str, inline_max: int
) -> tuple[dict[str, Any], list[Piece]]:
    """Return the form of `value`, a JSON object, in the flow's state, and the steps it refers to.

    The form is `{"is": value}` up to `inline_max` bytes, else `{"step": run id, "pieces": n}`.
    `task` and `name` name the steps for people.
    """
    publishable = is_publishable(value)
    text = (
        orjson.dumps(value)
        if publishable
        else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    )
    if publishable and len(text) <= inline_max:
        return {"is": value}, []
    digest = blake2b(text, digest_size=DIGEST_BYTES).hexdigest()
    run_id = f"{name[:180]} {digest}"
    results: list[Any] = [value]
    if not publishable or len(text) > PIECE_MAX_BYTES:
        results = list(_cut(text.decode()))
    pieces = [
        Piece(run_id if nth == 0 else f"{run_id} {nth}", task[:256] or "value", result)
        for nth, result in enumerate(results)
    ]
    return {"step": run_id, "pieces": len(pieces)}, pieces


def decode_value(form: Mapping[str, Any], steps: Mapping[str, HasResult]) -> dict[str, Any]:
    """Return the value of a form. Raises KeyError if a step is missing."""
    if "is" in form:
        inline: dict[str, Any] = form["is"]
        return inline
    run_id = form["step"]
    results = [
        steps[run_id if nth == 0 else f"{run_id} {nth}"].result_json
        for nth in range(form["pieces"])
    ]
    if not isinstance(results[0], str):
        whole: dict[str, Any] = results[0]
        return whole
    text: dict[str, Any] = json.loads("".join(results))
    return text


def is_publishable(value: Any) -> bool:
    """Whether depth and numbers of `value` are within the contract's limits."""
    level = [value]
    for _ in range(DEPTH_MAX):
        if not level:
            return True
        inside: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                inside.extend(item.values())
            elif isinstance(item, list):
                inside.extend(item)
            elif (
                isinstance(item, int | float)
                and not isinstance(item, bool)
                and not (math.isfinite(item) and abs(item) <= INTEGER_MAX)
            ):
                return False
        level = inside
    return not level


def _cut(text: str) -> Iterator[str]:
    """Cut `text` into parts of at most PIECE_MAX_BYTES each, written as JSON."""
    at = 0
    while at < len(text):
        length = PIECE_MAX_BYTES - 2
        while len(orjson.dumps(part := text[at : at + length])) > PIECE_MAX_BYTES:
            length = length * 3 // 4
        yield part
        at += len(part)
