"""The Faust application of `taskflow signals`: its agents and its partitions.

Agents on `audit`, `signals` and `signals.log` get chunks of committed records. folds.py folds them,
and partition.py writes the results in transactions. Any error ends the application; the service
starts a new one, which continues from the topics.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import faust
import structlog
from aiokafka.errors import KafkaError
from faust.types import TP
from yarl import URL

from processor.client import FlowClient
from processor.contract.topics import SignalTopics, Topics
from processor.runtime import end_tasks
from processor.settings import Settings
from processor.signals.deliveries import Deliveries
from processor.signals.folds import MatchFold, SignalIntake, WaitIntake
from processor.signals.matcher import Delivery, Matcher
from processor.signals.metrics import SignalMetrics
from processor.signals.partition import Chunk, Fold, SourcePartition
from processor.signals.transport import RestoredConsumer, RestoredTransport
from processor.views.faust.sensor import ViewSensor
from processor.views.faust.tables import ViewTables
from processor.views.faust.transport import ConsumesOnly

FOLDER: Final = "signals"
"""Folder below the state directory, which Faust requires; nothing is stored in it."""
BATCH_CHUNKS: Final = 8
BATCH_WITHIN_S: Final = 0.02
BUFFERED_CHUNKS: Final = 32
FETCH_MAX_BYTES: Final = 4 * 1024 * 1024
TAKE_OVER_MAX_S: Final = 3600.0
"""Faust ends an application whose partitions take longer to restore."""
RAW: Final[dict[str, Any]] = {"key_serializer": "raw", "value_serializer": "raw"}
MEASURED_EVERY_S: Final = 5.0
TICKS_PER_TTL: Final = 20
TICK_MIN_S: Final = 0.2
TICK_MAX_S: Final = 60.0
"""The interval at which the progress on `audit` is written to the log, by which signals expire."""

log = structlog.get_logger()


class SignalsApp(faust.App):
    """Faust's application with its assigned partitions."""

    BootStrategy = ConsumesOnly

    def __init__(
        self,
        settings: Settings,
        counts: Mapping[str, int],
        client: FlowClient,
        metrics: SignalMetrics,
        **options: Any,
    ) -> None:
        """`counts`: the number of partitions by topic."""
        self.settings_ = settings
        self.topics_ = SignalTopics(settings.topic_prefix)
        self.audit_ = Topics(settings.topic_prefix).audit
        self.metrics_ = metrics
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self.assigned = False
        """Whether all assigned partitions are taken over."""
        self._counts = counts
        self._client = client
        self._partitions: dict[TP, SourcePartition] = {}
        self._locks: dict[TP, asyncio.Lock] = {}
        self._deliveries: dict[TP, Deliveries] = {}
        self._restoring = asyncio.Lock()
        self._ticking: asyncio.Task[None] | None = None
        super().__init__(
            f"{settings.group_id}.signals",
            broker=[URL(f"kafka://{one}") for one in settings.bootstrap_servers.split(",")],
            datadir=settings.state_dir / FOLDER / "faust",
            autodiscover=False,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            TableManager=ViewTables,
            Monitor=ViewSensor,
            broker_session_timeout=settings.session_timeout_ms / 1000,
            broker_request_timeout=TAKE_OVER_MAX_S,
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=FETCH_MAX_BYTES,
            stream_buffer_maxsize=BUFFERED_CHUNKS,
            stream_wait_empty=False,
            **options,
        )
        for name, topic in self._sources.items():
            raw = self.topic(topic, key_type=bytes, value_type=bytes, **RAW)
            self.agent(raw, name=name)(self._fold)
        self.timer(MEASURED_EVERY_S)(self._measure)
        metrics.early.set_function(lambda: sum(one.early for one in self._matchers()))
        metrics.open.set_function(lambda: sum(one.open for one in self._matchers()))
        metrics.pending.set_function(
            lambda: sum(deliveries.pending for deliveries in self._deliveries.values())
        )

    @property
    def _sources(self) -> dict[str, str]:
        return {"audit": self.audit_, "signals": self.topics_.signals, "log": self.topics_.log}

    def report(self) -> dict[str, Any]:
        """The next offset of each partition, by source, for `/ready`."""
        return {
            name: {
                str(tp.partition): one.next_offset
                for tp, one in sorted(self._partitions.items())
                if tp.topic == topic
            }
            for name, topic in self._sources.items()
        }

    def _new_transport(self) -> RestoredTransport:
        transport = RestoredTransport(self.conf.broker_consumer, self)
        transport.settings = self.settings_
        transport.position_of = self._position_of
        transport.restore = self._restore
        return transport

    def _position_of(self, topic: str, partition: int) -> int:
        own = self._partitions.get(TP(topic, partition))
        return 0 if own is None else own.next_offset

    async def on_started(self) -> None:
        await super().on_started()
        self._ticking = asyncio.create_task(self._tick_for_ever())

    async def release(self) -> None:
        """Release all partitions; called after the application has stopped."""
        if self._ticking is not None:
            await end_tasks(self._ticking)
        for tp in list(self._partitions):
            await self._give_up(tp)
        self.metrics_.lag.clear()

    def fail(self, error: BaseException) -> None:
        """Note `error` and end the application; the service starts a new one."""
        if self.failure is None:
            self.failure = error
            self.failed.set()

    # Partitions

    async def _restore(self, assigned: set[TP]) -> None:
        """Take over the new partitions of `assigned`, and release those that are not in it.

        Faust calls this after each rebalance, and after each fetch during one. The calls run one at
        a time, or two of them would fence each other.
        """
        async with self._restoring:
            if self.assigned and assigned == self._partitions.keys():
                return
            self.assigned = False
            try:
                for tp in self._partitions.keys() - assigned:
                    await self._give_up(tp)
                async with asyncio.TaskGroup() as group:
                    for tp in assigned - self._partitions.keys():
                        group.create_task(self._take_over(tp))
            except ExceptionGroup as failed:
                self.fail(failed.exceptions[0])
                return
            self.assigned = True
            shared_out = {name: sorted(of) for name, of in self.report().items()}
            log.info("signals ready", partitions=shared_out)

    async def _take_over(self, tp: TP) -> None:
        name = next(name for name, topic in self._sources.items() if topic == tp.topic)
        partition = SourcePartition(self.settings_, name, *tp, self._new_fold(name, tp.partition))
        try:
            await partition.take_over()
        except BaseException:
            await partition.close()
            raise
        self._partitions[tp] = partition
        self._locks[tp] = asyncio.Lock()
        if isinstance(partition.fold, MatchFold):
            self._deliveries[tp] = Deliveries(
                self._client, self.metrics_, lambda one, why: self._refuse(tp, one, why)
            )
            self._deliver(tp)

    async def _give_up(self, tp: TP) -> None:
        partition = self._partitions.pop(tp)
        deliveries = self._deliveries.pop(tp, None)
        if deliveries is not None:
            await deliveries.close()
        async with self._locks[tp]:  # the current transaction ends first
            await partition.close()

    def _new_fold(self, name: str, partition: int) -> Fold:
        log_partitions = self._counts[self.topics_.log]
        match name:
            case "audit":
                return WaitIntake(partition, log_partitions)
            case "signals":
                return SignalIntake(log_partitions, self.metrics_)
            case _:
                return MatchFold(
                    self.topics_,
                    self._counts[self.audit_],
                    self.settings_.signal_ttl_ms,
                    self.metrics_,
                )

    # Records

    async def _fold(self, stream: Any) -> None:
        """Fold chunks of committed records, those of different partitions side by side."""
        async for chunks in stream.take(BATCH_CHUNKS, within=BATCH_WITHIN_S):
            by_partition: dict[TP, list[Chunk]] = {}
            for chunk in chunks:
                first = chunk.records[0]
                by_partition.setdefault(TP(first.topic, first.partition), []).append(chunk)
            await asyncio.gather(*(self._take(tp, some) for tp, some in by_partition.items()))

    async def _take(self, tp: TP, chunks: Sequence[Chunk]) -> None:
        partition = self._partitions.get(tp)
        if partition is None or self.failed.is_set():
            return
        try:
            async with self._locks[tp]:
                if self._partitions.get(tp) is not partition:
                    return
                for chunk in chunks:
                    await partition.take(chunk)
        except Exception as error:
            if self._partitions.get(tp) is partition:
                self.fail(error)
            return
        if self._partitions.get(tp) is partition:
            self._deliver(tp)

    def _deliver(self, tp: TP) -> None:
        """Send commands for new matches, and drop those whose match is gone."""
        deliveries, partition = self._deliveries.get(tp), self._partitions.get(tp)
        if deliveries is None or partition is None:
            return
        assert isinstance(partition.fold, MatchFold)
        deliveries.update(partition.fold.matcher.deliveries())

    def _matchers(self) -> list[Matcher]:
        return [
            one.fold.matcher for one in self._partitions.values() if isinstance(one.fold, MatchFold)
        ]

    async def _refuse(self, tp: TP, delivery: Delivery, why: str) -> None:
        partition = self._partitions.get(tp)
        if partition is None:
            return
        assert isinstance(partition.fold, MatchFold)
        try:
            async with self._locks[tp]:
                if self._partitions.get(tp) is not partition:
                    return
                partition.fold.refuse(delivery, why)
                await partition.commit()
        except Exception as error:
            if self._partitions.get(tp) is partition:
                self.fail(error)
            return
        self._deliver(tp)

    # Time

    async def _measure(self) -> None:
        """Update the metric of what is behind, unless partitions change hands."""
        consumer = self.consumer
        assert isinstance(consumer, RestoredConsumer)
        if not self.assigned:
            return
        try:
            levels = await consumer.levels()
        except KafkaError:
            return  # a partition was revoked meanwhile
        names = {topic: name for name, topic in self._sources.items()}
        self.metrics_.lag.clear()
        for tp, partition in self._partitions.items():
            if (level := levels.get(tp)) and (behind := partition.behind(*level)) is not None:
                self.metrics_.lag.labels(names[tp.topic], str(tp.partition)).set(behind)

    async def _tick_for_ever(self) -> None:
        every_s = self.settings_.signal_ttl_ms / 1000 / TICKS_PER_TTL
        while not self.failed.is_set():
            await asyncio.sleep(min(max(every_s, TICK_MIN_S), TICK_MAX_S))
            for tp, partition in list(self._partitions.items()):
                if isinstance(partition.fold, WaitIntake):
                    await self._tick(tp, partition, partition.fold)

    async def _tick(self, tp: TP, partition: SourcePartition, fold: WaitIntake) -> None:
        """Write to the log how far a partition of `audit` is read.

        If the partition is read to its end, that is the broker's time of our last transaction:
        records that were appended earlier are below the end, which is queried later.
        """
        consumer = self.consumer
        assert isinstance(consumer, RestoredConsumer)
        try:
            async with self._locks[tp]:
                if self._partitions.get(tp) is not partition:
                    return
                before_ms = partition.written_ms
                end = await partition.source_end()
                position, _, fetched = (await consumer.levels()).get(tp, (0, None, 0))
                read = position >= end and partition.next_offset >= fetched
                at_ms = before_ms if read and before_ms is not None else 0
                await partition.commit(log=fold.read_up_to(at_ms))
        except Exception as error:
            if self._partitions.get(tp) is partition:
                self.fail(error)
