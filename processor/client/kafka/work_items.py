"""Read work items in a consumer group, and commit an item only once its start was answered."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Container, Iterable
from typing import Final

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError
from pydantic import ValidationError

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import explain
from processor.adapters.kafka.internals import client_of
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.shutdown import stop_consumer
from processor.client.ports import Place, ReceivedItem
from processor.contract import Topics
from processor.contract.events import TRACEPARENT_HEADER
from processor.contract.steps import TASK_HEADER, WorkItem
from processor.engine.codec import Record
from processor.runtime import backoff_s, end_tasks
from processor.settings import Settings

METADATA_MAX_AGE_MS: Final = 10_000
"""How late an executor learns that `steps` has more partitions; aiokafka's default is 5 minutes."""
COMMIT_EVERY_S: Final = 1.0
COMMIT_TIMEOUT_S: Final = 5.0
STOP_TIMEOUT_S: Final = 5.0
RESTART_PAUSE_MIN_S: Final = 0.2
RESTART_PAUSE_MAX_S: Final = 10.0
_REFUSALS: Final = (GroupAuthorizationFailedError, TopicAuthorizationFailedError)

_log = logging.getLogger(__name__)


def received(record: Record, place: Place, tasks: Container[bytes | None]) -> ReceivedItem | None:
    """Read `record` as a work item of `tasks`; None if it is another executor's, or none at all."""
    headers = dict(record.headers)
    if headers.get(TASK_HEADER) not in tasks:
        return None
    try:
        item = WorkItem.model_validate_json(record.value or b"")
    except ValidationError:
        _log.error(
            "%s/%d offset %d is no work item; skipped",
            record.topic,
            record.partition,
            record.offset,
        )
        return None
    trace = headers.get(TRACEPARENT_HEADER)
    return ReceivedItem(
        item, place, record.timestamp, None if trace is None else trace.decode(errors="replace")
    )


class OffsetTracker:
    """Which offset of one partition may be committed: everything before it is answered."""

    def __init__(self) -> None:
        self._open: dict[int, None] = {}  # in order of offsets, since they come so
        self._read_to: int | None = None

    def received(self, offset: int) -> None:
        self._open[offset] = None
        self._read_to = offset + 1

    def done(self, offset: int) -> None:
        self._open.pop(offset, None)

    @property
    def committable(self) -> int | None:
        """None before the first item."""
        return next(iter(self._open), self._read_to)


class WorkItemReader:
    """Work items of `tasks`, shared out in the consumer group `group`.

    A group that is new begins at the earliest item. The consumer is replaced when it fails. Items
    are hints that no transaction holds, so open transactions of others are not waited for.
    """

    def __init__(self, settings: Settings, group: str, tasks: Iterable[str]) -> None:
        self._settings = settings
        self._group = group
        self._topic = Topics(settings.topic_prefix).steps
        self._tasks = frozenset(task.encode() for task in tasks)
        self._consumer: AIOKafkaConsumer | None = None
        self._generation = 0
        self._trackers: dict[int, OffsetTracker] = {}
        self._committed: dict[int, int] = {}
        self._committing: asyncio.Task[None] | None = None
        self._failures = 0

    async def poll(self, *, max_records: int, wait_s: float) -> list[ReceivedItem]:
        """Up to `max_records` records' items of our tasks, waiting up to `wait_s` for the first.

        Raises AccessDenied if the topic or the group may not be read.
        """
        try:
            consumer = self._consumer or await self._connect()
            fetched = await consumer.getmany(
                timeout_ms=round(wait_s * 1000), max_records=max_records
            )
        except _REFUSALS as error:
            raise explain(error, self._settings) from error
        except KafkaError as error:
            await self._restart(repr(error))
            return []
        self._failures = 0
        return [
            item
            for tp, records in fetched.items()
            for record in records
            if (item := self._received(tp.partition, record)) is not None
        ]

    def done(self, place: Place) -> None:
        """The start of the item at `place` was answered for good."""
        if place.generation == self._generation and place.partition in self._trackers:
            self._trackers[place.partition].done(place.offset)

    async def close(self) -> None:
        """Commit what was answered, and leave the group."""
        consumer, self._consumer = self._consumer, None
        if self._committing is not None:
            await end_tasks(self._committing)
            self._committing = None
        if consumer is not None:
            await self._commit(consumer)
            await stop_consumer(consumer, timeout_s=STOP_TIMEOUT_S)

    def _received(self, partition: int, record: ConsumerRecord) -> ReceivedItem | None:
        tracker = self._trackers.setdefault(partition, OffsetTracker())
        tracker.received(record.offset)
        place = Place(partition, record.offset, self._generation)
        item = received(record, place, self._tasks)
        if item is None:
            tracker.done(record.offset)
        return item

    async def _connect(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **connection_options(self._settings, "executor"),
            group_id=self._group,
            isolation_level="read_uncommitted",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            metadata_max_age_ms=METADATA_MAX_AGE_MS,
            session_timeout_ms=self._settings.session_timeout_ms,
            heartbeat_interval_ms=self._settings.session_timeout_ms // 5,
            # Long steps fill our hands for hours; heartbeats and leases say who is alive.
            max_poll_interval_ms=86_400_000,
            rebalance_timeout_ms=self._settings.session_timeout_ms,
        )
        back_off_metadata(client_of(consumer))
        try:
            await consumer.start()
        except BaseException:
            await stop_consumer(consumer, timeout_s=STOP_TIMEOUT_S)
            raise
        consumer.subscribe([self._topic], listener=_Listener(self._revoked, self._assigned))
        self._consumer = consumer
        self._committing = asyncio.create_task(self._keep_committing(consumer))
        return consumer

    async def _restart(self, why: str) -> None:
        _log.warning("reading %s: %s; starting another consumer", self._topic, why)
        await self.close()
        self._assigned()
        pause_s = backoff_s(self._failures, RESTART_PAUSE_MIN_S, RESTART_PAUSE_MAX_S)
        self._failures += 1
        await asyncio.sleep(pause_s)

    async def _revoked(self) -> None:
        if self._consumer is not None:
            await self._commit(self._consumer)

    def _assigned(self) -> None:
        self._generation += 1
        self._trackers.clear()
        self._committed.clear()

    async def _keep_committing(self, consumer: AIOKafkaConsumer) -> None:
        while True:
            await asyncio.sleep(COMMIT_EVERY_S)
            await self._commit(consumer)

    async def _commit(self, consumer: AIOKafkaConsumer) -> None:
        """Commit what was answered. What is not is read again, and a start of it is refused."""
        offsets = {
            partition: offset
            for partition, tracker in self._trackers.items()
            if (offset := tracker.committable) is not None
            and offset != self._committed.get(partition)
        }
        if not offsets:
            return
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await consumer.commit(
                    {TopicPartition(self._topic, p): offset for p, offset in offsets.items()}
                )
        except (KafkaError, TimeoutError) as error:
            _log.debug("offsets of %s were not committed: %r", self._topic, error)
        else:
            self._committed |= offsets


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    def __init__(
        self, revoked: Callable[[], Awaitable[None]], assigned: Callable[[], None]
    ) -> None:
        self._on_revoked = revoked
        self._on_assigned = assigned

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        await self._on_revoked()

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        self._on_assigned()
