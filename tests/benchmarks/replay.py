"""How fast recorded commands are held against the code at hand, from a file; no broker.

200,000 random commands of every kind, refusals and resends among them, on 4 partitions.
Run it: .venv/bin/python -m tests.benchmarks.replay
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from processor.cli.common.progress import Bar
from processor.cli.replay.parallel import Comparison, compare
from processor.ops.replay.differences import Findings
from processor.ops.replay.file_reader import reading
from processor.ops.replay.recorded_history import RecordedPartition
from processor.ops.replay.store import open_store
from processor.settings import Settings
from tests.support.random_histories import export, random_history

PARTITIONS = 4
TRANSACTION_MAX = 500
WINDOW = 10_000


class _Windows(Bar):
    """What each WINDOW commands took of this process's CPU time, in seconds."""

    def __init__(self) -> None:
        self.taken_s: list[float] = []
        self._things = 0
        self._at_s = time.process_time()

    def count(self, things: int) -> None:
        self._things += things
        if self._things >= WINDOW:
            now_s = time.process_time()
            self.taken_s.append((now_s - self._at_s) / self._things)
            self._things, self._at_s = 0, now_s


async def _read(path: Path) -> int:
    """Only reading the file."""
    commands = 0
    with reading(path) as history:
        rules = history.head().rules
        for part in history.partitions(rules, lambda _: True):
            recorded: RecordedPartition = part
            with open_store() as store:
                await recorded.begin(store)
                async for decided in recorded.decided():
                    commands += len(decided)
                async for _ in recorded.snapshots():
                    pass
    return commands


def measure(path: Path) -> Iterator[str]:
    """Lines of a table in Markdown."""
    with reading(path) as history:
        rules = history.head().rules
    comparison = Comparison(rules, tuple(range(PARTITIONS)), path)
    began_s = time.process_time()
    commands = asyncio.run(_read(path))
    read_us = (time.process_time() - began_s) / commands * 1e6
    yield "| processes | commands | differences | wall s | commands/s |"
    yield "| ---: | ---: | ---: | ---: | ---: |"
    windows, differences = _Windows(), 0
    for processes in (1, 2):
        began_s = time.perf_counter()
        findings: Findings = compare(
            Settings(), comparison, processes, windows if processes == 1 else Bar()
        )
        wall_s = time.perf_counter() - began_s
        differences += findings.touched.total()
        yield (
            f"| {processes} | {findings.commands.total():,} | {findings.touched.total():,} | "
            f"{wall_s:.1f} | {findings.commands.total() / wall_s:,.0f} |"
        )
    if cpu_us := sorted(taken * 1e6 for taken in windows.taken_s):
        best, middle = cpu_us[0], cpu_us[len(cpu_us) // 2]
        yield ""
        yield (
            f"CPU µs a command in one process, over windows of {WINDOW:,}: {best:.1f} at best, "
            f"{middle:.1f} in the middle (what others take of the machine is in it), of which "
            f"reading the file is {read_us:.1f}. At best {1e6 / best:,.0f} commands/s on a core."
        )
    if differences:
        raise SystemExit("The build that wrote the history decides it differently.")


def report(count: int = 200_000) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as home:
        path = Path(home) / "history.gz"
        history = random_history(
            count, seed=7, partitions=PARTITIONS, transaction_max=TRANSACTION_MAX
        )
        asyncio.run(export(history, path))
        del history
        yield from measure(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=200_000)
    print(f"load average before: {os.getloadavg()[0]:.2f}\n", flush=True)
    for line in report(parser.parse_args().commands):
        print(line, flush=True)
