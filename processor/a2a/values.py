"""Values of A2A inside of a flow: in its state where they are small, else in observed steps.

A flow's state takes 256 KiB and a step's result 64 KiB (contract, check 17), and no number beyond
±(2^53-1). A step is named by a digest of what is in it, so that writing it twice, or by two
replicas at once, changes nothing; only what the flow's state refers to counts.
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
    """What is needed of a step."""

    result_json: Any


def encode_value(
    value: Mapping[str, Any], *, task: str, name: str, inline_max: int
) -> tuple[dict[str, Any], list[Piece]]:
    """Return how the flow's state has `value`, a JSON object, and the steps that must be there.

    The form is `{"is": value}` of at most `inline_max` bytes, or `{"step": run id, "pieces": n}`.
    `task` and `name` are for people: what the steps are called.
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
    """Return the value that the flow's state has as `form`. Raises KeyError if a step is gone."""
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
    """Whether the contract takes `value` as it is: depth and numbers."""
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
    """Parts that take at most PIECE_MAX_BYTES each, as written in JSON."""
    at = 0
    while at < len(text):
        length = PIECE_MAX_BYTES - 2
        while len(orjson.dumps(part := text[at : at + length])) > PIECE_MAX_BYTES:
            length = length * 3 // 4
        yield part
        at += len(part)
