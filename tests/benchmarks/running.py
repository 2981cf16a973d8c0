"""A real worker in a process of its own, what it is given, and what it costs."""

import asyncio
import os
import platform
import socket
import sys
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import psutil
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker
from processor.embedded.cluster import REPLICATION_FACTOR, EmbeddedCluster
from processor.settings import Settings

Kafka = EmbeddedBroker | EmbeddedCluster


def nodes(kafka: Kafka) -> list[psutil.Process]:
    """Its JVMs, the controller's too."""
    if isinstance(kafka, EmbeddedCluster):
        return [psutil.Process(node.pid) for node in (kafka.controller, *kafka.brokers)]
    return [psutil.Process(kafka.pid)]


def settings_for(kafka: Kafka, prefix: str, partitions: int) -> Settings:
    """For topics with as many replicas as `kafka` is for."""
    return Settings(
        bootstrap_servers=kafka.bootstrap,
        topic_prefix=prefix,
        partitions=partitions,
        replication_factor=REPLICATION_FACTOR if isinstance(kafka, EmbeddedCluster) else 1,
    )


def machine() -> str:
    """Where and with what the figures were measured."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    memory_gib = psutil.virtual_memory().total / 2**30
    libraries = ", ".join(f"{name} {version(name)}" for name in ("aiokafka", "pydantic", "orjson"))
    return (
        f"{os.cpu_count()} cores ({model}), {memory_gib:.0f} GiB, {platform.system()}, "
        f"Python {platform.python_version()}, Apache Kafka 4.3.1 on the same machine, {libraries}"
    )


@asynccontextmanager
async def running_worker(
    settings: Settings, state_dir: Path, *, http: str = "off", processes: int = 1
) -> AsyncIterator[psutil.Process]:
    """`taskflow worker` on the topics of `settings`, which are made; ended in good order."""
    await create_topics(settings)
    arguments = "worker", "--processes", str(processes)
    async with _running(arguments, settings, state_dir, HTTP=http) as process:
        yield process


@asynccontextmanager
async def running_views(
    settings: Settings, state_dir: Path, *, address: str
) -> AsyncIterator[psutil.Process]:
    """`taskflow views` at `address`; ended in good order."""
    async with _running(("views",), settings, state_dir, VIEWS_HTTP=address) as process:
        yield process


@asynccontextmanager
async def _running(
    arguments: Sequence[str], settings: Settings, state_dir: Path, **more: str
) -> AsyncIterator[psutil.Process]:
    chosen = {
        "BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TOPIC_PREFIX": settings.topic_prefix,
        "PARTITIONS": str(settings.partitions),
        "STATE_DIR": str(state_dir),
        "LOG_LEVEL": "warning",
        **more,
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", *arguments),
        env={**os.environ, **{f"TASKFLOW_{name}": value for name, value in chosen.items()}},
    )
    try:
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        await process.wait()


async def publish(settings: Settings, commands: Iterable[tuple[int, str, bytes]]) -> None:
    """Write `commands` (partition, flow id, value) as fast as Kafka takes them."""
    await publish_to(settings, Topics(settings.topic_prefix).commands, commands)


async def publish_to(
    settings: Settings, topic: str, commands: Iterable[tuple[int, str, bytes]]
) -> None:
    """As `publish`, to any topic with the partitions of `settings`."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        compression_type="lz4",
        max_batch_size=900_000,
        linger_ms=5,
    )
    await producer.start()
    batches = [producer.create_batch() for _ in range(settings.partitions)]
    for place, flow_id, value in commands:
        key = flow_id.encode()
        if batches[place].append(timestamp=None, key=key, value=value) is None:
            await (await producer.send_batch(batches[place], topic, partition=place))
            batches[place] = producer.create_batch()
            batches[place].append(timestamp=None, key=key, value=value)
    for place, batch in enumerate(batches):
        if batch.record_count():
            await (await producer.send_batch(batch, topic, partition=place))
    await producer.stop()


def free_address() -> str:
    """Where nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host, port = probe.getsockname()
        return f"{host}:{port}"


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and those that it has started."""
    return [process, *process.children(recursive=True)]


def cpu_s(process: psutil.Process) -> float:
    """User and system time so far, also of the processes that it has started."""
    return sum(sum(one.cpu_times()[:2]) for one in family(process))


def memory_bytes(process: psutil.Process) -> int:
    """Memory that is resident, of a process and those that it has started; what they share counts
    once (on Linux: their proportional set sizes)."""
    if not psutil.LINUX:
        return sum(one.memory_info().rss for one in family(process))
    return sum(one.memory_full_info().pss for one in family(process))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` percent of `values` do not exceed; NaN of none."""
    ordered = sorted(values)
    if not ordered:
        return float("nan")
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]
