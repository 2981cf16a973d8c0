"""Find flows by typed text: an id or its beginning, an owner, words of the goal, and conditions on
their fields in the language of `--where`."""

import re
from collections.abc import Collection
from typing import Final

from processor.contract.values import EVENTS_PER_PARTITION
from processor.ops.conditions import Condition, parse_condition
from processor.ops.flow_path import FIELDS, SHORT
from processor.views.model.words import wanted

SCANNED_MAX: Final = 20_000
_ID: Final = re.compile(r"[0-9a-f]{8}[0-9a-f-]{0,28}")
"""Eight digits are what people copy of an id; shorter ones are words."""
_BY_ID: Final = "SELECT n AS found FROM flow WHERE id >= ? AND id < ? AND pruned = 0 LIMIT ?"
_BY_OWNER: Final = (
    "SELECT * FROM (SELECT n AS found FROM flow WHERE owner = ? AND pruned = 0 "
    "ORDER BY updated_ms DESC LIMIT ?)"
)
_BY_GOAL: Final = (
    "SELECT * FROM (SELECT rowid AS found FROM goal WHERE goal MATCH ? AND rowid > ? "
    "AND rowid < ? ORDER BY rowid DESC LIMIT ?)"
)


_FIELD: Final = "|".join(sorted({*FIELDS, *SHORT}, key=len, reverse=True))
_CONDITION: Final = re.compile(
    rf"(?:^|(?<=\s))!?(?:\$\.)?(?:(?:{_FIELD})\s*[=!<>~]|(?:state|wait)(?:_json)?[.\[][\w\"'])"
)
"""How a condition begins: a field and an operator, or what lies in a state or a wait."""


def split_conditions(text: str) -> tuple[str, list[Condition]]:
    """The words of `text`, and the conditions behind them. Raises ValueError."""
    starts = [found.start() for found in _CONDITION.finditer(text)]
    ends = [*starts[1:], len(text)][: len(starts)]
    conditions = [parse_condition(text[a:b]) for a, b in zip(starts, ends, strict=True)]
    return text[: starts[0]].strip() if starts else text.strip(), conditions


def search(text: str, partitions: Collection[int]) -> tuple[str, list[object]]:
    """A SELECT of `found`, numbers of flows that `text` means, and its parameters.

    Of those that match, SCANNED_MAX are looked at. Raises ValueError if there is nothing to look
    for in it.
    """
    text = text.strip()
    if _ID.fullmatch(text.lower()):
        start = text.lower()
        return _BY_ID, [start, f"{start}g", SCANNED_MAX]  # g is behind all that an id has
    match = wanted(text)
    if not match:
        raise ValueError("it has no word to look for")
    each = max(SCANNED_MAX // max(len(partitions), 1), 100)
    parameters: list[object] = [text, SCANNED_MAX]
    for partition in sorted(partitions):
        first = partition * EVENTS_PER_PARTITION
        parameters += (match, first, first + EVENTS_PER_PARTITION, each)
    return " UNION ".join([_BY_OWNER, *[_BY_GOAL] * len(partitions)]), parameters
