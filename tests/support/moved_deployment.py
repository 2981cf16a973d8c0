"""A recorded deployment, repartitioned, and held against the one that it was."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

from processor.engine.batch import first_event_id
from processor.engine.rows import Position
from processor.ops.repartition.comparison import ComparedSide
from processor.ops.repartition.rewriter import CopiedRecord, Rewriter
from processor.ops.repartition.steps import MoveStep, OldPartition, merged_by_time
from processor.ops.verify.record_stream import RecordStream
from processor.testing.memory.record import Appended
from tests.support.recorded_deployment import TOPICS, Recorded


async def moved(old: Recorded, to: int) -> Recorded:
    """The new side, each step in a transaction of its own."""
    new = Recorded(partitions=to, window_ms=old.window_ms)
    rewriter = Rewriter(TOPICS, TOPICS, to, old.window_ms)
    at = [Position(0, 0, first_event_id(number)) for number in range(to)]

    def put(number: int, copy: CopiedRecord, now: int) -> int:
        new.now = now if copy.at_ms < 0 else copy.at_ms
        name = copy.topic.rpartition(".")[2]
        record = copy.record
        return new.append(name, number, record.key, record.value, tuple(record.headers)).offset

    def write(step: MoveStep) -> None:
        if rewriter.dropped(step):
            return
        number, offset = rewriter.home(step), None
        if step.source is not None:
            offset = put(number, rewriter.source(step), step.at_ms)
            name = step.source.topic.rpartition(".")[2]
            at[number] = at[number]._replace(**{name: offset + 1})
        for copy in rewriter.rest(number, step, offset):
            put(number, copy, step.at_ms)
        at[number] = at[number]._replace(next_event_id=rewriter.next_ids[number])
        put(number, rewriter.cursor(number, at[number], {"outcomes/0": 1}), step.at_ms)

    async with AsyncExitStack() as stack:
        partitions = []
        for q in range(old.partitions):
            log = await stack.enter_async_context(old.logs(q))
            offset_ranges = {name: await log.offset_range(name) for name, _ in TOPICS}

            def opened(topic: str, start: int, end: int, log: Any = log) -> RecordStream:
                return RecordStream(log, topic, start, end, lambda _: None)

            partitions.append(OldPartition(TOPICS, q, offset_ranges, opened))
        ends = [await one.front_end() for one in partitions]
        if any(ends):
            for number in range(to):
                new._next["outcomes", number] = 1
                new.starts["outcomes", number] = 1
        fronts = [one.front(end) for one, end in zip(partitions, ends, strict=True)]
        async for step in merged_by_time(fronts):
            assert step.front
            write(step)
        async for step in merged_by_time([one.steps() for one in partitions]):
            write(step)
    for q in range(old.partitions):
        for record in old.of("state", q):
            if (made := rewriter.snapshot(record)) is not None:
                put(made[0], made[1], record.timestamp)
                put(made[0], rewriter.cursor(made[0], at[made[0]], {}), record.timestamp)
    # What nobody had decided goes along.
    for name in ("commands", "control"):
        for q in range(old.partitions):
            for record in undecided(old, name, q):
                put(rewriter.command_home(record), rewriter.command(record), record.timestamp)
    return new


def undecided(recorded: Recorded, name: str, q: int) -> Sequence[Appended]:
    decided = getattr(recorded.owner(q).position, name)
    return [record for record in recorded.of(name, q) if record.offset >= decided]


def side(recorded: Recorded, *, copy: bool) -> ComparedSide:
    made = ComparedSide(recorded.partitions, copy=copy)
    for number in range(recorded.partitions):
        for name, take in (
            ("audit", made.event),
            ("state", made.snapshot),
            ("outcomes", made.outcome),
        ):
            for record in recorded.of(name, number):
                take(record)
    return made


def differences(old: Recorded, new: Recorded) -> list[str]:
    return list(side(old, copy=False).differences(side(new, copy=True)))
