"""A TCP proxy in front of brokers that delays, cuts and drops single requests."""

import asyncio
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Final, NamedTuple

from processor.runtime import end_tasks

HOST: Final = "127.0.0.1"

KINDS: Final[Mapping[str, int]] = MappingProxyType(
    {
        "Produce": 0,
        "Fetch": 1,
        "ListOffsets": 2,
        "Metadata": 3,
        "OffsetCommit": 8,
        "OffsetFetch": 9,
        "FindCoordinator": 10,
        "JoinGroup": 11,
        "Heartbeat": 12,
        "LeaveGroup": 13,
        "SyncGroup": 14,
        "ApiVersions": 18,
        "InitProducerId": 22,
        "AddPartitionsToTxn": 24,
        "EndTxn": 26,
        "DescribeCluster": 60,
    }
)
"""Kafka's API keys, as far as a worker uses them."""
END_TXN: Final = KINDS["EndTxn"]
_NAMES: Final = {key: name for name, key in KINDS.items()}
_NAMING_BROKERS: Final = frozenset(
    KINDS[name] for name in ("Metadata", "FindCoordinator", "DescribeCluster")
)
"""Their answers say where brokers are."""


class Fate(StrEnum):
    """What becomes of a request."""

    PASS = "it goes through, and its answer too"
    CUT = "it goes through, and the connection breaks before the answer"
    REFUSE = "the connection breaks before it goes through"
    HOLD = "it stays on its way, and the connection breaks; `release` lets it arrive"
    SWALLOW = "it goes through, and the answer is lost"
    SILENCE = "it gets lost, and the connection stays half open: nothing goes through any more"
    LATE = "it goes through later, and what was sent behind it too"


class Treatment(NamedTuple):
    fate: Fate = Fate.PASS
    late_s: float = 0.0


Weather = Callable[[int], Treatment]
"""What befalls a request of an API key for which nothing was decided."""


def fair(api_key: int) -> Treatment:
    return Treatment()


class Proxy:
    """Made by `proxied`; `decide_once` says what happens to the next request of a kind.

    It has a port for each broker. A broker's own address, where answers name it, becomes that one,
    so that a client that comes here stays here; for that, it listens on 127.0.0.1.
    """

    def __init__(self) -> None:
        self.ports: dict[tuple[str, int], int] = {}
        """Where it listens for each broker's address."""
        self.late_responses: list[bytes] = []
        """What the broker said to requests that were held."""
        self.befallen: Counter[tuple[str, str]] = Counter()
        """How many requests met which fate but PASS, by kind and fate."""
        self.weather: Weather = fair
        self._next: dict[int, list[Treatment]] = {}
        self._held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._responded = asyncio.Event()
        self._open = asyncio.Event()
        self._open.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Where it listens for the first broker."""
        return next(iter(self.ports.values()))

    @property
    def bootstrap(self) -> str:
        return ",".join(f"{HOST}:{port}" for port in self.ports.values())

    def decide_once(self, api_key: int, fate: Fate, *, times: int = 1, late_s: float = 0.0) -> None:
        """The next request of this kind, or the next `times`, meet this fate."""
        self._next[api_key] = [Treatment(fate, late_s)] * times

    def forget(self) -> None:
        """Whatever was decided and has not happened yet; fair weather."""
        self._next.clear()
        self.weather = fair

    def freeze(self) -> None:
        """From now on nothing goes through, neither way, and no connection breaks: `thaw`."""
        self._open.clear()

    def thaw(self) -> None:
        self._open.set()

    async def release(self) -> bytes:
        """Let the held requests arrive; the broker's answer to the last, without its frame."""
        self._responded.clear()
        for upstream, request in self._held:
            upstream.write(request)
        self._held.clear()
        async with asyncio.timeout(10):
            await self._responded.wait()
        return self.late_responses[-1]

    async def serve(
        self, upstream: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection = _Connection(self, reader, writer)
        try:
            await connection.run(*await asyncio.open_connection(*upstream))
        except (OSError, asyncio.IncompleteReadError):
            writer.close()
        except asyncio.CancelledError:
            # By `close` alone; asyncio's server would complain of a connection that was cancelled.
            writer.close()

    async def passable(self) -> None:
        """Wait while it is frozen."""
        await self._open.wait()

    def fate_of(self, api_key: int) -> Treatment:
        decided = self._next.get(api_key)
        treatment = decided.pop() if decided else self.weather(api_key)
        if treatment.fate is not Fate.PASS:
            self.befallen[_NAMES.get(api_key, str(api_key)), treatment.fate.name] += 1
        return treatment

    def hold(self, upstream: asyncio.StreamWriter, request: bytes) -> None:
        self._held.append((upstream, request))

    def responded_late(self, response: bytes) -> None:
        self.late_responses.append(response)
        self._responded.set()

    def renamed(self, response: bytes) -> bytes:
        """An answer with our ports where it names the brokers'. Host and port stand side by side
        in every version of these answers, and both keep their length."""
        for (host, port), own in self.ports.items():
            response = response.replace(
                host.encode() + struct.pack(">i", port), host.encode() + struct.pack(">i", own)
            )
        return response

    async def close(self) -> None:
        await end_tasks(*self._tasks)


class _Connection:
    """One client's connection, and ours to the broker for it."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._asked: dict[int, tuple[int, Fate]] = {}
        self._cut = False
        self._silent = False

    async def run(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        responses = asyncio.create_task(self._responses(reader))
        responses.add_done_callback(lambda _: self._writer.close())
        try:
            await self._requests(upstream)
            if self._cut:  # the broker does not know yet
                await responses
        finally:
            await end_tasks(responses)
            for one in (upstream, self._writer):
                one.close()
                with suppress(OSError):
                    await one.wait_closed()

    async def _requests(self, upstream: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame, body = await _frame(self._reader)
                await self._proxy.passable()
                if self._silent:
                    continue
                api_key, _, correlation_id = struct.unpack(">hhi", body[:8])
                fate, late_s = self._proxy.fate_of(api_key)
                match fate:
                    case Fate.HOLD:
                        self._proxy.hold(upstream, frame + body)
                        self._cut = True
                        self._writer.close()
                        return
                    case Fate.REFUSE:
                        return
                    case Fate.SILENCE:
                        self._silent = True
                        continue
                    case Fate.LATE:
                        await asyncio.sleep(late_s)
                if upstream.is_closing():  # the broker is gone
                    return
                self._asked[correlation_id] = (api_key, fate)
                upstream.write(frame + body)
                await upstream.drain()

    async def _responses(self, reader: asyncio.StreamReader) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame, body = await _frame(reader)
                if self._cut:
                    self._proxy.responded_late(body[4:])
                    return
                await self._proxy.passable()
                (correlation_id,) = struct.unpack(">i", body[:4])
                api_key, fate = self._asked.pop(correlation_id, (-1, Fate.PASS))
                if fate is Fate.CUT:
                    return
                if fate is Fate.SWALLOW or self._silent:
                    continue
                if api_key in _NAMING_BROKERS:
                    body = self._proxy.renamed(body)
                self._writer.write(frame + body)
                await self._writer.drain()


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(4)
    return head, await reader.readexactly(struct.unpack(">i", head)[0])


@asynccontextmanager
async def proxied(bootstrap: str) -> AsyncIterator[Proxy]:
    """A proxy before the brokers at `bootstrap`, `host:port,…`, which must be all of a cluster."""
    proxy, servers = Proxy(), []
    for address in bootstrap.split(","):
        host, port = address.rsplit(":", 1)
        upstream = host, int(port)
        server = await asyncio.start_server(partial(proxy.serve, upstream), HOST, 0)
        servers.append(server)
        proxy.ports[upstream] = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        for server in servers:
            server.close()
        proxy.thaw()
        await proxy.close()
