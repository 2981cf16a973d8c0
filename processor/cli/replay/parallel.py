"""Share the partitions of `taskflow replay check` and `export` out among processes."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Final

from processor.cli.common.history import open_log
from processor.cli.common.progress import Bar
from processor.cli.common.runner import Refused, run
from processor.errors import TaskflowError
from processor.ops.replay.check import replay
from processor.ops.replay.copies import Copies
from processor.ops.replay.differences import Findings
from processor.ops.replay.file_reader import reading
from processor.ops.replay.file_writer import writing
from processor.ops.replay.live import LivePartition
from processor.ops.replay.recorded import Head, RecordedPartition, Rules
from processor.ops.replay.store import FLOWS_BYTES, open_store
from processor.runtime import tune_interpreter
from processor.settings import Settings, load_settings

TELL_EVERY: Final = 2_000


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be read: these partitions of a file, or of the topics from `since_ms` on."""

    rules: Rules
    partitions: tuple[int, ...]
    file: Path | None
    since_ms: int | None = None
    flows_bytes: int = FLOWS_BYTES
    """Memory for flows; what does not fit goes to a temporary file."""


def compare(settings: Settings, job: Job, processes: int, bar: Bar) -> Findings:
    """Hold a history against the code at hand. Raises what the reading of it raises."""
    processes = min(processes, len(job.partitions))
    if processes <= 1:
        findings, copies = run(lambda: _compare(settings, job, bar))
    else:
        findings, copies = _in_processes(job, processes, bar)
    copies.compare(findings)
    return findings


async def export(settings: Settings, job: Job, head: Head, bar: Bar) -> int:
    """Write the history of the topics to the job's file; how many commands it holds."""
    assert job.file is not None
    commands = 0
    with writing(job.file) as writer:
        writer.head(head._replace(partitions=job.partitions))
        for number in job.partitions:
            bar.at(f"exporting partition {number}")
            with open_store(flows_bytes=job.flows_bytes) as store:
                async with _live(settings, job, number, bar) as live:
                    writer.begin(number, await live.begin(store), store)
                    async for done in live.decided():
                        writer.transaction(done)
                        commands += len(done)
                        bar.count(len(done))
                    async for snapshots in live.snapshots():
                        writer.snapshots(snapshots)
                    writer.end(number, live.waking())
    return commands


async def _compare(settings: Settings, job: Job, bar: Bar) -> tuple[Findings, Copies]:
    tune_interpreter()
    findings, copies = Findings(), Copies()

    async def one(recorded: RecordedPartition, number: int) -> None:
        bar.at(f"comparing partition {number}")
        with open_store(flows_bytes=job.flows_bytes) as store:
            given = recorded, job.rules, number, store, findings, copies
            await replay(*given, on_read=bar.count)

    if job.file is not None:
        bar.expect(job.file.stat().st_size)
        with reading(job.file, bar.advance) as history:
            history.head()
            for part in history.partitions(job.rules, lambda number: number in job.partitions):
                await one(part, part.number)
    else:
        for number in job.partitions:
            async with _live(settings, job, number, bar) as live:
                await one(live, number)
    return findings, copies


@asynccontextmanager
async def _live(
    settings: Settings, job: Job, number: int, bar: Bar
) -> AsyncIterator[LivePartition]:
    async with open_log(settings, number) as log:
        live = LivePartition(log, job.rules, number, since_ms=job.since_ms, on_read=bar.advance)
        bar.expect(await live.outcomes())
        yield live


# In processes of their own

_Told = tuple[int, int, int]
"""Units expected and done, and commands, since the last time."""
_Done = tuple[Findings, Copies]


class _Telling(Bar):
    """Passes on what it counts, a little at a time."""

    def __init__(self, told: Connection) -> None:
        self._told = told
        self._expected = self._done = self._things = 0

    def expect(self, units: int) -> None:
        self._expected += units

    def advance(self, units: int) -> None:
        self._done += units

    def count(self, things: int) -> None:
        self._things += things
        if self._things >= TELL_EVERY:
            self.tell()

    def tell(self) -> None:
        told: _Told = (self._expected, self._done, self._things)
        self._told.send(told)
        self._expected = self._done = self._things = 0


def _in_processes(job: Job, processes: int, bar: Bar) -> _Done:
    """Each takes every so-many-th partition."""
    spawn = get_context("spawn")
    jobs = [
        replace(
            job, partitions=job.partitions[n::processes], flows_bytes=job.flows_bytes // processes
        )
        for n in range(processes)
    ]
    findings, copies = Findings(), Copies()
    working = []
    connections: list[Connection] = []
    try:
        for one in jobs:
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_work, args=(one, theirs), daemon=True)
            process.start()
            theirs.close()
            working.append(process)
            connections.append(ours)
        done: dict[int, _Done] = {}
        while len(done) < len(connections):
            left = [told for n, told in enumerate(connections) if n not in done]
            for told in wait(left):
                assert isinstance(told, Connection)
                if (result := _hear(told, bar)) is not None:
                    done[connections.index(told)] = result
        for _, (found, copied) in sorted(done.items()):
            findings.merge(found)
            copies.merge(copied)
    finally:
        for process in working:
            process.terminate()
            process.join()
    return findings, copies


def _hear(told: Connection, bar: Bar) -> _Done | None:
    """What a process found, once it has come to its end."""
    try:
        message: _Told | _Done | TaskflowError = told.recv()
    except EOFError:
        raise Refused("One of the processes ended too early; nothing was compared.") from None
    match message:
        case TaskflowError():
            raise message
        case (Findings(), Copies()):
            return message
        case (int(expected), int(done), int(things)):
            bar.expect(expected)
            bar.advance(done)
            bar.count(things)
    return None


def _work(job: Job, told: Connection) -> None:
    """What such a process does."""
    bar = _Telling(told)
    try:
        done = run(lambda: _compare(load_settings(), job, bar))
        bar.tell()
        told.send(done)
    except TaskflowError as error:
        told.send(error)
