"""What the local table costs: µs per row, with an idle and with a busy event loop (a minute); or
what it costs with many flows that wait, or while the ledger grows.

Run it: .venv/bin/python -m tests.benchmarks.table_cost [--waits 250000 | --grow 300000]
"""

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing
from dataclasses import replace
from pathlib import Path
from sqlite3 import connect
from typing import Any
from uuid import UUID

import aiosqlite

from processor.adapters.sqlite import FlowTable, open_table, table_path
from processor.adapters.sqlite.readonly import queries
from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.domain.flow import Flow
from processor.engine.encoding import flow_doc
from processor.engine.rows import Changes, Checkpoint, FlowRow, LedgerEntry, Position, ledger_key

BATCH = 1000
GROWING_FLOWS = 5000
NOON_MS = 1_795_348_800_000
DAY_MS = 86_400_000
UPSERT = "INSERT INTO t VALUES (?, ?) ON CONFLICT (k) DO UPDATE SET v = excluded.v"


def uuid(number: int) -> str:
    # Spread like random ids: an index on them is met in no order.
    return str(UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128))


def flow_row(number: int, revision: int) -> FlowRow:
    flow = Flow(
        id=uuid(number),
        controller_id="controller",
        goal="measure what a row costs",
        owner_session_key="owner",
        requester_origin="bench",
        current_step="init",
        state_json={"revision": revision, "filling": "x" * 300},
        wait_json=None,
        status=FlowStatus.RUNNING,
        cancel_requested=False,
        revision=revision,
        created_at="2026-11-22T21:02:08.123Z",
        updated_at="2026-11-22T21:02:08.123Z",
    )
    doc = flow_doc(flow)
    return FlowRow(flow, doc, 2**40 * 3 + number + revision, bytes(16), number)


def changed(row: FlowRow, **values: Any) -> FlowRow:
    """The row after one more change."""
    flow = replace(row.flow, revision=row.flow.revision + 1, **values)
    doc = flow_doc(flow)
    return row._replace(flow=flow, doc=doc, last_event_id=row.last_event_id + 1)


def waiting(row: FlowRow, until_ms: int | None) -> FlowRow:
    timeout = {} if until_ms is None else {"timeout_at": instant(until_ms)}
    wait = {"kind": "manual", **timeout}
    return changed(row, status=FlowStatus.WAITING, wait_json=wait)


def resumed(row: FlowRow) -> FlowRow:
    return changed(row, status=FlowStatus.RUNNING, wait_json=None)


def finished(row: FlowRow) -> FlowRow:
    at = instant(NOON_MS + row.row_number)
    return changed(row, status=FlowStatus.FINISHED, updated_at=at)


def ledger_entry(number: int) -> LedgerEntry:
    flow_id = uuid(number)
    return LedgerEntry(
        key=ledger_key(flow_id, uuid(number + 10**9)),
        at_ms=1_795_000_000_000 + number,
        digest=number.to_bytes(16, "little"),
        code=None,
        revision=3,
        status=FlowStatus.RUNNING,
        first_event_id=2**40 * 3 + number,
        event_count=1,
        details={},
    )


def at(commands: int) -> Checkpoint:
    return Checkpoint(Position(commands, 0, commands + 1), commands, commands, commands)


async def busy(until: asyncio.Event, slice_s: float) -> None:
    """Never rests, and looks at its sockets every `slice_s` seconds."""
    while not until.is_set():
        end = time.perf_counter() + slice_s
        while time.perf_counter() < end:
            pass
        await asyncio.sleep(0)


class Bench:
    def __init__(self, table: FlowTable) -> None:
        self.table = table
        self.position: Checkpoint | None = None

    async def write(self, changes: Changes) -> None:
        after = at(0 if self.position is None else self.position.position.commands + 1)
        await self.table.write(changes, before=self.position, after=after)
        self.position = after


async def timed(name: str, calls: list[Callable[[], Awaitable[object]]], rows: int) -> None:
    taken = []
    for call in calls:
        start = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - start)
    median = statistics.median(taken)
    worst = max(taken)
    print(
        f"  {name:34s} {median * 1e6 / rows:8.1f} µs/row {median * 1e3:8.1f} ms a call,"
        f" worst {worst * 1e3:.1f}"
    )


async def measure(table: FlowTable, first: int, repeats: int) -> None:
    bench = Bench(table)
    bench.position = await table.checkpoint()
    batches = [range(first + i * BATCH, first + (i + 1) * BATCH) for i in range(repeats)]
    inserts = [Changes(inserted=[flow_row(n, 0) for n in batch]) for batch in batches]
    updates = [
        Changes(updated=[(flow_row(n, 0), flow_row(n, 1)) for n in batch]) for batch in batches
    ]
    ledger_entries = [Changes(ledger_entries=[ledger_entry(n) for n in batch]) for batch in batches]
    ids = [[uuid(n) for n in batch] for batch in batches]
    unknown = [[ledger_entry(n + 10**6).key for n in batch] for batch in batches]
    known = [[ledger_entry(n).key for n in batch] for batch in batches]
    all_of = [
        Changes(
            updated=[(flow_row(n, 1), flow_row(n, 2)) for n in batch],
            ledger_entries=[ledger_entry(n + 10**7) for n in batch],
            forget_before_ms=1_795_000_000_000,
        )
        for batch in batches
    ]
    await timed("insert flows", [lambda c=c: bench.write(c) for c in inserts], BATCH)  # type: ignore[misc]
    await timed("update flows", [lambda c=c: bench.write(c) for c in updates], BATCH)  # type: ignore[misc]
    await timed("remember answers", [lambda c=c: bench.write(c) for c in ledger_entries], BATCH)  # type: ignore[misc]
    await timed("update, remember, forget", [lambda c=c: bench.write(c) for c in all_of], BATCH)  # type: ignore[misc]
    await timed("load flows", [lambda i=i: table.flows(i) for i in ids], BATCH)  # type: ignore[misc]
    await timed("recall, none known", [lambda k=k: table.ledger_entries(k) for k in unknown], BATCH)  # type: ignore[misc]
    await timed("recall, all known", [lambda k=k: table.ledger_entries(k) for k in known], BATCH)  # type: ignore[misc]
    await timed("untouched", [table.untouched for _ in batches], 1)


async def measure_busy(table: FlowTable, repeats: int) -> None:
    """The one call per batch: it writes what the first BATCH flows and their answers become."""
    bench = Bench(table)
    bench.position = await table.checkpoint()
    ids = [uuid(n) for n in range(1, BATCH + 1)]
    batches = []
    old = list((await table.flows(ids)).values())
    for _ in range(repeats):
        new = [flow_row(row.row_number, row.flow.revision + 1) for row in old]
        ledger_entries = [ledger_entry(row.last_event_id) for row in new]
        batches.append(
            Changes(
                updated=list(zip(old, new, strict=True)),
                ledger_entries=ledger_entries,
                forget_before_ms=0,
            )
        )
        old = new
    await timed("update, remember, forget", [lambda c=c: bench.write(c) for c in batches], BATCH)  # type: ignore[misc]
    await timed("load flows", [lambda: table.flows(ids)] * repeats, BATCH)


async def row_by_row(directory: Path, repeats: int) -> None:
    """For comparison: the same number of rows by executemany."""
    async with aiosqlite.connect(directory / "many.db", isolation_level=None) as many:
        await many.execute("PRAGMA journal_mode = WAL")
        await many.execute("CREATE TABLE IF NOT EXISTS t (k PRIMARY KEY, v)")
        rows = [(uuid(n), "x" * 300) for n in range(BATCH)]

        async def once() -> None:
            await many.execute("BEGIN")
            await many.executemany(UPSERT, rows)
            await many.commit()

        await timed("executemany (for comparison)", [once] * repeats, BATCH)


async def ledger_bytes(directory: Path, rows: int) -> None:
    path = table_path(directory, "ledger", 3)
    async with open_table(path, partition=3, prefix="ledger", partitions=4) as table:
        bench = Bench(table)
        for start in range(0, rows, 10_000):
            await bench.write(
                Changes(ledger_entries=[ledger_entry(start + i) for i in range(10_000)])
            )
    with closing(connect(path)) as db:
        pages, size = (db.execute(f"PRAGMA {p}").fetchone()[0] for p in ("page_count", "page_size"))
    print(f"ledger of {rows} accepted answers: {pages * size / rows:.0f} bytes a row")
    before = time.perf_counter()
    async with open_table(path, partition=3, prefix="ledger", partitions=4):
        taken = time.perf_counter() - before
    print(f"  open and check {pages * size / 1e6:.0f} MB: {taken * 1e3:.0f} ms")


async def growing(commands: int) -> None:
    """What a batch costs while the ledger grows, CPU µs a command by quarter of `commands`: each an
    update of one of GROWING_FLOWS flows, looked for among the answers before."""
    print(f"{commands:,} commands of {GROWING_FLOWS:,} flows, CPU µs a command by quarter:")
    with tempfile.TemporaryDirectory() as directory:
        path = table_path(Path(directory), "growing", 3)
        async with open_table(path, partition=3, prefix="growing", partitions=4) as table:
            bench = Bench(table)
            rows = [flow_row(n, 0) for n in range(1, GROWING_FLOWS + 1)]
            await bench.write(Changes(inserted=rows))
            spent_s = {"recall": 0.0, "write": 0.0}
            for number in range(commands // BATCH):
                first = number * BATCH % GROWING_FLOWS
                was = rows[first : first + BATCH]
                rows[first : first + BATCH] = now = [
                    row._replace(last_event_id=row.last_event_id + 1) for row in was
                ]
                ledger_entries = [ledger_entry(number * BATCH + n) for n in range(BATCH)]
                began_s = time.process_time()
                assert not await table.ledger_entries([one.key for one in ledger_entries])
                recalled_s = time.process_time()
                await bench.write(
                    Changes(updated=list(zip(was, now, strict=True)), ledger_entries=ledger_entries)
                )
                spent_s["recall"] += recalled_s - began_s
                spent_s["write"] += time.process_time() - recalled_s
                if (number + 1) % (commands // BATCH // 4) == 0:
                    shown = (f"{k} {v / commands * 4e6:.1f}" for k, v in spent_s.items())
                    print("  " + ", ".join(shown), flush=True)
                    spent_s = dict.fromkeys(spent_s, 0.0)
        print(f"  table {path.stat().st_size / 1e6:.0f} MB")


async def many_waits(count: int) -> None:
    """A table of `count` flows that wait until some time in the next 30 days."""
    times = random.Random(1)

    def some_time(_: int) -> int:
        return NOON_MS + times.randrange(30 * DAY_MS)

    def in_an_hour(number: int) -> int:
        return NOON_MS + number

    with tempfile.TemporaryDirectory() as directory:
        path = table_path(Path(directory), "waits", 3)
        async with open_table(path, partition=3, prefix="waits", partitions=4) as table:
            bench = Bench(table)
            for start in range(1, count, BATCH):
                flows = [waiting(flow_row(n, 0), some_time(n)) for n in range(start, start + BATCH)]
                await bench.write(Changes(inserted=flows))
        print(f"{count} flows that wait: {path.stat().st_size / 1e6:.0f} MB")
        start_s = time.perf_counter()
        async with open_table(path, partition=3, prefix="waits", partitions=4) as table:
            print(f"  open: {(time.perf_counter() - start_s) * 1e3:.0f} ms")
            last = (await table.due(None, NOON_MS + 15 * DAY_MS, count))[-1]
            end_ms = NOON_MS + 30 * DAY_MS
            await timed("stored", [table.checkpoint] * 5, 1)
            await timed("next_number", [table.next_row_number] * 5, 1)
            await timed("armed", [table.armed] * 5, 1)
            await timed("due, the first", [lambda: table.due(None, end_ms, BATCH)] * 5, BATCH)
            await timed("due, from the middle", [lambda: table.due(last, end_ms, BATCH)] * 5, BATCH)
            batches = [range(count + 1 + i * BATCH, count + 1 + (i + 1) * BATCH) for i in range(9)]
            rows = [[flow_row(n, 0) for n in batch] for batch in batches]
            bench = Bench(table)
            bench.position = await table.checkpoint()
            for new in rows:
                await bench.write(Changes(inserted=new))
            for name, change in (
                ("update", changed),
                ("wait, at random times", lambda row: waiting(row, some_time(row.row_number))),
                ("resume", resumed),
                (
                    "wait, each time the latest",
                    lambda row: waiting(row, in_an_hour(row.row_number)),
                ),
                ("resume", resumed),
                ("wait without a time", lambda row: waiting(row, None)),
                ("resume", resumed),
                ("finish", finished),
            ):
                after = [[change(row) for row in batch] for batch in rows]
                changes = [
                    Changes(updated=list(zip(old, new, strict=True)))
                    for old, new in zip(rows, after, strict=True)
                ]
                await timed(name, [lambda c=c: bench.write(c) for c in changes], BATCH)  # type: ignore[misc]
                rows = after
            end_ms = NOON_MS + 10**9
            await timed("ended", [lambda: table.ended(None, end_ms, BATCH)] * 5, BATCH)
            start_s = time.perf_counter()
            queries.list_waiting([path], limit=20)
            print(
                f"  flow list --waiting, 20 flows: {(time.perf_counter() - start_s) * 1e3:.1f} ms"
            )


async def main() -> None:
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        path = table_path(directory, "bench", 3)
        table = await stack.enter_async_context(
            open_table(path, partition=3, prefix="bench", partitions=4)
        )
        bench = Bench(table)
        for start in range(1, 50_001, 10_000):
            await bench.write(
                Changes(
                    inserted=[flow_row(start + i + 10**6, 0) for i in range(10_000)],
                    ledger_entries=[ledger_entry(start + i + 10**8) for i in range(10_000)],
                )
            )
        print(f"batches of {BATCH} rows, 50,000 flows in the table")
        print("idle loop")
        await measure(table, 1, 9)
        await row_by_row(directory, 3)
        usual_ms = sys.getswitchinterval() * 1e3
        for slice_ms, interval_ms in ((0.2, 0.5), (1.0, 0.5), (1.0, usual_ms), (0.2, usual_ms)):
            sys.setswitchinterval(interval_ms / 1e3)
            print(
                f"busy loop, slices of {slice_ms} ms, switch interval {interval_ms} ms", flush=True
            )
            done = asyncio.Event()
            spinning = asyncio.create_task(busy(done, slice_ms / 1e3))
            await measure_busy(table, 9 if interval_ms < usual_ms else 3)
            done.set()
            await spinning
        sys.setswitchinterval(usual_ms / 1e3)
        await ledger_bytes(directory, 300_000)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waits", type=int, metavar="FLOWS")
    parser.add_argument("--grow", type=int, metavar="COMMANDS")
    chosen = parser.parse_args()
    if chosen.grow is not None:
        asyncio.run(growing(chosen.grow))
    else:
        asyncio.run(main() if chosen.waits is None else many_waits(chosen.waits))
