"""Copy to the new side of a repartition, in transactions that record the progress."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import orjson

from processor.adapters.kafka.client_config import compression_type, connection_options
from processor.adapters.kafka.producer import bulk_copy as copier
from processor.adapters.kafka.producer.bulk_copy import BulkCopy
from processor.adapters.kafka.reader.log_reader import KafkaLogReader
from processor.cli.common.history import PartitionLog
from processor.cli.common.progress import Bar
from processor.cli.common.runner import Refused
from processor.cli.repartition.topic_set import COMMIT_TIMEOUT_S, Seen, TopicSet
from processor.contract.state import CURSOR_PREFIX
from processor.contract.topics import Topics
from processor.engine.batch import Outgoing, first_event_id
from processor.engine.ports import OffsetRange as Whole
from processor.engine.rows import Position
from processor.ops.repartition.rewriter import CopiedRecord, Rewriter, progress_of
from processor.ops.repartition.steps import MoveStep, OldPartition, merged_by_time
from processor.ops.verify.record_stream import RecordStream
from processor.recovery.checkpoint import last_record
from processor.settings import Settings

STEPS_AT_ONCE = 500
BYTES_AT_ONCE = 4 * 1024 * 1024


@dataclass
class CopyTarget:
    """A new partition while it is filled: how far it is, and how far the old side is copied to
    it, as stands on its newest cursor."""

    partition: int
    writer: BulkCopy
    position: Position
    progress: dict[str, int] = field(default_factory=dict)
    steps: list[MoveStep] = field(default_factory=list)


async def newest(
    topics: Topics, history: KafkaLogReader, partition: int
) -> tuple[Position, dict[str, int]]:
    """Where a new partition stands, and how far the old side is copied to it."""
    whole = await history.offset_range(topics.state)
    end = await history.stable_end(topics.state)
    key = f"{CURSOR_PREFIX}{partition}".encode()
    found = await last_record(
        history, topics.state, Whole(whole.start, end), lambda record: record.key == key
    )
    if found is None:
        return Position(0, 0, first_event_id(partition)), {}
    cursor = orjson.loads(found.value or b"")
    position = Position(cursor["commands"], cursor["control"], cursor["next_event_id"])
    return position, progress_of(found.headers) or {}


class TopicCopy:
    """One run: `old` as it was `seen`, written to the partitions of `new`."""

    def __init__(
        self, settings: Settings, old: TopicSet, new: TopicSet, seen: Seen, bar: Bar
    ) -> None:
        self._settings = settings
        self._old = old
        self._new = new
        self._seen = seen
        self._bar = bar
        self._rewriter = Rewriter(old.topics, new.topics, new.count, settings.dedupe_window_ms)

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            targets = []
            for partition in range(self._new.count):
                targets.append(await self._target(partition))
                stack.callback(targets[-1].writer.discard)
            await self._copy_all(targets)

    async def _target(self, partition: int) -> CopyTarget:
        writer = BulkCopy(
            connection_options(self._settings, "repartition"),
            self._new.topics,
            partition,
            compression=compression_type(self._settings),
            commit_timeout_s=COMMIT_TIMEOUT_S,
        )
        # First of all: what a killed run left open would hide the newest cursor.
        await writer.start()
        async with self._new.history(partition) as history:
            position, progress = await newest(self._new.topics, history, partition)
        return CopyTarget(partition, writer, position, progress)

    async def _copy_all(self, targets: Sequence[CopyTarget]) -> None:
        bar = self._bar
        for target in targets:
            bar.at(f"partition {target.partition}: what was copied before")
            async with self._new.log(target.partition) as log:
                end = (await log.offset_range(self._new.topics.audit)).stable
                async for records in log.read(self._new.topics.audit, 0, end):
                    for record in records:
                        self._rewriter.take_back(target.partition, record)
        for q in range(self._old.count):
            carried = [t for t in targets if f"commands/{q}" in t.progress]
            outcomes = self._seen.offset_ranges[q][self._old.topics.outcomes].stable
            if any(t.progress.get(f"outcomes/{q}", 0) < outcomes for t in carried):
                raise Refused(
                    "The old side went on deciding after its undecided commands were carried over. "
                    f"Delete the topics of {self._new.topics.prefix} and begin again."
                )
        async with AsyncExitStack() as stack:
            partitions = {}
            for q in range(self._old.count):
                log = await stack.enter_async_context(self._old.log(q))
                partitions[q] = OldPartition(
                    self._old.topics, q, self._seen.offset_ranges[q], _opener(log, bar)
                )
            ends = {q: await one.front_end() for q, one in partitions.items()}
            if any(ends.values()):
                await self._begin_later(targets)
            bar.at("events whose commands are gone")
            await self._write(
                targets, merged_by_time([p.front(ends[q]) for q, p in partitions.items()])
            )
            bar.at("history")
            await self._write(targets, merged_by_time([p.steps() for p in partitions.values()]))
            bar.at("the present")
            await self._present(targets)
            bar.at("undecided commands")
            await self._carry(targets, partitions)

    async def _begin_later(self, targets: Sequence[CopyTarget]) -> None:
        """Outcomes whose commands are gone stay behind, and a verification of the new side takes a
        topic that begins at 0 for one that has them all."""
        for target in targets:
            async with self._new.history(target.partition) as history:
                offset_range = await history.offset_range(self._new.topics.outcomes)
            if offset_range.end == 0:
                filler = Outgoing(b"", b"", ())
                await target.writer.copy([(self._new.topics.outcomes, filler, 0)], lambda _: [])
            if offset_range.start == 0:
                await copier.drop_before(
                    self._settings, self._new.topics.outcomes, target.partition, 1
                )

    async def _write(self, targets: Sequence[CopyTarget], steps: AsyncIterator[MoveStep]) -> None:
        seen: dict[str, int] = {}
        count = size_bytes = 0
        async for step in steps:
            if step.front:
                seen[f"audit/{step.partition}"] = step.events[0].offset + 1
            else:
                assert step.outcome is not None
                seen[f"outcomes/{step.partition}"] = step.outcome.offset + 1
            if not self._rewriter.dropped(step):
                target = targets[self._rewriter.home(step)]
                if not _is_copied(step, target.progress):
                    target.steps.append(step)
                    count += 1
                    size_bytes += sum(len(record.value or b"") for record in _records(step))
            if count >= STEPS_AT_ONCE or size_bytes >= BYTES_AT_ONCE:
                await self._flush(targets, seen)
                count = size_bytes = 0
        await self._flush(targets, seen)

    async def _flush(self, targets: Sequence[CopyTarget], seen: Mapping[str, int]) -> None:
        await asyncio.gather(*(self._flush_one(target, seen) for target in targets if target.steps))

    async def _flush_one(self, target: CopyTarget, seen: Mapping[str, int]) -> None:
        steps, target.steps = target.steps, []
        progress = target.progress | {
            name: max(offset, target.progress.get(name, 0)) for name, offset in seen.items()
        }
        with_source = [step for step in steps if step.source is not None]
        position = target.position

        def then(offsets: Sequence[int]) -> list[CopiedRecord]:
            nonlocal position
            places = {id(step): at for step, at in zip(with_source, offsets, strict=True)}
            copies: list[CopiedRecord] = []
            for step in steps:
                offset = places.get(id(step))
                copies += self._rewriter.rest(target.partition, step, offset)
                if step.source is not None and offset is not None:
                    name = (
                        "commands" if step.source.topic == self._old.topics.commands else "control"
                    )
                    position = position._replace(**{name: offset + 1})
            position = position._replace(next_event_id=self._rewriter.next_ids[target.partition])
            return [*copies, self._rewriter.cursor(target.partition, position, progress)]

        await target.writer.copy([self._rewriter.source(step) for step in with_source], then)
        target.position, target.progress = position, progress

    async def _present(self, targets: Sequence[CopyTarget]) -> None:
        state = self._old.topics.state
        for q in range(self._old.count):
            mark = f"state/{q}"
            end = self._seen.offset_ranges[q][state].stable
            pending: dict[int, dict[bytes, CopiedRecord]] = {}
            async with self._old.log(q) as log:
                async for records in log.read(state, self._seen.offset_ranges[q][state].start, end):
                    self._bar.advance(len(records))
                    for record in records:
                        if (made := self._rewriter.snapshot(record)) is None:
                            continue
                        home, copy = made
                        if targets[home].progress.get(mark, 0) < end:
                            pending.setdefault(home, {})[copy.record.key or b""] = copy
                    for home, copies in pending.items():
                        if len(copies) >= STEPS_AT_ONCE:
                            await self._put(targets[home], [*copies.values()], {})
                            copies.clear()
            for target in targets:
                if target.progress.get(mark, 0) < end:
                    copies = pending.get(target.partition, {})
                    await self._put(target, [*copies.values()], {mark: end})

    async def _carry(
        self, targets: Sequence[CopyTarget], partitions: Mapping[int, OldPartition]
    ) -> None:
        """The undecided commands, each topic's in the order of time; behind the cursor, so that the
        next owner decides it."""
        waiting: dict[int, list[CopiedRecord]] = {}
        # Who goes on later sees by the last of these whether anything was decided since.
        outcomes = self._old.topics.outcomes
        marks = {f"outcomes/{q}": self._seen.offset_ranges[q][outcomes].stable for q in partitions}
        for topic in (self._old.topics.commands, self._old.topics.control):
            for q, partition in partitions.items():
                name = f"{topic.rpartition('.')[2]}/{q}"
                start, stable = self._seen.rest(q, topic)
                marks[name] = stable
                async for record in partition.undecided(topic, start):
                    home = self._rewriter.command_home(record)
                    if record.offset >= targets[home].progress.get(name, 0):
                        waiting.setdefault(home, []).append(self._rewriter.command(record))
        for target in targets:
            copies = sorted(waiting.get(target.partition, []), key=lambda copy: copy.at_ms)
            if copies or not marks.items() <= target.progress.items():
                await self._put(target, copies, marks)

    async def _put(
        self,
        target: CopyTarget,
        copies: Sequence[CopiedRecord],
        marks: Mapping[str, int],
    ) -> None:
        progress = {**target.progress, **marks}
        cursor = self._rewriter.cursor(target.partition, target.position, progress)
        await target.writer.copy([*copies, cursor], lambda _: [])
        target.progress = progress


def _opener(log: PartitionLog, bar: Bar) -> Any:
    return lambda topic, start, end: RecordStream(log, topic, start, end, bar.advance)


def _is_copied(step: MoveStep, progress: Mapping[str, int]) -> bool:
    if step.front:
        return step.events[0].offset < progress.get(f"audit/{step.partition}", 0)
    assert step.outcome is not None
    return step.outcome.offset < progress.get(f"outcomes/{step.partition}", 0)


def _records(step: MoveStep) -> Any:
    parts = (step.source, step.outcome, step.dead_letter)
    return chain(step.events, (record for record in parts if record is not None))
