"""What the proxy does to requests, seen by a client and a broker that only count."""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from processor.testing.chaos.proxy import END_TXN, KINDS, Fate, Proxy, proxied
from tests.support.machine import patience
from tests.support.proxy import foul

PRODUCE = KINDS["Produce"]


class Upstream:
    """Answers each request with its correlation id and `says`."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self.says = b"fine"
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                body = await reader.readexactly(size)
                api_key, _, correlation_id = struct.unpack(">hhi", body[:8])
                self.received.append(api_key)
                response = struct.pack(">i", correlation_id) + self.says
                writer.write(struct.pack(">i", len(response)) + response)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


class Client:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._correlation_id = 0

    def ask(self, api_key: int) -> None:
        self._correlation_id += 1
        body = struct.pack(">hhi", api_key, 0, self._correlation_id)
        self._writer.write(struct.pack(">i", len(body)) + body)

    async def response(self, *, within_s: float = patience(5.0)) -> bytes:
        """Raises IncompleteReadError when the connection breaks, TimeoutError in silence."""
        async with asyncio.timeout(within_s):
            (size,) = struct.unpack(">i", await self._reader.readexactly(4))
            return (await self._reader.readexactly(size))[4:]

    def close(self) -> None:
        self._writer.close()


@pytest.fixture
async def upstream() -> AsyncIterator[Upstream]:
    made = Upstream()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Client]:
    client = Client(*await asyncio.open_connection("127.0.0.1", proxy.port))
    try:
        yield client
    finally:
        client.close()


SILENT_S = 0.2


async def test_without_a_word_all_goes_through(upstream: Upstream) -> None:
    async with proxied(f"127.0.0.1:{upstream.port}") as proxy, connected(proxy) as client:
        client.ask(PRODUCE)
        assert await client.response() == b"fine"
        assert not proxy.befallen


@pytest.mark.parametrize(
    ("fate", "arrives", "breaks"),
    [
        (Fate.CUT, True, True),
        (Fate.REFUSE, False, True),
        (Fate.SWALLOW, True, False),
        (Fate.SILENCE, False, False),
    ],
)
async def test_a_request_meets_its_fate_and_others_of_its_kind_do_not(
    upstream: Upstream, fate: Fate, arrives: bool, breaks: bool
) -> None:
    async with proxied(f"127.0.0.1:{upstream.port}") as proxy:
        proxy.decide_once(END_TXN, fate)
        async with connected(proxy) as client:
            client.ask(PRODUCE)
            assert await client.response() == b"fine"
            client.ask(END_TXN)
            with pytest.raises(asyncio.IncompleteReadError if breaks else TimeoutError):
                await client.response(within_s=patience(5.0) if breaks else SILENT_S)
            if fate is Fate.SWALLOW:  # only the answer was lost
                client.ask(END_TXN)
                assert await client.response() == b"fine"
            if fate is Fate.SILENCE:  # half open for good
                client.ask(PRODUCE)
                with pytest.raises(TimeoutError):
                    await client.response(within_s=SILENT_S)
        async with connected(proxy) as another:
            another.ask(END_TXN)
            assert await another.response() == b"fine"
        assert (upstream.received.count(END_TXN) - 1 - (fate is Fate.SWALLOW)) == int(arrives)
        assert proxy.befallen == {("EndTxn", fate.name): 1}


async def test_a_late_request_arrives_later_and_what_is_behind_it_too(upstream: Upstream) -> None:
    async with proxied(f"127.0.0.1:{upstream.port}") as proxy, connected(proxy) as client:
        proxy.decide_once(PRODUCE, Fate.LATE, late_s=SILENT_S)
        client.ask(PRODUCE)
        client.ask(END_TXN)
        with pytest.raises(TimeoutError):
            await client.response(within_s=SILENT_S / 4)
        assert upstream.received == []
        assert [await client.response() for _ in range(2)] == [b"fine", b"fine"]
        assert upstream.received == [PRODUCE, END_TXN]


async def test_a_held_request_arrives_when_it_is_released(upstream: Upstream) -> None:
    async with proxied(f"127.0.0.1:{upstream.port}") as proxy, connected(proxy) as client:
        proxy.decide_once(END_TXN, Fate.HOLD)
        client.ask(END_TXN)
        with pytest.raises(asyncio.IncompleteReadError):
            await client.response()
        assert upstream.received == []
        assert await proxy.release() == b"fine"
        assert upstream.received == [END_TXN]


async def test_frozen_nothing_goes_through_and_thawed_nothing_is_lost(upstream: Upstream) -> None:
    async with proxied(f"127.0.0.1:{upstream.port}") as proxy, connected(proxy) as client:
        proxy.freeze()
        client.ask(PRODUCE)
        with pytest.raises(TimeoutError):
            await client.response(within_s=SILENT_S)
        assert upstream.received == []
        proxy.thaw()
        assert await client.response() == b"fine"


async def test_where_an_answer_names_the_broker_it_names_the_proxy(upstream: Upstream) -> None:
    async with proxied(f"127.0.0.1:{upstream.port}") as proxy, connected(proxy) as client:
        upstream.says = b"\x00\x09127.0.0.1" + struct.pack(">i", upstream.port)
        client.ask(KINDS["Metadata"])
        assert await client.response() == b"\x00\x09127.0.0.1" + struct.pack(">i", proxy.port)
        client.ask(KINDS["Fetch"])  # a record may hold anything
        assert await client.response() == upstream.says


async def test_each_broker_of_a_cluster_has_a_port_of_the_proxys(upstream: Upstream) -> None:
    bootstrap = f"127.0.0.1:1,127.0.0.1:{upstream.port}"
    async with proxied(bootstrap) as proxy:
        one, other = proxy.ports.values()
        assert proxy.bootstrap == f"127.0.0.1:{one},127.0.0.1:{other}"
        client = Client(*await asyncio.open_connection("127.0.0.1", other))
        upstream.says = b"".join(
            b"127.0.0.1" + struct.pack(">i", port) for port in (upstream.port, 1)
        )
        client.ask(KINDS["Metadata"])
        assert await client.response() == b"".join(
            b"127.0.0.1" + struct.pack(">i", port) for port in (other, one)
        )
        client.close()


async def test_without_a_broker_the_connection_breaks(upstream: Upstream) -> None:
    async with proxied("127.0.0.1:1") as proxy, connected(proxy) as client:
        client.ask(PRODUCE)
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
            await client.response()


def test_foul_weather_is_the_same_for_the_same_seed_and_spares_other_kinds() -> None:
    one, other, third = (foul(0.5, seed=seed, kinds=("EndTxn",)) for seed in (1, 1, 2))
    drawn = [one(END_TXN) for _ in range(50)]
    assert drawn == [other(END_TXN) for _ in range(50)]
    assert drawn != [third(END_TXN) for _ in range(50)]
    assert len({treatment.fate for treatment in drawn}) > 3
    assert {one(PRODUCE).fate for _ in range(50)} == {Fate.PASS}
