"""Build a table anew beside the live one, and compare the two.

A table that is made while a worker elsewhere goes on writing is behind, which the next takeover
mends.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from processor.engine.batch import PartitionConfig
from processor.engine.ports import Table
from processor.engine.rows import Checkpoint
from processor.recovery.consistent_cut import ConsistentCut, standing_of
from processor.recovery.restore import Restore


async def rebuild(
    place: PartitionConfig, table: Table, view: ConsistentCut, *, from_audit: bool
) -> Checkpoint:
    """Fill `table` anew. Raises CursorMissing, HistoryLost or WrittenByNewer."""
    recovery = Restore(place, table, view)
    standing = await standing_of(place, view)
    make = recovery.fold if from_audit else recovery.from_state
    return await make(view.offset_ranges, standing)


async def catch_up(place: PartitionConfig, table: Table, view: ConsistentCut) -> str | None:
    """Roll `table` forward to where `view` ends; why it cannot be, if so. Raises as `rebuild`."""
    position = (await standing_of(place, view)).position
    return await Restore(place, table, view).catch_up(view.offset_ranges, position)


class Difference(NamedTuple):
    """A row that two tables do not have alike; `column` None: only one of them has it."""

    what: str
    key: str
    column: str | None
    live: str | None
    built: str | None

    def __str__(self) -> str:
        if self.column is None:
            where = "the live table" if self.built is None else "the rebuilt table"
            return f"{self.what} {self.key} is in {where} only"
        return f"{self.what} {self.key}: {self.column} is {self.live}, rebuilt {self.built}"


class Rows(NamedTuple):
    """A table's rows of one kind, each a key and its columns, in the order of the keys."""

    what: str
    columns: Sequence[str]
    rows: Iterator[tuple[str, Sequence[Any]]]


def first_difference(live: Iterable[Rows], built: Iterable[Rows]) -> Difference | None:
    """The first row that is not the same in both, as canonical JSON; None if all are."""
    for here, there in zip(live, built, strict=True):
        found = _first_of(here, there)
        if found is not None:
            return found
    return None


def _first_of(live: Rows, built: Rows) -> Difference | None:
    here, there = next(live.rows, None), next(built.rows, None)
    while here is not None or there is not None:
        if there is None or (here is not None and here[0].encode() < there[0].encode()):
            assert here is not None
            return Difference(live.what, here[0], None, "", None)
        if here is None or here[0] != there[0]:
            return Difference(live.what, there[0], None, None, "")
        for column, mine, other in zip(live.columns, here[1], there[1], strict=True):
            if mine != other and canonical(mine) != canonical(other):
                return Difference(live.what, here[0], column, str(mine), str(other))
        here, there = next(live.rows, None), next(built.rows, None)
    return None


def canonical(value: Any) -> Any:
    """JSON with sorted keys, where `value` is JSON."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.dumps(orjson.loads(value), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONDecodeError:
        return value
