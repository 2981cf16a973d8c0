"""Repair a partition whose topics lost something, as an operator asks.

`skip` and `restore` write to `state`, under the partition's transactional id: whoever owns it
meanwhile is fenced, and takes it over from what was written.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Final, NamedTuple

import orjson

from processor.contract.state import CURSOR_PREFIX
from processor.contract.values import parse_timestamp
from processor.engine.batch import Outgoing, PartitionConfig, cursor_record, first_event_id
from processor.engine.ports import LogReader, Table, TransactionalProducer
from processor.engine.rows import Position
from processor.errors import TaskflowError
from processor.recovery.checkpoint import (
    Loss,
    OffsetRanges,
    PartitionCheckpoint,
    last_record,
    losses,
    settled,
)
from processor.recovery.consistent_cut import ConsistentCut, MovedOn, consistent_cut, standing_of
from processor.recovery.rebuild import fold_audit

PORTION_MAX_RECORDS: Final = 1_000
PORTION_MAX_BYTES: Final = 4 * 1024 * 1024
"""What one transaction restores; one more snapshot may be on top."""
WRITE_TRIES: Final = 8
WRITE_PAUSE_S: Final = 0.2
"""After the nth failure, n times as long: a worker that is stuck tries at least every 5 s."""


# Going on behind what is lost


class Skip(NamedTuple):
    """What a partition lost, and where it would go on. Work items from the event
    `first_unwritten` on may not be written."""

    lost: list[Loss]
    was: Position
    to: Position
    first_unwritten: int


async def plan_skip(place: PartitionConfig, history: LogReader) -> Skip | None:
    """None if nothing is lost. Raises CursorMissing, HistoryLost or WrittenByNewer if something
    else has to be repaired first."""
    view = await consistent_cut(place, history)
    was, _, first_unwritten = await standing_of(place, view)
    lost = await losses(place, view, view.offset_ranges, was)
    if not lost:
        return None
    to = was
    for one in lost:
        field = "commands" if one.topic == place.topics.commands else "control"
        to = to._replace(**{field: await _goes_on(place, view, one)})
    return Skip(lost, was, to, first_unwritten)


async def _goes_on(place: PartitionConfig, view: ConsistentCut, loss: Loss) -> int:
    """The first offset that was never decided.

    Where the topic ends too early: behind all that is no newer than its last decided record. Of a
    topic that was cut, all that is left was decided; of one that was recreated, nothing was.
    """
    if loss.offset_range.start > loss.next:
        return loss.offset_range.start
    outcomes = place.topics.outcomes
    last = await last_record(
        view,
        outcomes,
        view.offset_ranges[outcomes],
        lambda record: orjson.loads(record.value or b"")["source"]["topic"] == loss.topic,
    )
    if last is None:
        return loss.offset_range.start
    at_ms = parse_timestamp(orjson.loads(last.value or b"")["at"])
    newer = await view.offset_at(loss.topic, at_ms + 1)
    return min(loss.offset_range.end, await view.stable_end(loss.topic)) if newer is None else newer


async def skip(
    place: PartitionConfig,
    history: LogReader,
    new_writer: Callable[[], TransactionalProducer],
    agreed: Skip,
) -> None:
    """Write the cursor that was agreed on. Raises MovedOn if it is not what would be planned now,
    once no other producer can write."""

    async def needed() -> bool:
        now = await plan_skip(place, history)
        if now not in (None, agreed):
            raise MovedOn(
                f"Partition {place.partition} is not as it was shown any more; nothing was written."
            )
        return now is not None

    pen = _Pen(place, new_writer, needed)
    try:
        await pen.write([cursor_record(place.partition, agreed.to, agreed.first_unwritten)])
    finally:
        pen.drop()


class _Pen:
    """Writes to `state` as the partition's owner, though a worker may fence us each time that it
    tries to take the partition over. `needed` is asked after each fence of ours."""

    def __init__(
        self,
        place: PartitionConfig,
        new_writer: Callable[[], TransactionalProducer],
        needed: Callable[[], Awaitable[bool]],
    ) -> None:
        self._state = place.topics.state
        self._new_writer = new_writer
        self._needed = needed
        self._writer: TransactionalProducer | None = None

    async def write(self, records: Sequence[Outgoing]) -> None:
        """Once at least: what is written here may be written twice."""
        for attempt in range(1, WRITE_TRIES + 1):
            try:
                if self._writer is None or self._writer.suspect:
                    self.drop()
                    self._writer = self._new_writer()
                    await self._writer.start()
                    if not await self._needed():
                        return
                await self._writer.write({self._state: records})
                return
            except TaskflowError as error:
                if not error.retriable or isinstance(error, MovedOn) or attempt == WRITE_TRIES:
                    raise
            except Exception:
                if attempt == WRITE_TRIES:
                    raise
            self.drop()
            await asyncio.sleep(attempt * WRITE_PAUSE_S)

    def drop(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.discard()


# Writing `state` again


class Restoration(NamedTuple):
    """What is to be written to `state`: as many snapshots as there are flows and steps in a table
    that was folded from `audit`, tombstones for keys that should be gone, and the cursor."""

    offset_ranges: OffsetRanges
    position: Position
    flows: int
    tombstones: list[bytes]


async def plan_restoration(
    place: PartitionConfig, table: Table, view: ConsistentCut
) -> Restoration | None:
    """Folds `audit` into `table`, and looks for what `state` has too much; None if nothing was
    ever decided. Raises HistoryLost if `audit` does not hold all that ever happened."""
    topics = place.topics
    last_event = await last_record(view, topics.audit, view.offset_ranges[topics.audit])
    last_outcome = await last_record(view, topics.outcomes, view.offset_ranges[topics.outcomes])
    if last_event is None and last_outcome is None:
        return None
    follows = first_event_id(place.partition)
    if last_event is not None:
        follows = orjson.loads(last_event.value or b"")["id"] + 1
    position = Position(
        await _decided(place, view, topics.commands),
        await _decided(place, view, topics.control),
        follows,
    )
    await fold_audit(
        *(place, table, view, view.offset_ranges),
        PartitionCheckpoint(position, last_outcome, first_event_id(place.partition)),
    )
    tombstones = await _left_over(table, view, topics.state)
    return Restoration(view.offset_ranges, position, await table.count_flows(), tombstones)


async def _decided(place: PartitionConfig, view: ConsistentCut, topic: str) -> int:
    """The offset after the last one of `topic` that was decided.

    Outcomes are kept longer than commands: where there is none, nothing that is left was decided.
    """
    found = 0
    for name in (place.topics.outcomes, place.topics.audit):
        last = await last_record(
            view,
            name,
            view.offset_ranges[name],
            lambda record: orjson.loads(record.value or b"")["source"]["topic"] == topic,
        )
        if last is not None:
            found = max(found, orjson.loads(last.value or b"")["source"]["offset"] + 1)
    return found or (await view.offset_range(topic)).start


async def _left_over(table: Table, view: ConsistentCut, state: str) -> list[bytes]:
    """Keys with a value on `state` that `table` knows nothing of."""
    left: dict[bytes, None] = {}
    async for records in view.read(state, *view.offset_ranges[state]):
        keys = {record.key or b"": record.value is not None for record in records}
        parts = {key: key.decode().partition("/") for key in keys}
        flows = await table.flows([flow_id for flow_id, slash, _ in parts.values() if not slash])
        steps = await table.steps([(id_, run_id) for id_, slash, run_id in parts.values() if slash])
        for key, has_value in keys.items():
            flow_id, slash, run_id = parts[key]
            known = (flow_id, run_id) in steps if slash else flow_id in flows
            if known or key.startswith(CURSOR_PREFIX.encode()):
                continue
            if has_value:
                left[key] = None
            else:
                left.pop(key, None)
    return list(left)


async def restore(
    place: PartitionConfig,
    history: LogReader,
    new_writer: Callable[[], TransactionalProducer],
    plan: Restoration,
    snapshots: Iterable[Outgoing],
    on_read: Callable[[int], None] = lambda _: None,
) -> None:
    """Write `snapshots`, the tombstones, and the cursor last of all: a crash before it leaves a
    partition that still asks for this, and may be restored again. Raises MovedOn."""

    async def needed() -> bool:
        now = await settled(place, history)
        if any(now[name] != plan.offset_ranges[name] for name in (outcomes, audit)):
            raise MovedOn(
                f"Partition {place.partition} was decided on meanwhile; stop its worker and ask "
                "again."
            )
        return True

    outcomes, audit = place.topics.outcomes, place.topics.audit
    gone = (Outgoing(key, None, ()) for key in plan.tombstones)
    pen = _Pen(place, new_writer, needed)
    try:
        for some in _portions(chain(gone, snapshots)):
            await pen.write(some)
            on_read(len(some))
        # Which work items were written stood there, too: the next owner writes those of all steps
        # that are still offered.
        first = first_event_id(place.partition)
        await pen.write([cursor_record(place.partition, plan.position, first)])
    finally:
        pen.drop()


def _portions(records: Iterable[Outgoing]) -> Iterator[list[Outgoing]]:
    some: list[Outgoing] = []
    size_bytes = 0
    for record in records:
        some.append(record)
        size_bytes += len(record.value or b"")
        if len(some) >= PORTION_MAX_RECORDS or size_bytes >= PORTION_MAX_BYTES:
            yield some
            some, size_bytes = [], 0
    if some:
        yield some
