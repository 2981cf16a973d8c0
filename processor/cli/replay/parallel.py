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
from processor.ops.replay.recorded_history import Head, RecordedPartition, Rules
from processor.ops.replay.store import FLOWS_BYTES, open_store
from processor.runtime import tune_interpreter
from processor.settings import Settings, load_settings

REPORT_EVERY: Final = 2_000


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is to be read: these partitions of a file, or of the topics from `since_ms` on."""

    rules: Rules
    partitions: tuple[int, ...]
    file: Path | None
    since_ms: int | None = None
    flows_bytes: int = FLOWS_BYTES
    """Memory for flows; what does not fit goes to a temporary file."""


def compare(settings: Settings, comparison: Comparison, processes: int, bar: Bar) -> Findings:
    """Hold a history against the code at hand. Raises what the reading of it raises."""
    processes = min(processes, len(comparison.partitions))
    if processes <= 1:
        findings, copies = run(lambda: _compare(settings, comparison, bar))
    else:
        findings, copies = _in_processes(comparison, processes, bar)
    copies.compare(findings)
    return findings


async def export(settings: Settings, comparison: Comparison, head: Head, bar: Bar) -> int:
    """Write the history of the topics to the job's file; how many commands it holds."""
    assert comparison.file is not None
    commands = 0
    with writing(comparison.file) as writer:
        writer.head(head._replace(partitions=comparison.partitions))
        for partition in comparison.partitions:
            bar.at(f"exporting partition {partition}")
            with open_store(flows_bytes=comparison.flows_bytes) as store:
                async with _live(settings, comparison, partition, bar) as live:
                    writer.begin(partition, await live.begin(store), store)
                    async for done in live.decided():
                        writer.transaction(done)
                        commands += len(done)
                        bar.count(len(done))
                    async for snapshots in live.snapshots():
                        writer.snapshots(snapshots)
                    writer.end(partition, live.waking())
    return commands


async def _compare(settings: Settings, comparison: Comparison, bar: Bar) -> tuple[Findings, Copies]:
    tune_interpreter()
    findings, copies = Findings(), Copies()

    async def one(recorded: RecordedPartition, partition: int) -> None:
        bar.at(f"comparing partition {partition}")
        with open_store(flows_bytes=comparison.flows_bytes) as store:
            given = recorded, comparison.rules, partition, store, findings, copies
            await replay(*given, on_read=bar.count)

    if comparison.file is not None:
        bar.expect(comparison.file.stat().st_size)
        with reading(comparison.file, bar.advance) as history:
            history.head()
            for part in history.partitions(
                comparison.rules, lambda partition: partition in comparison.partitions
            ):
                await one(part, part.partition)
    else:
        for partition in comparison.partitions:
            async with _live(settings, comparison, partition, bar) as live:
                await one(live, partition)
    return findings, copies


@asynccontextmanager
async def _live(
    settings: Settings, comparison: Comparison, partition: int, bar: Bar
) -> AsyncIterator[LivePartition]:
    async with open_log(settings, partition) as log:
        live = LivePartition(
            log, comparison.rules, partition, since_ms=comparison.since_ms, on_read=bar.advance
        )
        bar.expect(await live.outcomes())
        yield live


# In processes of their own

_Progress = tuple[int, int, int]
"""Units expected and done, and commands, since the last time."""
_Done = tuple[Findings, Copies]


class _PipeBar(Bar):
    """Passes on what it counts, a little at a time."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._expected = self._done = self._things = 0

    def expect(self, units: int) -> None:
        self._expected += units

    def advance(self, units: int) -> None:
        self._done += units

    def count(self, things: int) -> None:
        self._things += things
        if self._things >= REPORT_EVERY:
            self.flush()

    def flush(self) -> None:
        progress: _Progress = (self._expected, self._done, self._things)
        self._pipe.send(progress)
        self._expected = self._done = self._things = 0


def _in_processes(comparison: Comparison, processes: int, bar: Bar) -> _Done:
    """Each takes every so-many-th partition."""
    spawn = get_context("spawn")
    shares = [
        replace(
            comparison,
            partitions=comparison.partitions[n::processes],
            flows_bytes=comparison.flows_bytes // processes,
        )
        for n in range(processes)
    ]
    findings, copies = Findings(), Copies()
    working = []
    connections: list[Connection] = []
    try:
        for one in shares:
            ours, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(target=_work, args=(one, theirs), daemon=True)
            process.start()
            theirs.close()
            working.append(process)
            connections.append(ours)
        done: dict[int, _Done] = {}
        while len(done) < len(connections):
            left = [pipe for n, pipe in enumerate(connections) if n not in done]
            for pipe in wait(left):
                assert isinstance(pipe, Connection)
                if (result := _receive(pipe, bar)) is not None:
                    done[connections.index(pipe)] = result
        for _, (found, copied) in sorted(done.items()):
            findings.merge(found)
            copies.merge(copied)
    finally:
        for process in working:
            process.terminate()
            process.join()
    return findings, copies


def _receive(pipe: Connection, bar: Bar) -> _Done | None:
    """What a process found, once it has come to its end."""
    try:
        message: _Progress | _Done | TaskflowError = pipe.recv()
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


def _work(comparison: Comparison, pipe: Connection) -> None:
    """What such a process does."""
    bar = _PipeBar(pipe)
    try:
        done = run(lambda: _compare(load_settings(), comparison, bar))
        bar.flush()
        pipe.send(done)
    except TaskflowError as error:
        pipe.send(error)
