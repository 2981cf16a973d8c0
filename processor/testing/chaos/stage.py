"""ChaosStage: the brokers, proxy, workers and executors of a chaos run."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from aiokafka.errors import KafkaError

from processor.adapters.kafka.admin.topic_admin import create_topics, open_admin
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.embedded.cluster import REPLICATION_FACTOR, EmbeddedCluster, embedded_cluster
from processor.errors import TaskflowError
from processor.settings import PREFIX, Settings, load_settings
from processor.testing.chaos.plan import ChaosPlan
from processor.testing.chaos.proxy import Proxy, proxied
from processor.testing.chaos.replicas import Replicas
from processor.testing.chaos.step_audit import Stop
from processor.testing.chaos.worker_process import READY, ExecutorProcess, WorkerProcess

START_TIMEOUT_S: Final = 90.0

Notify = Callable[[str], None]


class ChaosStage:
    """The running parts of a chaos run: what faults are done to."""

    def __init__(
        self,
        settings: Settings,
        workers: list[WorkerProcess],
        executors: list[ExecutorProcess],
        kafka: EmbeddedBroker | EmbeddedCluster | None,
        proxy: Proxy | None,
    ) -> None:
        self.settings = settings
        self.workers = workers
        self.executors = executors
        self.brokers: Sequence[EmbeddedBroker] = ()
        """Those that are ours."""
        self.controller: EmbeddedBroker | None = None
        self.replicas: Replicas | None = None
        """Of the partitions, where several brokers are ours; else there is no controller either."""
        if isinstance(kafka, EmbeddedCluster):
            self.brokers, self.controller = kafka.brokers, kafka.controller
            self.replicas = Replicas(kafka.brokers)
        elif kafka is not None:
            self.brokers = [kafka]
        self.proxy = proxy
        """Between the workers and the brokers, if they are ours."""
        self.session_s = settings.session_timeout_ms / 1000
        """After this time without a sign of life a worker's partitions go to others."""
        self.kills: Counter[str] = Counter()
        self.stops: list[Stop] = []
        self.flipped: set[Path] = set()
        """The tables in which a bit was flipped."""

    def killed(self, what: str) -> None:
        """Count a kill -9 of `what`: worker, executor, broker or controller."""
        self.kills[what] += 1

    def stopped(self, holder: str, seconds: float) -> None:
        """Note that the executor `holder` was stopped for so long, until now."""
        now_ms = time.time_ns() // 1_000_000
        if self.brokers:  # the clock of a given cluster may differ from ours
            self.stops.append(Stop(holder, now_ms - int(seconds * 1000), now_ms))


@asynccontextmanager
async def opened_stage(
    plan: ChaosPlan, prefix: str, home: Path, environ: Mapping[str, str], notify: Notify
) -> AsyncIterator[ChaosStage]:
    """Start all parts, each process with a log and a folder in `home`. Raises WorkerEnded,
    WorkerSilent, and errors of starting Kafka and making topics."""
    async with AsyncExitStack() as stack:
        kafka, proxy, address, through = None, None, plan.bootstrap, plan.bootstrap
        if address is None:
            notify("starting Apache Kafka ...")
            kafka = await stack.enter_async_context(_kafka(plan, home))
            proxy = await stack.enter_async_context(proxied(kafka.bootstrap))
            address, through = kafka.bootstrap, proxy.bootstrap
        base = worker_environment(plan, prefix, environ)
        settings = load_settings({**base, "TASKFLOW_BOOTSTRAP_SERVERS": address})
        await create_topics(settings)
        if kafka is None:
            stack.push_async_callback(_delete_topics, settings)
        made = []
        for nth in range(plan.workers):
            own = {"TASKFLOW_BOOTSTRAP_SERVERS": through or address}
            if nth % 2 == 0:  # a static member is back at once, another is missed for a session
                own["TASKFLOW_INSTANCE_ID"] = f"w{nth}"
            else:
                own["TASKFLOW_STANDBY"] = "true"
            made.append(WorkerProcess(f"w{nth}", home, {**base, **own}))
        near = {**base, "TASKFLOW_BOOTSTRAP_SERVERS": address}
        executors = [ExecutorProcess(f"e{n}", home, near) for n in range(plan.executors)]
        stage = ChaosStage(settings, made, executors, kafka, proxy)
        try:
            await asyncio.gather(*(process.start() for process in (*made, *executors)))
            for worker in made:
                await worker.until_printed(READY, timeout_s=START_TIMEOUT_S)
            yield stage
        finally:
            if proxy is not None:
                proxy.thaw()
            for process in (*made, *executors):
                if process.running:
                    process.resume()
                    await process.kill()


@asynccontextmanager
async def _kafka(plan: ChaosPlan, home: Path) -> AsyncIterator[EmbeddedBroker | EmbeddedCluster]:
    if plan.brokers == 1:
        async with embedded_broker(data_dir=home / "broker") as broker:
            yield broker
        return
    async with embedded_cluster(brokers=plan.brokers, data_dir=home / "brokers") as cluster:
        try:
            yield cluster
        finally:
            for broker in cluster.brokers:
                if broker.running:
                    broker.resume()


def worker_environment(plan: ChaosPlan, prefix: str, environ: Mapping[str, str]) -> dict[str, str]:
    """A worker's, with short times, so that much happens in a minute."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(PREFIX)
        or (plan.bootstrap and name.startswith(("TASKFLOW_S", "TASKFLOW_REPLICATION_FACTOR")))
        or name in ("TASKFLOW_CACHE_DIR", "TASKFLOW_BROKER_HEAP")
    }
    replicated = {}
    if plan.bootstrap is None and plan.brokers > 1:
        replicated["TASKFLOW_REPLICATION_FACTOR"] = f"{REPLICATION_FACTOR}"
    return {
        **kept,
        "TASKFLOW_TOPIC_PREFIX": prefix,
        "TASKFLOW_PARTITIONS": f"{plan.partitions}",
        **replicated,
        "TASKFLOW_HTTP": "off",
        "TASKFLOW_LOG_FORMAT": "json",
        "TASKFLOW_LOG_LEVEL": "info",
        # A cluster takes no shorter one than 6 s by default.
        "TASKFLOW_SESSION_TIMEOUT": "2s" if plan.bootstrap is None else "6s",
        "TASKFLOW_COMMIT_TIMEOUT": "5s",
        "TASKFLOW_WATCHDOG_TIMEOUT": "10s",
        "TASKFLOW_DEDUPE_WINDOW": "2m",
        "TASKFLOW_RETAIN_TERMINAL": "20s",
    }


async def _delete_topics(settings: Settings) -> None:
    with suppress(TaskflowError, KafkaError):
        async with open_admin(settings) as admin:
            await admin.delete_topics([name for name, _ in Topics(settings.topic_prefix)])
