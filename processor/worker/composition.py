"""The composition root: put a worker's parts together."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import structlog

from processor.adapters.kafka.access.authorization import ensure_startable
from processor.adapters.kafka.access.rights_watch import RightsWatch
from processor.adapters.kafka.admin.topic_admin import (
    layout_changed,
)
from processor.adapters.kafka.admin.topics_watch import TopicsWatch
from processor.adapters.kafka.client_config import client_id, compression_type, connection_options
from processor.adapters.kafka.consumer.group_consumer import KafkaGroupConsumer
from processor.adapters.kafka.producer.cloudevents import cloudevent_headers
from processor.adapters.kafka.producer.forwarder import PlainForwarder
from processor.adapters.kafka.producer.transactional_producer import (
    KafkaTransactionalProducer,
    producers_stopped,
)
from processor.adapters.kafka.producer.work_item_producer import KafkaWorkItemProducer
from processor.adapters.kafka.reader.log_reader import KafkaLogReader, LogReaders
from processor.adapters.kafka.reader.record_decoder import read_any_record
from processor.adapters.sqlite import (
    FlowTable,
    open_table,
    state_dir_lock,
    table_lock,
    table_path,
)
from processor.contract.rights import Role
from processor.contract.topics import STEPS, Topics
from processor.domain.decision import Limits
from processor.engine.batch import PartitionConfig
from processor.engine.ports import OnWait
from processor.partition.batch_processor import BatchProcessor
from processor.partition.ports import PartitionPorts
from processor.partition.processor import PartitionProcessor
from processor.partition.standby import StandbyReplica
from processor.runtime import end_tasks, tune_interpreter, unless_stopped
from processor.settings import Address, Settings
from processor.telemetry.health_server import serve
from processor.telemetry.metrics import Metrics
from processor.telemetry.tracing import WorkerTraces, worker_traces
from processor.worker.worker import Member, Worker

if TYPE_CHECKING:
    from processor.testing.failpoints import FailpointWrappers

log = structlog.get_logger()

PRODUCERS_STOP_TIMEOUT_S = 0.5


async def run_worker(
    settings: Settings,
    *,
    stop: asyncio.Event,
    ready: asyncio.Event | None = None,
    lock: bool = True,
    listening: Callable[[Address | None], None] = lambda _: None,
) -> None:
    """Run one worker until `stop` is set; `ready` is set once it decides for the first time.

    Raises StateDirInUse, StateDirUnusable, BrokerUnreachable, AccessDenied, TopicsWrong or
    AddressInUse if it cannot start, InstanceIdTaken if another worker has its name, TopicsWrong
    once the topics have another number of partitions; it goes on through every other error.
    `stop` is set when it ends by itself, too. `lock`: whether the state directory is held, which
    a process among several leaves to their parent; `listening` is called with the address of HTTP.
    """
    with ExitStack() as held:
        if lock:
            held.enter_context(state_dir_lock(settings.state_dir))
        mismatches = await unless_stopped(ensure_startable(settings, Role.WORKER), stop)
        if mismatches is None:
            return
        for mismatch in mismatches:
            log.warning("a topic is not what it should be", mismatch=str(mismatch))
        tune_interpreter()
        read_any_record()
        kit = _fault_kit(settings)
        metrics = Metrics()
        instance = client_id(settings, "worker")
        traces = held.enter_context(worker_traces(group_id=settings.group_id, instance=instance))
        forwarder = PlainForwarder(
            connection_options(settings, "forwarder"), timeout_s=settings.commit_timeout_ms / 1000
        )
        work_items = KafkaWorkItemProducer(
            connection_options(settings, "work-items"),
            Topics(settings.topic_prefix).steps,
            compression=compression_type(settings),
            timeout_s=settings.commit_timeout_ms / 1000,
        )
        readers = _standby_readers(settings)
        turn = asyncio.Lock()

        def new_standby(partition: int) -> StandbyReplica:
            return _standby(settings, partition, readers, turn, metrics)

        worker = Worker(
            lambda assigned, revoked: _member(settings, kit, assigned, revoked),
            lambda partition, member: _processor(
                settings, kit, partition, member, forwarder, work_items, metrics, traces
            ),
            metrics=metrics,
            watchdog_timeout_s=settings.watchdog_timeout_ms / 1000,
            new_standby=new_standby if settings.standby else None,
            partitions=settings.partitions,
        )

        rights = RightsWatch(settings, Role.WORKER, worker.renew)

        topics = TopicsWatch(settings, worker.renew)

        async def report() -> dict[str, Any]:
            report = worker.report()
            report["ready"] = report["ready"] and rights.denied is None and topics.missing is None
            return {**report, "denied": rights.denied, "missing": topics.missing}

        async def scraped() -> bytes:
            return metrics.text()

        async with serve(
            settings.http, report=report, metrics=scraped, hosts=settings.http_hosts
        ) as address:
            listening(address)
            log.info(
                "worker started",
                brokers=settings.bootstrap_servers,
                prefix=settings.topic_prefix,
                http=str(address) if address else "off",
            )
            announcing = asyncio.create_task(_announce(worker, ready))
            watching = asyncio.create_task(_watch(topics, stop))
            asking = asyncio.create_task(rights.run())
            try:
                await worker.run(stop)
                if watching.done():
                    watching.result()
            finally:
                await end_tasks(announcing, watching, asking)
                await readers.close()
                await forwarder.stop()
                await work_items.stop()
                await producers_stopped(PRODUCERS_STOP_TIMEOUT_S)
    log.info("worker stopped")


async def _announce(worker: Worker, ready: asyncio.Event | None) -> None:
    await worker.when_ready()
    log.info("worker ready", partitions=sorted(worker.report()["partitions"], key=int))
    if ready is not None:
        ready.set()


async def _watch(topics: TopicsWatch, stop: asyncio.Event) -> None:
    """Set `stop` and raise TopicsWrong once the topics have another number of partitions."""
    try:
        await topics.run()
    finally:
        stop.set()


def _fault_kit(settings: Settings) -> "FailpointWrappers | None":
    """What breaks a worker on purpose; None, and not even imported, unless a test asks for it."""
    if settings.faults is None:
        return None
    from processor.testing.failpoints import FailpointWrappers

    return FailpointWrappers(settings.faults)


def _member(
    settings: Settings,
    kit: "FailpointWrappers | None",
    assigned: Callable[[frozenset[int]], None],
    revoked: Callable[[], Any],
) -> Member:
    topics = Topics(settings.topic_prefix)

    def on_assigned(partitions: frozenset[int]) -> None:
        if (highest := max(partitions, default=0)) < settings.partitions:
            assigned(partitions)
            return
        member.refuse(layout_changed(topics.commands, highest + 1, settings))

    member = KafkaGroupConsumer(
        connection_options(settings, "worker"),
        topics,
        group_id=settings.group_id,
        instance_id=settings.instance_id,
        session_timeout_ms=settings.session_timeout_ms,
        on_assigned=on_assigned,
        on_revoked=revoked,
    )
    return member if kit is None else kit.member(member)


def _place(settings: Settings, partition: int) -> PartitionConfig:
    return PartitionConfig(
        partition,
        settings.partitions,
        Topics(settings.topic_prefix),
        settings.dedupe_window_ms,
        Limits(settings.timer_max_horizon_ms, settings.flow_steps_max),
        settings.retain_terminal_ms,
    )


def _opens(
    settings: Settings, partition: int
) -> Callable[[], AbstractAsyncContextManager[FlowTable]]:
    path = table_path(settings.state_dir, settings.topic_prefix, partition)

    @asynccontextmanager
    async def opened() -> AsyncIterator[FlowTable]:
        async with (
            table_lock(path),
            open_table(
                path,
                partition=partition,
                prefix=settings.topic_prefix,
                partitions=settings.partitions,
            ) as table,
        ):
            yield table

    return opened


def _standby_readers(settings: Settings) -> LogReaders:
    """Of all standby replicas together; nothing is opened before one of them asks."""
    topics = [name for name, spec in Topics(settings.topic_prefix) if spec is not STEPS]
    return LogReaders(connection_options(settings, "standby"), topics=topics)


def _standby(
    settings: Settings, partition: int, readers: LogReaders, turn: asyncio.Lock, metrics: Metrics
) -> StandbyReplica:
    return StandbyReplica(
        _place(settings, partition),
        open_table=_opens(settings, partition),
        history=KafkaLogReader(
            {},
            partition,
            stall_timeout_s=settings.watchdog_timeout_ms / 1000,
            readers=readers,
        ),
        turn=turn,
        metrics=metrics,
    )


def _processor(
    settings: Settings,
    kit: "FailpointWrappers | None",
    partition: int,
    member: Member,
    forwarder: PlainForwarder,
    work_items: KafkaWorkItemProducer,
    metrics: Metrics,
    traces: WorkerTraces | None,
) -> PartitionProcessor:
    topics = Topics(settings.topic_prefix)
    connection = connection_options(settings, f"owner-{partition}")
    opened = _opens(settings, partition)
    headers_of = cloudevent_headers(topics, settings.cloudevents_source)

    def new_writer() -> KafkaTransactionalProducer:
        return KafkaTransactionalProducer(
            connection,
            topics,
            partition,
            compression=compression_type(settings),
            commit_timeout_s=settings.commit_timeout_ms / 1000,
            headers_of=headers_of,
        )

    def new_history(on_wait: OnWait) -> KafkaLogReader:
        return KafkaLogReader(
            connection,
            partition,
            topics=[name for name, _ in topics],
            stall_timeout_s=settings.watchdog_timeout_ms / 1000,
            on_wait=on_wait,
        )

    ports = PartitionPorts(
        source=member if kit is None else kit.source(member),
        forwarder=forwarder,
        work_items=work_items if kit is None else kit.work_items(work_items),
        open_table=opened if kit is None else kit.table(opened),
        new_writer=new_writer if kit is None else kit.writer(new_writer),
        new_history=new_history if kit is None else kit.history(new_history),
    )
    return PartitionProcessor(
        BatchProcessor(
            _place(settings, partition),
            ports,
            metrics=metrics,
            traces=traces,
            batch_max_records=settings.batch_max_records,
            cache_bytes=settings.flow_cache_bytes,
        )
    )
