"""Find flows by typed text: an id or its beginning, an owner, or words of the goal."""

import re
from collections.abc import Collection
from typing import Final

from processor.contract.values import EVENTS_PER_PARTITION

SCANNED_MAX: Final = 20_000
_WORD: Final = re.compile(r"[^\W_]+")
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


def search(text: str, partitions: Collection[int]) -> tuple[str, list[object]]:
    """A SELECT of `found`, numbers of flows that `text` means, and its parameters.

    Of those that match, SCANNED_MAX are looked at. Raises ValueError if there is nothing to look
    for in it.
    """
    text = text.strip()
    if _ID.fullmatch(text.lower()):
        start = text.lower()
        return _BY_ID, [start, f"{start}g", SCANNED_MAX]  # g is behind all that an id has
    words = _WORD.findall(text)
    if not words:
        raise ValueError("it has no word to look for")
    match = " ".join(f'"{word}"' for word in words) + "*"
    each = max(SCANNED_MAX // max(len(partitions), 1), 100)
    parameters: list[object] = [text, SCANNED_MAX]
    for partition in sorted(partitions):
        first = partition * EVENTS_PER_PARTITION
        parameters += (match, first, first + EVENTS_PER_PARTITION, each)
    return " UNION ".join([_BY_OWNER, *[_BY_GOAL] * len(partitions)]), parameters
