"""The worker's group consumer: its assigned partitions and their new records."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalGenerationError,
    IllegalStateError,
    KafkaError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)

from processor.adapters.kafka.consumer.commit_coalescer import CommitCoalescer
from processor.adapters.kafka.consumer.fetch_hold import BUSY_MS, FetchHold
from processor.adapters.kafka.consumer.read_ahead import ReadAhead
from processor.adapters.kafka.consumer.static_membership import StaticMembership
from processor.adapters.kafka.errors import RequestFailed, authorized
from processor.adapters.kafka.internals import (
    Fetch,
    bound_heartbeats,
    client_of,
    coordination_error,
    hold_fetches,
    last_fetch,
    member_id,
    raise_coordination_error,
)
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.reader.log_reader import LogReaders
from processor.adapters.kafka.shutdown import stop_consumers
from processor.contract.rights import Operation, on_group
from processor.contract.topics import Topics
from processor.engine.ports import Fetched, HiddenRecords
from processor.engine.rows import Position
from processor.errors import OwnershipLost, SourceFailed, TaskflowError
from processor.runtime import end_tasks

log = structlog.get_logger()

COMMIT_EVERY_S: Final = 1.0
"""How often offsets are committed to the group."""
COMMIT_TIMEOUT_S: Final = 2.0
REBALANCE_TIMEOUT_MS: Final = 15_000
"""How long the group waits for a member that lives and still gives up its partitions.

Revoking ends the batches under way (3 s at most), commits offsets (2 s) and may ask for our name
(5 s), and each takes longer where the processor is overloaded. A member that is late is thrown out
and comes back as a new one; the others must revoke for it, are late in turn, and so on: with the
session's 3 s, two workers took all partitions from each other every 4 s for as long as they were
watched. A member that is dead does not make the group wait: its session ends it. Below aiokafka's
request timeout of 40 s: a JoinGroup waits for the others that long.
"""
ENDS_TIMEOUT_S: Final = 5.0


class KafkaGroupConsumer:
    """One consumer in the group, for all partitions of a worker.

    `on_assigned` gets the partitions that are ours, without an await between that and
    aiokafka's own bookkeeping; `on_revoked` is awaited before the group goes on.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        topics: Topics,
        *,
        group_id: str,
        instance_id: str | None,
        session_timeout_ms: int,
        on_assigned: Callable[[frozenset[int]], None],
        on_revoked: Callable[[], Any],
    ) -> None:
        self.generation = 0
        self.failed = asyncio.Event()
        self.refused: TaskflowError | None = None
        self._connection = connection
        self._group_id = group_id
        self._topics = topics
        self._on_assigned = on_assigned
        self._on_revoked = on_revoked
        self._assigned: frozenset[int] = frozenset()
        self._changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._decided: dict[int, Position] = {}
        self._committing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._session_s = session_timeout_ms / 1000
        self._membership: StaticMembership | None = None
        if instance_id is not None:
            self._membership = StaticMembership(
                connection,
                group_id=group_id,
                instance_id=instance_id,
                session_timeout_ms=session_timeout_ms,
            )
        self._consumer = AIOKafkaConsumer(
            **connection,
            group_id=group_id,
            group_instance_id=instance_id,
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=max(100, session_timeout_ms // 5),
            # Takeovers restore inside the group, so polling says nothing of life.
            max_poll_interval_ms=86_400_000,
            rebalance_timeout_ms=max(REBALANCE_TIMEOUT_MS, session_timeout_ms),
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=BUSY_MS,
            # Range gives commands and control of one number to one member.
            partition_assignment_strategy=(RangePartitionAssignor,),
        )
        back_off_metadata(client_of(self._consumer))
        self._hold = FetchHold(partial(hold_fetches, self._consumer))
        self._ahead: dict[int, ReadAhead] = {}
        """Of each partition that is attached."""
        self._ends = LogReaders(connection, topics=[topics.commands])
        self._asking_ends = asyncio.Lock()
        self._proofs = CommitCoalescer(self._consumer.commit)

    async def start(self) -> None:
        await self._consumer.start()
        bound_heartbeats(self._consumer, self._session_s)
        self._consumer.subscribe(
            [self._topics.commands, self._topics.control], listener=_Listener(self)
        )
        self._committing = asyncio.create_task(self._keep_committing(), name="group offsets")
        self._watching = asyncio.create_task(self._watch(), name="group membership")

    async def stop(self, *, timeout_s: float) -> None:
        """Leave the group."""
        self._stopping.set()
        try:
            if self._watching is not None:
                await end_tasks(self._watching)
            if self._committing is not None:
                await end_tasks(self._committing)
                await self._commit_decided(timeout_s=timeout_s / 2)
            await asyncio.gather(*(ahead.stop() for ahead in self._ahead.values()))
        finally:  # also of who is cancelled again while it stops
            await stop_consumers(self._consumer, *self._ends.given_up(), timeout_s=timeout_s)

    def refuse(self, error: TaskflowError) -> None:
        """Be of no more use: no other consumer of ours may take this one's place, for `error`."""
        self.refused = error
        self.failed.set()

    def _authorized(self) -> AbstractContextManager[None]:
        return authorized(self._connection, on_group(Operation.READ, self._group_id))

    def _pair(self, partition: int) -> tuple[TopicPartition, TopicPartition]:
        return (
            TopicPartition(self._topics.commands, partition),
            TopicPartition(self._topics.control, partition),
        )

    # What the group says

    async def revoked(self) -> None:
        self.generation += 1
        self._assigned = frozenset()
        self._changed.clear()
        await self._on_revoked()
        await self._commit_decided()
        await self._ask_for_our_name()
        if self.refused is not None:
            self.failed.set()
            # To return is to join again, and to throw the other one out.
            await self._stopping.wait()
            raise asyncio.CancelledError("the group's part of the consumer ends here")

    async def _watch(self) -> None:
        """Notice, as soon as a heartbeat would, that the group does not let us in: who was given
        nothing fetches nothing, and would not notice it."""
        while not self.failed.is_set():
            await asyncio.sleep(self._session_s / 5)
            with suppress(SourceFailed):
                await self._check()

    async def _check(self) -> None:
        """Raises SourceFailed if coordination has given up.

        Seen without aiokafka's `check_errors`, which lets coordination go on: it would join once
        more, on a consumer that we are about to stop, and remove the member that has our name.
        """
        error = coordination_error(self._consumer)
        if error is not None:
            await self._heed(error)

    async def _ask_for_our_name(self) -> None:
        if self._membership is not None and self.refused is None:
            self.refused = await self._membership.lost(member_id(self._consumer))

    def assigned_now(self, tps: Iterable[TopicPartition]) -> None:
        """No await in here: whatever the group's offsets would fetch must not reach anyone."""
        tps = set(tps)
        for ahead in self._ahead.values():
            ahead.drop()
        self._ahead.clear()
        self._consumer.pause(*tps)
        for tp in tps:
            self._consumer.seek(tp, 0)
        self.generation += 1
        if self._membership is not None:
            self._membership.joined(member_id(self._consumer))
        partitions = {tp.partition for tp in tps}
        self._assigned = frozenset(n for n in partitions if tps.issuperset(self._pair(n)))
        if self._assigned != partitions:
            log.error("of some partitions only one topic is there", partitions=sorted(partitions))
        self._changed.set()
        self._on_assigned(self._assigned)

    async def assigned(self, partition: int) -> int:
        while partition not in self._assigned:
            self._changed.clear()
            await self._changed.wait()
        return self.generation

    async def confirm(self, partition: int, position: Position) -> None:
        """Commit an offset, which the group takes only from a member of its generation."""
        commands, control = self._pair(partition)
        offsets = {commands: position.commands, control: position.control}
        try:
            with self._authorized():
                await self._proofs.prove(offsets)
        except (
            CommitFailedError,
            IllegalGenerationError,
            IllegalStateError,
            RebalanceInProgressError,
            UnknownMemberIdError,
        ) as error:
            raise OwnershipLost(
                f"partition {partition} may belong to another by now: {type(error).__name__}"
            ) from error
        except TimeoutError as error:
            raise OwnershipLost(
                f"the group did not confirm in time that partition {partition} is ours"
            ) from error
        except KafkaError as error:
            raise RequestFailed(
                f"asking the group whether partition {partition} is ours failed: {error!r}"
            ) from error

    def decided(self, partition: int, position: Position) -> None:
        self._decided[partition] = position

    async def _keep_committing(self) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY_S)
            await self._commit_decided()

    async def _commit_decided(self, *, timeout_s: float = COMMIT_TIMEOUT_S) -> None:
        """Commit offsets for lag tools. They are in no transaction: the next owner starts
        from the cursor, and a commit that fails is made good by the next one."""
        decided, self._decided = self._decided, {}
        offsets = {
            tp: offset
            for partition, position in decided.items()
            for tp, offset in zip(self._pair(partition), position, strict=False)
        }
        if not offsets:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._consumer.commit(offsets)
        except (KafkaError, ConsumerStoppedError, TimeoutError) as error:
            log.debug("the offsets were not committed to the group", error=repr(error))

    # What is new

    def attach(self, partition: int, position: Position) -> None:
        commands, control = self._pair(partition)
        if (ahead := self._ahead.pop(partition, None)) is not None:
            ahead.drop()
        try:
            self._consumer.seek(commands, position.commands)
            self._consumer.seek(control, position.control)
            self._consumer.resume(commands, control)
        except IllegalStateError as error:
            raise OwnershipLost(f"partition {partition} is not assigned any more") from error
        self._ahead[partition] = ReadAhead(self._consumer, commands, control)
        self._hold.busy()

    async def fetch(self, partition: int, *, max_records: int, timeout_s: float) -> Fetched:
        """Raises SourceFailed if the consumer itself is broken, else RequestFailed."""
        commands, control = self._pair(partition)
        await self._check()
        ahead = self._ahead.get(partition)
        if ahead is None:
            return Fetched((), ())  # the group has assigned again: to be attached again
        try:
            with self._authorized():
                fetched = await ahead.take(max_records=max_records, timeout_s=timeout_s)
        except ConsumerStoppedError as error:
            self.failed.set()
            raise SourceFailed("the consumer is stopped") from error
        except KafkaError as error:
            await self._heed(error)
            raise RequestFailed(f"fetching from partition {partition} failed: {error!r}") from error
        if fetched:
            self._hold.busy()
        else:
            self._hold.idle()
        return Fetched(fetched.get(commands, ()), fetched.get(control, ()))

    async def commands_end(self, partition: int) -> int:
        """Asked for by a consumer of its own: the group's sees what is committed, and what an open
        transaction hides was appended too. Raises what Kafka raises, or TimeoutError."""
        tp = TopicPartition(self._topics.commands, partition)
        async with asyncio.timeout(ENDS_TIMEOUT_S):
            async with self._asking_ends:
                consumer = await self._ends.consumer("read_uncommitted")
            return int((await consumer.end_offsets([tp]))[tp])

    async def _heed(self, error: KafkaError) -> None:
        """aiokafka's coordination ends for good with an error that has no class of its own; one
        of them is that the group knows another member of our name."""
        if type(error) is KafkaError:
            await self._ask_for_our_name()
            self.failed.set()
            raise SourceFailed(f"the consumer gave up: {error}") from error

    def ahead(self, partition: int) -> Position | None:
        commands, control = (self._fetch(tp).position for tp in self._pair(partition))
        if commands is None or control is None:
            return None
        return Position(commands, control, 0)

    def lags(self, partition: int) -> tuple[int | None, int | None]:
        commands, control = (
            None if position is None or end is None else max(0, end - position)
            for position, end, _ in (self._fetch(tp) for tp in self._pair(partition))
        )
        return commands, control

    def hidden(self, partition: int) -> list[HiddenRecords]:
        fetches = ((tp, self._fetch(tp)) for tp in self._pair(partition))
        return [
            HiddenRecords(tp.topic, partition, fetch.stable_end, fetch.end)
            for tp, fetch in fetches
            if fetch.stable_end is not None and fetch.end is not None
            if fetch.stable_end < fetch.end
        ]

    async def undone(self, partitions: Iterable[int]) -> set[int]:
        await self._check()
        try:
            # A member without partitions fetches nothing, and would not notice it otherwise.
            raise_coordination_error(self._consumer)
        except KafkaError as error:
            await self._heed(error)
            raise
        tps = [tp for partition in partitions for tp in self._pair(partition)]
        if not tps:
            return set()
        ends = await self._consumer.end_offsets(tps)
        return {tp.partition for tp in tps if (self._fetch(tp).position or 0) < ends[tp]}

    def _fetch(self, tp: TopicPartition) -> Fetch:
        """As the last fetch had it, its position before what is held."""
        fetch = last_fetch(self._consumer, tp)
        ahead = self._ahead.get(tp.partition)
        held = None if ahead is None else ahead.position(tp)
        return fetch if held is None else fetch._replace(position=held)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(self, source: KafkaGroupConsumer) -> None:
        self._source = source

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._source.revoked()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._source.assigned_now(assigned)
