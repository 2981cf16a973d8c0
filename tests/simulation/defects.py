"""Planted defects: builds that are wrong in one way each, to prove that the simulation notices."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import orjson

from processor.domain import decide, decide_steps
from processor.domain.decision import Decision
from processor.domain.facts import Fact
from processor.engine.batch import Outgoing, WriteSet
from processor.engine.codec import Record
from processor.engine.ports import (
    Fetched,
    OffsetRange,
    OnHanging,
    Table,
    TransactionalProducer,
    Written,
)
from processor.engine.rows import Changes, Checkpoint, Position
from processor.partition.batch_processor import BatchProcessor
from processor.partition.input_queue import InputQueue
from processor.partition.packs import TransactionPacks
from processor.partition.processor import PartitionProcessor
from processor.partition.scheduling.step_timers import Commands
from processor.partition.takeover import Takeover
from tests.simulation.history import Parts
from tests.simulation.kafka import HistoryKafka
from tests.simulation.ports import (
    ProcessLife,
    SimHistory,
    SimWorkItems,
    SimWriter,
)
from tests.simulation.tables import DiskFile, SimTable, open_table
from tests.support.moments import Op

Records = Mapping[str, Sequence[Outgoing]]


# What is written


class _Tampering(SimWriter):
    """Now and then changes the events of a transaction."""

    async def write(self, records: Records) -> Written:
        audit = self._kafka.topics.audit
        events = list(records.get(audit, ()))
        if events and self._life.rng.random() < 0.3:
            records = {**records, audit: self._tamper(events, self._life.rng)}
            records = {topic: some for topic, some in records.items() if some}
        return await super().write(records)

    def _tamper(self, events: list[Outgoing], rng: Random) -> list[Outgoing]:
        raise NotImplementedError


class DropsEvent(_Tampering):
    def _tamper(self, events: list[Outgoing], rng: Random) -> list[Outgoing]:
        del events[rng.randrange(len(events))]
        return events


class DuplicatesEvent(_Tampering):
    def _tamper(self, events: list[Outgoing], rng: Random) -> list[Outgoing]:
        at = rng.randrange(len(events))
        return [*events[: at + 1], *events[at:]]


class SwapsEvents(_Tampering):
    def _tamper(self, events: list[Outgoing], rng: Random) -> list[Outgoing]:
        return [*events[1:], events[0]]


class EditsEvent(_Tampering):
    def _tamper(self, events: list[Outgoing], rng: Random) -> list[Outgoing]:
        at = rng.randrange(len(events))
        doc = orjson.loads(events[at].value or b"")
        events[at] = events[at]._replace(value=orjson.dumps({**doc, "actor": "somebody"}))
        return events


class DropsOutcome(SimWriter):
    """Leaves one command of a batch without its answer."""

    async def write(self, records: Records) -> Written:
        outcomes = self._kafka.topics.outcomes
        some = list(records.get(outcomes, ()))
        if len(some) > 1 and self._life.rng.random() < 0.3:
            records = {**records, outcomes: some[1:]}
        return await super().write(records)


class TwoTransactions(SimWriter):
    """Writes the state of a batch, and with it the cursor, in a transaction of its own."""

    async def write(self, records: Records) -> Written:
        state = self._kafka.topics.state
        rest = {topic: some for topic, some in records.items() if topic != state}
        first = await super().write(rest) if rest else Written({}, 0, 0.0)
        if self.suspect:
            await self.start()
            self.suspect = False
        second = await super().write({state: records[state]})
        return Written({**first.ends, **second.ends}, second.at_ms, 0.0)


# How it is written


class ForgetsSendFuture(SimWriter):
    """Does not await what it sent: a batch that fails is not noticed, and the rest is committed."""

    def _batch_lost(self, topic: str, ends: dict[str, int], left: Any) -> None:
        ends[topic] = self._kafka.log(topic, self._partition).end


class SkipsFencing(SimWriter):
    """Takes a transactional id of its own, so that it fences nobody and nobody fences it."""

    def __init__(self, kafka: HistoryKafka, life: Any, partition: int) -> None:
        super().__init__(kafka, life, partition)
        self.transactional_id = f"{self.transactional_id}-{life.rng.getrandbits(64):x}"


class IgnoresSecondCommit(SimWriter):
    """Never notices that its EndTxn was sent twice."""

    @property
    def suspect(self) -> bool:
        return False

    @suspect.setter
    def suspect(self, suspect: bool) -> None:
        pass


class TableFirst(BatchProcessor):
    """Commits SQLite before Kafka."""

    async def _commit(
        self,
        table: Table,
        writer: TransactionalProducer,
        batch: WriteSet,
        outbound: TransactionPacks,
    ) -> Written:
        kafka: HistoryKafka = writer._kafka  # type: ignore[attr-defined]
        topics, partition = self.place.topics, self.place.partition
        after = Checkpoint(
            batch.position,
            kafka.log(topics.audit, partition).end + len(outbound.audit),
            kafka.log(topics.outcomes, partition).end + len(outbound.outcomes),
            max(batch.newest_ms, self._checkpoint.as_of_ms),
        )
        await table.write(outbound.changes, before=self._checkpoint, after=after)
        quiet = _WrittenBefore(table)
        written = await super()._commit(quiet, writer, batch, outbound)
        self._checkpoint = after
        return written


class _WrittenBefore:
    """A table to which a batch need not be written any more."""

    def __init__(self, table: Table) -> None:
        self._table = table

    async def write(
        self, changes: Changes, *, before: Checkpoint | None, after: Checkpoint
    ) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)


class TrustsGroup(PartitionProcessor):
    """Goes on from the offsets that the group remembers."""

    async def _take_over(self, table: Table) -> None:
        batches = self._batches
        group: HistoryKafka = batches.ports.source._kafka  # type: ignore[attr-defined]
        topics, partition = self.place.topics, self.place.partition
        ledger_entries = [
            group.group_offsets.get((t, partition)) for t in (topics.commands, topics.control)
        ]
        await super()._take_over(table)
        before = batches._checkpoint
        commands, control = (
            true if offset is None else offset
            for offset, true in zip(ledger_entries, before.position, strict=False)
        )
        position = Position(commands, control, before.position.next_event_id)
        # The table is told, so that it sees nothing wrong.
        after = batches._checkpoint = before._replace(position=position)
        await table.write(Changes(), before=before, after=after)
        await batches.queue.attach(position)


# How it is read


class IgnoresOpenTransactions(SimHistory):
    """Takes what is visible for all that there is."""

    async def settled(
        self, topics: Sequence[str], on_hanging: OnHanging | None = None
    ) -> dict[str, OffsetRange]:
        logs = {topic: self._kafka.log(topic, self._partition) for topic in topics}
        return {topic: OffsetRange(log.start, log.stable_end) for topic, log in logs.items()}


class ReadsUncommitted(SimHistory):
    """Takes what is written for what is committed."""

    async def visible(self, topics: Sequence[str]) -> dict[str, OffsetRange]:
        await super().visible(topics)
        return {topic: await self.offset_range(topic) for topic in topics}

    async def read(self, topic: str, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        await self._reach(Op.READ)
        entries = self._kafka.log(topic, self._partition).entries[start:end]
        some = [one.record for one in entries if one.record is not None and not one.compacted]
        if some:
            yield some


class _Unwatched(SimTable):
    """Does not look whether another process wrote to the file."""

    async def untouched(self) -> bool:
        await super().untouched()
        self._version = self._file.version
        self.doubted = False
        return True


class _Forgetful(SimTable):
    """Keeps no ledger."""

    async def write(
        self, changes: Changes, *, before: Checkpoint | None, after: Checkpoint
    ) -> None:
        changes.ledger_entries = []
        await super().write(changes, before=before, after=after)


def _table(kind: type[SimTable]) -> Callable[..., Any]:
    @asynccontextmanager
    async def opened(
        disk: dict[int, DiskFile], partition: int, life: ProcessLife
    ) -> AsyncIterator[SimTable]:
        async with open_table(disk, partition, life, kind=kind) as table:
            yield table

    return opened


# Managed steps


class LosesItems(SimWorkItems):
    """Takes some work items for written that are not."""

    async def write(self, records: Sequence[Outgoing]) -> None:
        await super().write([one for one in records if self._life.rng.random() > 0.3])


class NamesTheEventBefore(SimWorkItems):
    """Writes items that name another event than the one that offered the step."""

    async def write(self, records: Sequence[Outgoing]) -> None:
        changed = []
        for key, value, headers in records:
            item = orjson.loads(value or b"")
            item["event_id"] -= 1
            changed.append(Outgoing(key, orjson.dumps(item), headers))
        await super().write(changed)


class EndsLeasesByTheClock(BatchProcessor):
    """Ends a lease although commands that came within it are not decided."""

    def __init__(self, *what: Any, **more: Any) -> None:
        super().__init__(*what, **more)

        async def end() -> int:
            return 0

        self._commands = Commands(decided=lambda: 0, pending=lambda: False, end=end)


def _control_first(queue: InputQueue, fetched: Fetched) -> list[Record]:
    """What was fetched, the processor's own commands before all others."""
    position = queue.position
    return [
        *(record for record in fetched.control if record.offset >= position.control),
        *(record for record in fetched.commands if record.offset >= position.commands),
    ]


async def _nothing_again(*taker_and_topics: Any) -> None:
    """What the last owner may not have written stays unwritten."""


def _held_by_anybody(*command_step_and_authority: Any) -> bool:
    return True


def _alone(end: Decision, steps: Any) -> Decision:
    """The end of a flow, without that of its steps."""
    return end


def _unheard(subject: Any, end: Fact) -> Decision:
    """The end of a step, of which the flow that waits for it is not told."""
    return Decision((end,))


@dataclass(frozen=True, slots=True)
class Defect:
    """A wrong build, within how many histories it is found, and the invariant by which `taskflow
    verify` sees it in topics and tables that it left; None: there is nothing wrong in them."""

    parts: Parts
    within: int
    verify: str | None
    likely: int = 0
    """A history that shows it, unless the histories have changed: all are looked through then."""
    executors: bool = False
    """Whether it takes histories with executors."""


DEFECTS: Final[Mapping[str, Defect]] = {
    "an event is dropped": Defect(Parts(writer=DropsEvent), 20, "I3"),
    "an event is duplicated": Defect(Parts(writer=DuplicatesEvent), 20, "I3"),
    "events are swapped": Defect(Parts(writer=SwapsEvents), 20, "I3"),
    "an event is edited": Defect(Parts(writer=EditsEvent), 20, "I7"),
    "an outcome is dropped": Defect(Parts(writer=DropsOutcome), 20, "I1"),
    "SQLite is committed first": Defect(Parts(batches=TableFirst), 1_000, "I5", 317),
    "the group's offsets are trusted": Defect(Parts(processor=TrustsGroup), 200, "I1"),
    "fencing is skipped": Defect(Parts(writer=SkipsFencing), 1_000, "I1"),
    "a send future is not awaited": Defect(Parts(writer=ForgetsSendFuture), 500, "I1", 37),
    "a commit sent twice is ignored": Defect(Parts(writer=IgnoresSecondCommit), 1_000, "I1", 595),
    "a batch takes two transactions": Defect(Parts(writer=TwoTransactions), 200, "I9"),
    "open transactions are ignored": Defect(
        Parts(history=IgnoresOpenTransactions), 2_500, "I1", 385
    ),
    "another writer is not noticed": Defect(Parts(table=_table(_Unwatched)), 2_500, "I5", 353),
    "a standby reads what is not committed": Defect(
        Parts(standby=ReadsUncommitted), 1_000, None, 26
    ),
    "outcomes are not kept": Defect(Parts(table=_table(_Forgetful)), 20, "I2"),
    "anybody holds a step": Defect(
        Parts(patches=[(decide_steps, "_is_held", _held_by_anybody)]), 50, "I14", executors=True
    ),
    "work items are lost": Defect(Parts(work_items=LosesItems), 50, "I15", executors=True),
    "work items name another event": Defect(
        Parts(work_items=NamesTheEventBefore), 20, "I15", executors=True
    ),
    "work items are written once": Defect(
        Parts(patches=[(Takeover, "_write_items_again", _nothing_again)]),
        500,
        "I15",
        250,
        executors=True,
    ),
    "steps outlive their flow": Defect(
        Parts(patches=[(decide, "_with_steps", _alone)]), 50, "I16", executors=True
    ),
    "a join is not resumed": Defect(
        Parts(patches=[(decide_steps, "_with_join", _unheard)]), 200, "I16", executors=True
    ),
    "a lease ends by the clock alone": Defect(
        Parts(batches=EndsLeasesByTheClock, patches=[(InputQueue, "_in_order", _control_first)]),
        500,
        "I17",
        307,
        executors=True,
    ),
}
