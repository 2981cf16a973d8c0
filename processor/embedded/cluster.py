"""Run a cluster of real Apache Kafka brokers on this machine, each a process that may be lost.

The controller is a process of its own: it outlives any broker, so that the in-sync sets of
partitions shrink also while most brokers are away. An operator's cluster has three of them.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Final

from processor.embedded.broker import (
    HOST,
    START_TIMEOUT_S,
    EmbeddedBroker,
    JavaRuntime,
    accepts,
    broker_responds,
    free_port,
)
from processor.embedded.directory import Directory, new_kafka_uuid, open_directory
from processor.embedded.errors import BrokerDidNotStart
from processor.embedded.progress import Progress, to_stderr

REPLICATION_FACTOR: Final = 3
MIN_INSYNC: Final = 2
"""Of the replicas of each partition, so many must have a record before it is acknowledged."""
CONTROLLER_ID: Final = 100
CONTROLLER_ACCEPTS_S: Final = 3.0

REPLICATED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "default.replication.factor": f"{REPLICATION_FACTOR}",
        "min.insync.replicas": f"{MIN_INSYNC}",
        "offsets.topic.replication.factor": f"{REPLICATION_FACTOR}",
        "transaction.state.log.replication.factor": f"{REPLICATION_FACTOR}",
        "transaction.state.log.min.isr": f"{MIN_INSYNC}",
        "share.coordinator.state.topic.replication.factor": f"{REPLICATION_FACTOR}",
        "share.coordinator.state.topic.min.isr": f"{MIN_INSYNC}",
    }
)


class EmbeddedController(EmbeddedBroker):
    """The node that holds the cluster's metadata. Clients do not speak to it."""

    async def _responds(self) -> bool:
        host, port = self.bootstrap.split(":")
        return await accepts(host, int(port), CONTROLLER_ACCEPTS_S)


class EmbeddedCluster:
    """Running brokers and their controller. Made by `embedded_cluster`, which also ends it."""

    def __init__(self, controller: EmbeddedBroker, brokers: tuple[EmbeddedBroker, ...]) -> None:
        self.controller = controller
        self.brokers = brokers

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port,…`, the same after restarts."""
        return ",".join(broker.bootstrap for broker in self.brokers)

    async def start(self) -> None:
        """Start all of it, and wait until every broker is part of it. Raises BrokerDidNotStart,
        PortTaken."""
        await self.controller.start()
        async with asyncio.TaskGroup() as group:
            for broker in self.brokers:
                group.create_task(broker.start())
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await broker_responds(self.bootstrap, count=len(self.brokers)):
            if time.monotonic() > deadline:
                raise BrokerDidNotStart(
                    f"Not all of {len(self.brokers)} brokers found each other within "
                    f"{START_TIMEOUT_S:.0f} s; see {self.controller.log}."
                )
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Shut it down in good order: the brokers first, which tell the controller. Idempotent."""
        await asyncio.gather(*(broker.stop() for broker in self.brokers))
        await self.controller.stop()


@asynccontextmanager
async def embedded_cluster(
    *,
    brokers: int = REPLICATION_FACTOR,
    data_dir: Path | None = None,
    progress: Progress = to_stderr,
    heap: str | None = None,
    cache_dir: Path | None = None,
    properties: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[EmbeddedCluster]:
    """A cluster of our own on the loopback interface, all of it answering when the block is
    entered: `brokers` brokers, REPLICATION_FACTOR at least, and one controller.

    Every topic, those of Kafka's own too, has REPLICATION_FACTOR replicas, of which MIN_INSYNC must
    have a record before it is acknowledged. `data_dir` has a folder for each node; `heap` is that
    of each. The other arguments are those of `embedded_broker`. Raises EmbeddedBrokerError.
    """
    runtime = JavaRuntime(heap, cache_dir)
    async with AsyncExitStack() as stack:
        ids = (CONTROLLER_ID, *range(1, brokers + 1))
        directories = {
            node_id: await stack.enter_async_context(
                open_directory(None if data_dir is None else data_dir / _folder(node_id))
            )
            for node_id in ids
        }
        await runtime.fetch_jars(progress)
        ports = {node_id: free_port() for node_id in ids}
        cluster_id = new_kafka_uuid()
        for node_id, directory in directories.items():
            _configure(directory, node_id, ports, properties)
            directory.format(cluster_id, node_id)
        controller, *made = (
            (EmbeddedController if node_id == CONTROLLER_ID else EmbeddedBroker)(
                directory, [ports[node_id]], runtime.command(directory.path), node_id=node_id
            )
            for node_id, directory in directories.items()
        )
        cluster = EmbeddedCluster(controller, tuple(made))
        try:
            await cluster.start()
            yield cluster
        finally:
            await cluster.stop()


def _folder(node_id: int) -> str:
    return "controller" if node_id == CONTROLLER_ID else f"broker-{node_id}"


def _configure(
    directory: Directory, node_id: int, ports: Mapping[int, int], properties: Mapping[str, str]
) -> None:
    """Write the configuration of one node; `ports`: of each, by its id."""
    role, name = "broker", "PLAINTEXT"
    if node_id == CONTROLLER_ID:
        role, name = "controller", "CONTROLLER"
    listener = f"{name}://{HOST}:{ports[node_id]}"
    own = {
        "node.id": f"{node_id}",
        "process.roles": role,
        "controller.quorum.voters": f"{CONTROLLER_ID}@{HOST}:{ports[CONTROLLER_ID]}",
        "listeners": listener,
        "advertised.listeners": listener,
    }
    directory.configure(
        port=ports[node_id],
        controller_port=ports[CONTROLLER_ID],
        properties={**REPLICATED, **own, **properties},
    )
