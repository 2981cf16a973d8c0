"""Plan a replay to a topic: what was asked for, and what a former run left."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from processor.adapters.kafka.admin.topic_admin import (
    count_partitions,
    partition_counts,
    topic_configs,
)
from processor.adapters.kafka.consumer.group_offsets import committed_offsets, offsets_at
from processor.adapters.kafka.reader.topic_reader import read
from processor.cli.common.history import PartitionLog, reading_explained
from processor.cli.common.progress import Bar, progress_bar
from processor.cli.common.runner import Refused, WrongUse
from processor.contract.rights import Operation
from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.ops.replay.republish import OpenStream, ReplayRange
from processor.ops.replay.selection import Selection, Sieve, mark_of
from processor.ops.verify.record_stream import RecordStream
from processor.runtime import now_ms
from processor.settings import Settings

TIMESTAMPS: Final = "message.timestamp.type"


@dataclass(frozen=True, slots=True)
class ReplayOrder:
    """What was asked for. `bounds` are offsets by partition, None: all."""

    topic: str
    selection: Selection
    since_ms: int | None
    until_ms: int | None
    bounds: Mapping[int, tuple[int, int | None]] | None
    run: str


@dataclass(slots=True)
class ReplayPlan:
    """What is left of it. `partitions` are how many audit and target have; `positions`, how far the
    run was."""

    partitions: tuple[int, int]
    ranges: dict[int, ReplayRange]
    positions: dict[int, int]
    events: int = 0
    """How many, if they were counted."""
    first: str | None = None
    last: str | None = None


def group_of(settings: Settings, run: str) -> str:
    """The transactional id of a run, and the group that keeps its place."""
    return f"{settings.topic_prefix}-replay-{run}"


async def look(settings: Settings, order: ReplayOrder, *, count: bool) -> ReplayPlan:
    """What is left to be written. Raises Refused, TopicsWrong, WrongUse."""
    audit = Topics(settings.topic_prefix).audit
    counts = await partition_counts(settings, [order.topic], Operation.WRITE)
    if order.topic not in counts:
        raise Refused(
            f"{order.topic} does not exist; `taskflow topics create {order.topic}` makes it, with "
            f"{TIMESTAMPS}=CreateTime and retention.ms=-1."
        )
    counts = await count_partitions(settings, [audit])
    counts |= await count_partitions(settings, [order.topic], Operation.WRITE)
    if missing := sorted(set(order.bounds or ()) - set(range(counts[audit]))):
        raise WrongUse(f"There is no partition {missing[0]} of {audit} among {counts[audit]}.")
    configs = (await topic_configs(settings, [order.topic]))[order.topic]
    if configs.get(TIMESTAMPS) != "CreateTime":
        raise Refused(
            f"{order.topic} has {TIMESTAMPS}={configs.get(TIMESTAMPS)}: the broker would replace "
            "the events' times by its own. Set it to CreateTime, or take another topic."
        )
    plan = ReplayPlan((counts[audit], counts[order.topic]), {}, {})
    plan.positions = await _positions(settings, order, audit)
    plan.ranges = await _ranges(settings, order, plan.partitions[0], plan.positions)
    await _outlives(settings, order, plan, configs)
    if count:
        await _count(settings, order, plan)
    return plan


async def _outlives(
    settings: Settings, order: ReplayOrder, plan: ReplayPlan, configs: Mapping[str, str]
) -> None:
    """Raises Refused if the target's retention would take the events as they come: it goes by
    their own times, which are old."""
    retention_ms = int(configs.get("retention.ms") or -1)
    if retention_ms < 0 or "delete" not in configs.get("cleanup.policy", "delete"):
        return
    firsts = []
    async with streams(settings, Bar()) as open_stream:
        for partition, one in plan.ranges.items():
            head = await open_stream(partition, one.start, one.end).head()
            if head is not None:
                firsts.append(head.timestamp)
    if firsts and min(firsts) < now_ms() - retention_ms:
        raise Refused(
            f"The first event is of {instant(min(firsts))}, but {order.topic} has "
            f"retention.ms={retention_ms}: Kafka goes by the events' own times and would remove "
            "them soon. Set it to -1 at least until they are read."
        )


async def _ranges(
    settings: Settings, order: ReplayOrder, partitions: int, positions: Mapping[int, int]
) -> dict[int, ReplayRange]:
    audit = Topics(settings.topic_prefix).audit
    firsts = await offsets_at(settings, audit, partitions, None)
    later = 2**62
    ends = await offsets_at(
        settings, audit, partitions, later if order.until_ms is None else order.until_ms
    )
    starts = firsts
    if order.since_ms is not None:
        starts = await offsets_at(settings, audit, partitions, order.since_ms)
    ranges = {}
    for partition, first in firsts.items():
        start, end = starts[partition], ends[partition]
        if order.bounds is not None:
            if partition not in order.bounds:
                continue
            low, high = order.bounds[partition]
            start, end = max(start, low), end if high is None else min(end, high)
        start = max(start, positions.get(partition, 0))
        past = first if order.selection.needs_the_past else start
        ranges[partition] = ReplayRange(past, start, max(start, end))
    return ranges


async def _positions(settings: Settings, order: ReplayOrder, audit: str) -> dict[int, int]:
    """How far the run is: the group's offsets, or where Kafka has forgotten those (it does so a
    week after the last), the marks of its events on the target."""
    found = await committed_offsets(settings, group_of(settings, order.run), audit)
    if found:
        return found
    with progress_bar(f"looking through {order.topic}"):
        async with aclosing(read(settings, order.topic)) as records:
            async for record in records:
                mark = mark_of(record.headers)
                if mark is not None and (mark.run, mark.topic) == (order.run, audit):
                    known = found.get(mark.partition, 0)
                    found[mark.partition] = max(known, mark.offset + 1)
    return found


async def _count(settings: Settings, order: ReplayOrder, plan: ReplayPlan) -> None:
    """What the ranges hold of what is wanted."""
    with progress_bar("counting") as bar:
        bar.expect(sum(one.end - one.past for one in plan.ranges.values()))
        async with streams(settings, bar) as open_stream:
            for partition, one in plan.ranges.items():
                sieve = Sieve(order.selection)
                stream = open_stream(partition, one.past, one.end)
                while (record := await stream.take()) is not None:
                    if sieve.wants(record) and record.offset >= one.start:
                        plan.events += 1
                        at = instant(record.timestamp)
                        plan.first = min(plan.first or at, at)
                        plan.last = max(plan.last or at, at)


@asynccontextmanager
async def streams(settings: Settings, bar: Bar) -> AsyncIterator[OpenStream]:
    """Opens the audit's partitions; closes them in the end."""
    audit = Topics(settings.topic_prefix).audit
    logs: list[PartitionLog] = []

    def open_stream(partition: int, start: int, end: int) -> RecordStream:
        log = PartitionLog(settings, partition)
        logs.append(log)
        return RecordStream(log, audit, start, end, bar.advance)

    try:
        with reading_explained(settings):
            yield open_stream
    finally:
        for log in logs:
            await log.close()
