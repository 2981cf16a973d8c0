"""The read model of one worker: apply batches, advance positions, notify waiting requests."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from processor.contract import Topics
from processor.contract.values import EVENTS_PER_PARTITION
from processor.views.faust.tables import ViewTable
from processor.views.metrics import ViewMetrics
from processor.views.model.aggregates import MinuteCounts, Totals
from processor.views.model.database import Database, DeadLetterRow, ProjectionBatch, ViewPosition
from processor.views.model.dead_letters import dead_letter_row
from processor.views.model.flow_cache import Flows
from processor.views.model.projection import (
    AuditEvent,
    CannotFollow,
    ProjectionChanges,
    ProjectionFailed,
    Viewed,
    ViewedStep,
    ViewMessage,
    changed_steps,
    project,
    read,
)
from processor.views.model.signal import Signal

RETRY_S: Final = 1.0
RESEEKS_MAX: Final = 3
"""How often a partition is read again from where we are before a gap is believed."""

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class ReadModelState:
    """How far Kafka's consumer is: the next offset it fetches, the end of what is committed, and
    behind the last record that it has handed over."""

    at: int
    end: int | None
    handed: int


class ReadModel:
    """What this worker has projected, and how far.

    `owned`: the partitions that the group gave us; only these are answered for. `broken`: why a
    partition is not projected any further. `reseek` makes Kafka's consumer read a partition of
    `audit` from our position again.
    """

    def __init__(
        self,
        database: Database,
        topics: Topics,
        *,
        minutes: ViewTable,
        totals: ViewTable,
        metrics: ViewMetrics,
        reseek: Callable[[int], Awaitable[None]],
    ) -> None:
        self.database = database
        self.minutes, self.totals = minutes, totals
        self.metrics = metrics
        self.own_partitions: set[int] = set()
        self.assigned = False
        """Whether the group has shared the partitions out to us at all."""
        self.broken: dict[int, str] = {}
        self.failing: str | None = None
        """Why the last write failed, if it did; it is tried again until it works."""
        self.changed = Signal()
        self.reassigned = Signal()
        self._topics = topics
        self._reseek = reseek
        self._reseeks: dict[int, int] = {}
        self._positions: dict[tuple[str, int], ViewPosition] = {}
        self._flows = Flows()
        self._writing = asyncio.Lock()
        self._ahead = False
        """Whether memory may have what the file has not, or not yet: a batch was begun and its end
        was not seen."""
        self._levels: dict[int, ReadModelState] = {}
        self._level_at: dict[int, float] = {}
        """When a partition was last seen to be level, by our clock."""
        self._goals: dict[int, int] = {}
        """The ends of what was committed when the partitions came to us."""
        self._caught_up: set[int] = set()
        metrics.show(partitions=lambda: len(self.own_partitions), broken=lambda: len(self.broken))

    async def load(self) -> None:
        """Take over what the database has; anything else in memory is forgotten."""
        self._flows.clear()
        self._positions = await self.database.positions()
        rows = await self.database.aggregates()
        for table in (self.minutes, self.totals):
            table.load([row[1:] for row in rows if row[0] == table.name])
        self._ahead = False

    # Where we are

    def next_offset(self, topic: str, partition: int) -> int:
        """From where a partition of a topic is to be read; called from Faust's thread as well."""
        position = self._positions.get((topic, partition))
        return 0 if position is None else position.next

    def position(self, partition: int) -> ViewPosition:
        """How far a partition of `audit` is projected."""
        start = ViewPosition(0, partition * EVENTS_PER_PARTITION, 0)
        return self._positions.get((self._topics.audit, partition), start)

    def assign(self, partitions: Iterable[int]) -> None:
        """The group gave us these, and no other ones. Those that we had stay caught up."""
        self.own_partitions = set(partitions)
        self._caught_up &= self.own_partitions
        self._goals.clear()
        self.assigned = True
        self.broken.clear()
        self._reseeks.clear()
        self._levels.clear()
        self._level_at.clear()
        self.reassigned.set()
        self.changed.set()

    def measure(self, levels: dict[int, ReadModelState]) -> None:
        """How far Kafka's consumer is with the partitions of `audit`."""
        self._levels = levels
        now = time.monotonic()
        for partition, level in levels.items():
            if self.behind(partition) == 0:
                self._level_at[partition] = now
            else:
                self._level_at.setdefault(partition, now)
            if level.end is not None and partition in self.own_partitions:
                goal = self._goals.setdefault(partition, level.end)
                if self._passed(partition, level) >= goal:
                    self._caught_up.add(partition)
        self.metrics.behind({p: behind for p in levels if (behind := self.behind(p)) is not None})

    def end(self, partition: int) -> int | None:
        """Where what is committed ends, as far as is known."""
        level = self._levels.get(partition)
        return None if level is None else level.end

    def behind(self, partition: int) -> int | None:
        """Offsets that are committed and not projected yet; None if not known yet."""
        level = self._levels.get(partition)
        if level is None or level.end is None:
            return None
        return max(level.end - self._passed(partition, level), 0)

    def _passed(self, partition: int, level: ReadModelState) -> int:
        """The offset before which nothing is left to be projected: markers of transactions take
        offsets, too, and behind the last record they are no lag."""
        ours = self.position(partition).next
        return ours if level.handed > ours else max(level.at, ours)

    def caught_up(self, partition: int) -> bool:
        """Whether all is projected that was committed when the partition came to us."""
        return partition in self._caught_up

    def ready(self) -> bool:
        """Whether answers are worth asking for: all partitions are caught up, and go on."""
        return (
            self.assigned
            and self.failing is None
            and not self.broken
            and self.own_partitions <= self._caught_up
        )

    def lag_ms(self, partition: int) -> int | None:
        """For how long a partition has been behind; None if not known yet.

        Under a steady load some event is always under way: then it is the age of the newest one
        that is projected.
        """
        behind = self.behind(partition)
        if not behind:
            return behind
        since_ms = (time.monotonic() - self._level_at.get(partition, time.monotonic())) * 1000
        age_ms = time.time() * 1000 - self.position(partition).at_ms
        return max(int(min(since_ms, age_ms)), 0)

    async def includes(self, event_ids: Sequence[int], wait_s: float) -> bool:
        """Whether all these events, of partitions that are ours, are projected within `wait_s`."""
        try:
            async with asyncio.timeout(wait_s):
                while not self._has(event_ids):
                    await self.changed.wait()
        except TimeoutError:
            return self._has(event_ids)
        return True

    def _has(self, event_ids: Sequence[int]) -> bool:
        return all(
            event_id <= self.position(event_id // EVENTS_PER_PARTITION).event_id
            for event_id in event_ids
        )

    # What comes in

    async def project(self, messages: Sequence[ViewMessage]) -> None:
        """Records of `audit`, in order within each partition; what we have already is dropped.

        Returns when they are in the database; what fails there is tried again without end. What
        cannot follow, read from the file again as well, stops its partition alone.
        """
        doubted: set[int] = set()
        while True:
            async with self._writing:
                if self._ahead:
                    await self.load()
                batch, positions = await self._new_of(messages)
                if not batch:
                    return
                try:
                    known = await self._known(batch)
                    steps = await self._known_steps(batch, known)
                    self._ahead = True
                    changes = self._change(batch, known, steps)
                    await self._write(changes, (), positions)
                except CannotFollow as failed:
                    # Against what memory says, perhaps, but not against what the file says.
                    await self.load()
                    if failed.partition in doubted:
                        self._stop(failed.partition, failed)
                    doubted.add(failed.partition)
                    continue
                except Exception as error:
                    await self._forget(error)
                else:
                    self._keep(changes)
                    self._ahead = False
                    self._measured(batch, messages)
                    return
            await asyncio.sleep(RETRY_S)

    async def project_dead_letters(self, messages: Sequence[ViewMessage]) -> None:
        """Records of `deadletters`, as `project`."""
        topic = self._topics.dead_letters
        while True:
            async with self._writing:
                if self._ahead:
                    await self.load()
                new = [m for m in messages if m.offset >= self.next_offset(topic, m.partition)]
                if not new:
                    return
                positions = {
                    (topic, m.partition): ViewPosition(m.offset + 1, 0, m.timestamp) for m in new
                }
                try:
                    await self._write(
                        ProjectionChanges(), [dead_letter_row(m) for m in new], positions
                    )
                except Exception as error:
                    await self._forget(error)
                else:
                    return
            await asyncio.sleep(RETRY_S)

    async def _new_of(
        self, messages: Sequence[ViewMessage]
    ) -> tuple[list[AuditEvent], dict[tuple[str, int], ViewPosition]]:
        """What follows what we have, and the positions after it."""
        topic = self._topics.audit
        batch: list[AuditEvent] = []
        positions: dict[tuple[str, int], ViewPosition] = {}
        stopped = set(self.broken)
        for message in messages:
            partition = message.partition
            here = positions.get((topic, partition)) or self.position(partition)
            if message.offset < here.next:
                self.metrics.repeated.inc()
                continue
            if partition in stopped:
                continue
            try:
                one = read(message.value or b"")
                if one.event["id"] != here.event_id + 1:
                    raise ProjectionFailed(
                        f"{topic}/{partition} has event {one.event['id']} at offset "
                        f"{message.offset}, but {here.event_id + 1} must come next. If the topic "
                        "was recreated: taskflow views --rebuild."
                    )
            except ProjectionFailed as failed:
                stopped.add(partition)
                await self._gap(partition, failed)
                continue
            batch.append(one)
            positions[topic, partition] = ViewPosition(
                message.offset + 1, one.event["id"], message.timestamp
            )
        return batch, positions

    async def _gap(self, partition: int, failed: ProjectionFailed) -> None:
        """Records that Faust has dropped on its way come again; those that Kafka lost do not."""
        self._reseeks[partition] = self._reseeks.get(partition, 0) + 1
        if self._reseeks[partition] > RESEEKS_MAX:
            self._stop(partition, failed)
        else:
            _log.warning("partition %d is read again: %s", partition, failed)
            await self._reseek(partition)

    def _stop(self, partition: int, failed: ProjectionFailed) -> None:
        self.broken[partition] = str(failed)
        _log.error("partition %d is not projected any further: %s", partition, failed)

    async def _known(self, batch: Sequence[AuditEvent]) -> dict[str, Viewed]:
        known: dict[str, Viewed] = {}
        missing: set[str] = set()
        for one in batch:
            flow_id = one.event["flow_id"]
            if flow_id in known or flow_id in missing:
                continue
            if (viewed := self._flows.get(flow_id)) is not None:
                known[flow_id] = viewed
            elif one.event["kind"] != "created":
                missing.add(flow_id)
        if missing:
            known |= await self.database.flows(missing)
        return known

    async def _known_steps(
        self, batch: list[AuditEvent], known: dict[str, Viewed]
    ) -> dict[tuple[int, str], ViewedStep]:
        wanted = changed_steps(batch, known)
        return await self.database.steps(wanted) if wanted else {}

    def _change(
        self,
        batch: list[AuditEvent],
        known: dict[str, Viewed],
        steps: dict[tuple[int, str], ViewedStep],
    ) -> ProjectionChanges:
        changes = project(batch, known, steps)
        for (partition, start_ms), minute in changes.minutes.items():
            start_s = start_ms / 1000
            if (before := self.minutes.at(partition, start_s)) is not None:
                minute.add(MinuteCounts.from_json(before))
            self.minutes.add(partition, minute.as_json(), start_s)
        for partition, totals in changes.totals.items():
            if (before := self.totals.at(partition, None)) is not None:
                totals.add(Totals.from_json(before))
            self.totals.add(partition, totals.as_json(), None)
        return changes

    async def _write(
        self,
        changes: ProjectionChanges,
        dead_letters: Sequence[DeadLetterRow],
        positions: dict[tuple[str, int], ViewPosition],
    ) -> None:
        aggregates = self.minutes.take_unwritten() | self.totals.take_unwritten()
        began = time.perf_counter()
        await self.database.write(ProjectionBatch(changes, dead_letters, aggregates, positions))
        self.metrics.write_seconds.observe(time.perf_counter() - began)
        self._positions |= positions
        self.minutes.written()
        self.totals.written()
        for topic, partition in positions:
            if topic == self._topics.audit:
                self._reseeks.pop(partition, None)
        self.failing = None
        self.changed.set()

    def _keep(self, changes: ProjectionChanges) -> None:
        for viewed in changes.pruned.values():
            self._flows.drop(viewed.flow.id)
        for viewed in changes.flows.values():
            self._flows.put(viewed)

    async def _forget(self, error: Exception) -> None:
        """After a batch that failed nothing in memory is believed any more."""
        self.failing = f"{type(error).__name__}: {error}"
        self.metrics.failures.labels(type(error).__name__).inc()
        _log.exception("a batch could not be projected; it is tried again")
        await self.load()

    def _measured(self, batch: list[AuditEvent], messages: Sequence[ViewMessage]) -> None:
        kinds: dict[str, int] = {}
        for one in batch:
            kind = one.event["kind"]
            kinds[kind] = kinds.get(kind, 0) + 1
        for kind, count in kinds.items():
            self.metrics.events.labels(kind).inc(count)
        self.metrics.batch_size.observe(len(batch))
        self.metrics.lag_seconds.observe(
            max(time.time() - min(message.timestamp for message in messages) / 1000, 0)
        )
