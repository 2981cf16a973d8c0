"""A TCP proxy before a broker that does to single requests what networks do to them."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from enum import StrEnum
from typing import Any, Final

import pytest
from aiokafka import client
from aiokafka.protocol.transaction import EndTxnRequest

END_TXN: Final[int] = EndTxnRequest.API_KEY


class Fate(StrEnum):
    """What becomes of a request."""

    PASS = "it goes through, and its answer too"
    CUT = "it goes through, and the connection breaks before the answer"
    HOLD = "it stays on its way, and the connection breaks; `release` lets it arrive"
    SWALLOW = "it goes through, and the answer is lost"


class Proxy:
    """Made by `proxied`; `decide_once` says what happens to the next request of a kind."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.port = 0
        self.late_answers: list[bytes] = []
        """What the broker said to requests that were held."""
        self._upstream = upstream
        self._next: dict[int, Fate] = {}
        self._held: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._answered = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def decide_once(self, api_key: int, fate: Fate) -> None:
        self._next[api_key] = fate

    async def release(self) -> bytes:
        """Let the held requests arrive; the broker's answer to the last, without its frame."""
        self._answered.clear()
        for upstream, request in self._held:
            upstream.write(request)
        self._held.clear()
        async with asyncio.timeout(10):
            await self._answered.wait()
        return self.late_answers[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        connection = _Connection(self, reader, writer)
        with suppress(OSError, asyncio.IncompleteReadError):
            await connection.run(*await asyncio.open_connection(*self._upstream))

    def fate_of(self, api_key: int) -> Fate:
        return self._next.pop(api_key, Fate.PASS)

    def hold(self, upstream: asyncio.StreamWriter, request: bytes) -> None:
        self._held.append((upstream, request))

    def answered_late(self, answer: bytes) -> None:
        self.late_answers.append(answer)
        self._answered.set()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Connection:
    """One client's connection, and ours to the broker for it."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._fates: dict[int, Fate] = {}
        self._cut = False

    async def run(self, reader: asyncio.StreamReader, upstream: asyncio.StreamWriter) -> None:
        answers = asyncio.create_task(self._answers(reader))
        try:
            await self._requests(upstream)
            if self._cut:  # the broker does not know yet
                await answers
        finally:
            answers.cancel()
            with suppress(asyncio.CancelledError, OSError, asyncio.IncompleteReadError):
                await answers
            for one in (upstream, self._writer):
                one.close()
                with suppress(OSError):
                    await one.wait_closed()

    async def _requests(self, upstream: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                frame, body = await _frame(self._reader)
                api_key, _, correlation_id = struct.unpack(">hhi", body[:8])
                fate = self._proxy.fate_of(api_key)
                if fate is Fate.HOLD:
                    self._proxy.hold(upstream, frame + body)
                    self._cut = True
                    self._writer.close()
                    return
                self._fates[correlation_id] = fate
                upstream.write(frame + body)

    async def _answers(self, reader: asyncio.StreamReader) -> None:
        while True:
            frame, body = await _frame(reader)
            if self._cut:
                self._proxy.answered_late(body[4:])
                return
            (correlation_id,) = struct.unpack(">i", body[:4])
            fate = self._fates.pop(correlation_id, Fate.PASS)
            if fate is Fate.CUT:
                self._writer.close()
                return
            if fate is not Fate.SWALLOW:
                self._writer.write(frame + body)


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(4)
    return head, await reader.readexactly(struct.unpack(">i", head)[0])


@asynccontextmanager
async def proxied(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """A proxy that all clients made within go through, whatever address the broker names."""
    host, port = bootstrap.split(":")
    proxy = Proxy((host, int(port)))
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    connect: Callable[..., Any] = client.create_conn

    async def through_proxy(host: str, port: int, *args: Any, **how: Any) -> Any:
        return await connect("127.0.0.1", proxy.port, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(client, "create_conn", through_proxy)
        try:
            yield proxy
        finally:
            server.close()
            await proxy.close()
