"""Run a real single-node Apache Kafka for the demo, development and tests; several: cluster.py.

The JVM comes in a wheel and the jars by their Maven coordinates, so pip is all that a machine
needs. How and why: processor/embedded/README.md.
"""

import asyncio
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts
from aiokafka.errors import KafkaError

from processor.embedded import environment
from processor.embedded.directory import Directory, new_kafka_uuid, open_directory
from processor.embedded.errors import BrokerDidNotStart, PortTaken
from processor.embedded.jars import ensure_jars
from processor.embedded.process import KILL, TERMINATE, JavaProcess
from processor.embedded.progress import Progress, to_stderr

__all__ = ["EmbeddedBroker", "broker_responds", "embedded_broker"]

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 10.0
HOST = "127.0.0.1"
NODE_ID = 1
"""Of a single node."""

# Below the ports that systems hand out for outgoing connections: there, a client that keeps
# reconnecting while the broker is down may get the broker's own port and connect to itself.
FREE_PORTS = range(20_000, 32_000)

T = TypeVar("T")


class EmbeddedBroker:
    """A running Kafka. Made by `embedded_broker`, which also ends it.

    Its methods may be called from any event loop, one at a time.
    """

    def __init__(
        self, directory: Directory, ports: Sequence[int], java: list[str], *, node_id: int = NODE_ID
    ) -> None:
        """`ports`: all that it listens on, the one that it answers at first."""
        self.node_id = node_id
        self._directory = directory
        self._ports = ports
        self._java = java
        self._process: JavaProcess | None = None

    @property
    def bootstrap(self) -> str:
        """`127.0.0.1:port`; the same after a restart."""
        return f"{HOST}:{self._ports[0]}"

    @property
    def data_dir(self) -> Path:
        return self._directory.path

    @property
    def log(self) -> Path:
        """Kafka's own log, warnings and worse."""
        return self._directory.log

    @property
    def pid(self) -> int:
        """The JVM's process id. Raises RuntimeError while it is stopped."""
        if self._process is None:
            raise RuntimeError("The embedded broker is stopped, so it has no process id.")
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and not self._process.ended

    @property
    def how_it_ended(self) -> str:
        """What became of a process that ended by itself, as in `was killed by SIGKILL`."""
        return "is stopped" if self._process is None else self._process.how_it_ended

    def last_words(self) -> str:
        """The last lines of this run's log."""
        return "" if self._process is None else self._process.last_words()

    async def stop(self) -> None:
        """Shut Kafka down in good order, or kill it after STOP_TIMEOUT_S. Idempotent."""
        if self._process is not None and not await self._process.end(
            TERMINATE, within_s=STOP_TIMEOUT_S
        ):
            await self.kill()
        self._process = None

    async def kill(self) -> None:
        """SIGKILL the JVM, as a power cut would, and await its end. Idempotent."""
        if self._process is not None:
            await self._process.end(KILL, within_s=KILL_TIMEOUT_S)
            self._process.close()
        self._process = None

    def pause(self) -> None:
        """SIGSTOP the JVM: its connections stay open, and it answers no request."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT the JVM."""
        os.kill(self.pid, signal.SIGCONT)

    async def restart(self) -> None:
        """Stop it if it runs, and start it on the same port and data; returns when it answers.

        Raises BrokerDidNotStart, PortTaken.
        """
        await self.stop()
        await self.start()

    async def start(self) -> None:
        """Start it and wait until it answers; at most START_TIMEOUT_S.

        Raises BrokerDidNotStart, PortTaken.
        """
        for port in self._ports:
            if not _is_free(port):
                raise PortTaken(
                    f"Port {port} of {HOST} is taken by another program; "
                    "stop that one or name another port."
                )
        process = self._process = JavaProcess(
            [*self._java, "kafka.Kafka", "server.properties"], self._directory
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await self._responds():
            if process.ended or time.monotonic() > deadline:
                what = f"did not answer within {START_TIMEOUT_S:.0f} s"
                if process.ended:
                    what = f"{process.how_it_ended} before it answered"
                await self.kill()
                raise BrokerDidNotStart(
                    f"Apache Kafka {what}; the last lines of {self.log}:\n{process.last_words()}"
                )
            await asyncio.sleep(0.05)

    async def _responds(self) -> bool:
        return await broker_responds(self.bootstrap)


@asynccontextmanager
async def embedded_broker(
    *,
    data_dir: Path | None = None,
    port: int | None = None,
    progress: Progress = to_stderr,
    heap: str | None = None,
    cache_dir: Path | None = None,
    properties: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[EmbeddedBroker]:
    """A Kafka of our own on the loopback interface, answering when the block is entered.

    `data_dir`: kept; without one, a temporary directory that is gone afterwards. `port`: a free
    one if None. `progress` hears, from another thread, of jars being fetched, which happens on
    a user's first run. `heap`: the JVM's largest, such as `512m`. `cache_dir`: for the jars.
    `properties`: of Kafka's server.properties, over our own. `heap` and `cache_dir` come from
    TASKFLOW_BROKER_HEAP and TASKFLOW_CACHE_DIR if None; TASKFLOW_BROKER_JIT says how much the JVM
    compiles, TASKFLOW_BROKER_AOT from which AOT cache it starts.

    It ends with the block, and with this process however that ends. Raises EmbeddedBrokerError.
    """
    runtime = JavaRuntime(heap, cache_dir)
    async with open_directory(data_dir) as directory:
        await runtime.fetch_jars(progress)
        port = free_port() if port is None else port
        controller_port = free_port()
        directory.configure(port=port, controller_port=controller_port, properties=properties)
        directory.format(new_kafka_uuid(), NODE_ID)
        command = runtime.command(directory.path)
        broker = EmbeddedBroker(directory, (port, controller_port), command)
        try:
            await broker.start()
            yield broker
        finally:
            await broker.stop()


class JavaRuntime:
    """The JVM with its options, and Kafka's jars; the arguments are those of `embedded_broker`."""

    def __init__(self, heap: str | None, cache_dir: Path | None) -> None:
        """Raises BadOption, ExtraMissing."""
        self._heap = environment.heap() if heap is None else heap
        self._jit = environment.jit_options()
        self._java = environment.java()
        self._cache_dir = environment.cache_dir() if cache_dir is None else cache_dir
        self._jars: Sequence[Path] = ()

    async def fetch_jars(self, progress: Progress) -> None:
        """Fetch those that are missing, and check all. Raises JarUnavailable, JarMismatch."""
        self._jars = await _in_thread(
            lambda on_line: ensure_jars(self._cache_dir, on_line), progress
        )

    def command(self, directory: Path) -> list[str]:
        """What runs a class of Kafka's in `directory`, once the jars are there."""
        return [
            str(self._java),
            *_jvm_options(directory, self._heap),
            *environment.aot_options(),
            *self._jit,
            "-cp",
            ":".join(map(str, self._jars)),
        ]


async def broker_responds(
    bootstrap: str, *, timeout_s: float = 3.0, count: int = 1, **client_options: Any
) -> bool:
    """Whether a Kafka broker answers at one of the addresses `host:port,…`; never raises for it.

    It does when it has sent its versions and metadata, in which at least `count` brokers are there.
    `client_options` go to aiokafka's client
    as they are: security_protocol, ssl_context, sasl_….
    """
    # aiokafka logs a failed connection as an error; here it is an answer like any other.
    open_doors = [
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for host, port, _ in collect_hosts(bootstrap, randomize=False)
        if await accepts(host, port, timeout_s)
    ]
    if not open_doors:
        return False
    client = AIOKafkaClient(
        bootstrap_servers=open_doors,
        request_timeout_ms=int(timeout_s * 1000),
        **client_options,
    )
    try:
        await client.bootstrap()
        return len(client.cluster.brokers()) >= count
    except (KafkaError, OSError, TimeoutError):
        return False
    finally:
        await client.close()


async def accepts(host: str, port: int, timeout_s: float) -> bool:
    """Whether a process at that port accepts connections."""
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()
    return True


def _jvm_options(directory: Path, heap: str) -> list[str]:
    return [
        f"-Xmx{heap}",
        "-XX:+UseSerialGC",
        "-XX:+ExitOnOutOfMemoryError",
        "-XX:-UsePerfData",  # it leaves files behind when the JVM is killed
        # Kafka and its codecs reach for what later Javas will lock away; Java 25 only warns.
        "--sun-misc-unsafe-memory-access=allow",
        "--enable-native-access=ALL-UNNAMED",
        "-Djava.awt.headless=true",
        f"-Djava.io.tmpdir={directory / 'tmp'}",
        "-Dlog4j2.configurationFile=log4j2.properties",
    ]


class _GivenUp(Exception):
    """No caller waits for the work any more."""


async def _in_thread(work: Callable[[Progress], T], progress: Progress) -> T:
    """Run blocking work; when we are cancelled it ends at its next word, and we await that."""
    cancelled = threading.Event()

    def on_line(line: str) -> None:
        if cancelled.is_set():
            raise _GivenUp
        progress(line)

    done = asyncio.ensure_future(asyncio.to_thread(work, on_line))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        cancelled.set()
        await asyncio.wait([done])
        done.exception()  # retrieved, so that asyncio does not log it
        raise


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        # As Java does: a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port at which no process listens, and that this function has not returned before: in this
    process and, on Linux, in all that still run. Two brokers that start at the same moment would
    both find it free."""
    while not _is_free(port := random.choice(FREE_PORTS)) or not _claim(port):
        pass
    return port


_claims: dict[int, int] = {}
"""The ports that this process has taken, each with a descriptor that stays open until it ends."""


def _claim(port: int) -> bool:
    """Take a name for `port` that no other process of this machine can take; False if it is taken.

    The name is an abstract socket of Linux: the kernel removes it when the process ends.
    """
    if port in _claims:
        return False
    name = socket.socket(socket.AF_UNIX)
    if sys.platform == "linux":
        try:
            name.bind(f"\0taskflow-port-{port}")
        except OSError:
            name.close()
            return False
    _claims[port] = name.detach()
    return True
