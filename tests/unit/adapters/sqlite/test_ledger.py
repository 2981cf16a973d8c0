"""The ledger: appended by generation, found by filters, forgotten by generation."""

import random
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from processor.adapters.sqlite import FlowTable, TableConflict, TableCorrupt, ledger, row_codec
from processor.adapters.sqlite.write_batch import FORGET_EXTRA, FORGET_FACTOR
from processor.contract.outcomes import Code
from processor.engine.rows import Changes, Checkpoint, LedgerEntry, Position, RestoreChunk
from tests.unit.adapters.sqlite.tables import NOON_MS, at, foreign, ledger_entry, opened

SMALL = 64
"""Rows of a generation, here."""


@pytest.fixture(autouse=True)
def small_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "GENERATION_MIN_ROWS", SMALL)


class _Writer:
    """Writes answers, a batch after the other."""

    def __init__(self, table: FlowTable) -> None:
        self._table = table
        self._before: Checkpoint | None = None
        self._position = 0

    async def write(
        self, ledger_entries: Iterable[LedgerEntry], *, forget_before_ms: int | None = None
    ) -> None:
        self._position += 1
        changes = Changes(ledger_entries=list(ledger_entries), forget_before_ms=forget_before_ms)
        await self._table.write(changes, before=self._before, after=at(self._position))
        self._before = at(self._position)


def ledger_entries(count: int, *, first: int = 0) -> list[LedgerEntry]:
    """Answers under keys as random as digests are; a ms lies between two of them."""
    return [
        ledger_entry(n)._replace(key=random.Random(n).randbytes(16), at_ms=NOON_MS + n)
        for n in range(first, first + count)
    ]


def by_key(some: Iterable[LedgerEntry]) -> dict[bytes, LedgerEntry]:
    return {one.key: one for one in some}


def rows(table: FlowTable, of: str = "ledger") -> int:
    ((count,),) = foreign(table, f"SELECT count(*) FROM {of}")
    return int(count)


async def test_answers_of_all_generations_are_found_and_after_it_was_closed(tmp_path: Path) -> None:
    written = ledger_entries(1000)
    keys = [one.key for one in written]
    async with opened(tmp_path) as table:
        writer = _Writer(table)
        for start in range(0, 1000, 50):
            await writer.write(written[start : start + 50])
        assert rows(table, "generation") > 5
        assert await table.ledger_entries(keys) == by_key(written)
    async with opened(tmp_path) as table:
        assert await table.ledger_entries(keys) == by_key(written)
        assert (
            await table.ledger_entries([one.key for one in ledger_entries(1000, first=1000)]) == {}
        )


async def test_of_one_key_the_newest_answer_counts(tmp_path: Path) -> None:
    older, *others = ledger_entries(3 * SMALL)
    newer = older._replace(at_ms=NOON_MS + 10_000, code=Code.NOT_FOUND)
    newest = older._replace(at_ms=NOON_MS + 20_000, digest=bytes(16))
    async with opened(tmp_path) as table:
        writer = _Writer(table)
        await writer.write([older, newer])
        assert await table.ledger_entries([older.key]) == {older.key: newer}
        await writer.write(others)
        await writer.write([newest])
        assert await table.ledger_entries([older.key]) == {older.key: newest}
    async with opened(tmp_path) as table:
        assert await table.ledger_entries([older.key]) == {older.key: newest}


async def test_full_generations_are_forgotten_in_bounded_steps(tmp_path: Path) -> None:
    """Not before all of one is out of date, and never the newest."""
    written = ledger_entries(3000)
    old_ms = written[-1].at_ms + 1
    async with opened(tmp_path) as table:
        writer = _Writer(table)
        await writer.write(written)
        new = ledger_entries(10, first=5000)
        await writer.write(new, forget_before_ms=old_ms - 1)
        assert rows(table) == 3010
        await writer.write([], forget_before_ms=old_ms)
        assert rows(table) == 3010 - FORGET_EXTRA
        assert await table.ledger_entries([one.key for one in written]) == {}
    async with opened(tmp_path) as table:  # in the middle of it
        writer = _Writer(table)
        writer._before, writer._position = at(3), 3
        more = ledger_entries(10, first=6000)
        await writer.write(more, forget_before_ms=old_ms)
        assert rows(table) == 3020 - 2 * FORGET_EXTRA - FORGET_FACTOR * len(more)
        await writer.write([], forget_before_ms=old_ms)
        await writer.write([], forget_before_ms=old_ms)
        assert rows(table) == 20
        assert rows(table, "generation") == 0
        found = await table.ledger_entries([one.key for one in [*new, *more]])
        assert found == by_key([*new, *more])
    async with opened(tmp_path) as table:  # of the full generations none is left
        found = await table.ledger_entries([one.key for one in [*new, *more]])
        assert found == by_key([*new, *more])


async def test_a_generation_is_kept_until_it_is_full_when_it_is_the_only_one(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as table:
        writer = _Writer(table)
        await writer.write(ledger_entries(SMALL))
        await writer.write(ledger_entries(1, first=SMALL), forget_before_ms=NOON_MS + SMALL)
        await writer.write(ledger_entries(1, first=SMALL + 1))
        assert (rows(table), rows(table, "generation")) == (2, 0)


async def test_a_write_that_failed_leaves_nothing_and_the_next_one_is_found(
    tmp_path: Path,
) -> None:
    first, lost, second = (ledger_entries(SMALL, first=n * SMALL) for n in range(3))
    keys = [one.key for one in [*first, *lost, *second]]
    async with opened(tmp_path) as table:
        writer = _Writer(table)
        await writer.write(first[:-1])
        nowhere = Checkpoint(Position(9, 9, 9), 9, 9, 9)
        with pytest.raises(TableConflict):
            await table.write(Changes(ledger_entries=lost), before=nowhere, after=at(2))
        await writer.write([first[-1], *second])
        assert await table.ledger_entries(keys) == by_key([*first, *second])
    async with opened(tmp_path) as table:
        assert await table.ledger_entries(keys) == by_key([*first, *second])


async def test_answers_that_were_filled_are_found_and_others_appended_to_them(
    tmp_path: Path,
) -> None:
    full, later = ledger_entries(500), ledger_entries(100, first=500)
    async with opened(tmp_path) as table:
        await table.begin_restore(at(1))
        for start in range(0, 500, 100):
            await table.restore(RestoreChunk(ledger_entries=full[start : start + 100]))
        await table.end_restore(at(2))
        await table.write(Changes(ledger_entries=later), before=at(2), after=at(3))
        assert await table.ledger_entries([one.key for one in [*full, *later]]) == by_key(
            [*full, *later]
        )


@pytest.mark.parametrize(
    "damage", ["UPDATE generation SET bits = zeroblob(length(bits))", "UPDATE ledger SET tag = 5"]
)
async def test_a_damaged_filter_or_tag_is_not_believed(tmp_path: Path, damage: str) -> None:
    async with opened(tmp_path) as table:
        await _Writer(table).write(ledger_entries(SMALL))
        await table.write(
            Changes(ledger_entries=ledger_entries(1, first=SMALL)), before=at(1), after=at(2)
        )
    with closing(sqlite3.connect(table.path)) as db, db:
        db.execute(damage)
    async with opened(tmp_path) as table:
        with pytest.raises(TableCorrupt):
            await table.ledger_entries([bytes(16)])


def test_few_keys_that_are_not_there_are_looked_for() -> None:
    one = ledger.Ledger.empty()
    for start in range(0, 20 * SMALL, SMALL):
        values = [
            value
            for entry in ledger_entries(SMALL, first=start)
            for value in row_codec.ledger_values(entry)
        ]
        one.append(values)
        list(one.sealing())
    unknown = [random.Random(-n).randbytes(16) for n in range(1, 10_001)]
    assert len(one.tags(unknown)) < 0.025 * len(unknown) * len(one._generations)
