"""Ask the other view workers for the partitions that they have by Faust's assignment."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

ANSWER_MAX_S: Final = 5.0
ANSWER_MAX_BYTES: Final = 64 * 1024 * 1024
LINE_MAX_BYTES: Final = 4 * 1024 * 1024

Json = dict[str, Any]


class PeerFailed(Exception):
    """A peer did not answer, or not as asked; `problem` is what it said instead."""

    def __init__(self, problem: Json | None = None) -> None:
        super().__init__(problem)
        self.problem = problem


class Peers:
    """`shared_out()`: address → partitions, of all workers as the group has shared them out."""

    def __init__(self, own: str, shared_out: Callable[[], Mapping[str, set[int]]]) -> None:
        self.own = own
        self._shared_out = shared_out
        self._session: aiohttp.ClientSession | None = None

    def others(self) -> dict[str, set[int]]:
        """Address → partitions, without us and those who have none."""
        return {
            url: partitions
            for url, partitions in self._shared_out().items()
            if partitions and url.rstrip("/") != self.own.rstrip("/")
        }

    async def ask(self, url: str, path: str, parameters: Mapping[str, str], wait_s: float) -> Json:
        """What the worker at `url` answers. Raises PeerFailed."""
        try:
            async with self._client().get(
                URL(url).with_path(path),
                params=parameters,
                timeout=aiohttp.ClientTimeout(total=ANSWER_MAX_S + wait_s),
            ) as response:
                body = await response.content.read(ANSWER_MAX_BYTES)
                while not response.content.at_eof() and len(body) < ANSWER_MAX_BYTES:
                    body += await response.content.read(ANSWER_MAX_BYTES - len(body))
                answer = orjson.loads(body)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise PeerFailed from error
        if response.status != 200 or not isinstance(answer, dict):
            raise PeerFailed(answer if isinstance(answer, dict) else None)
        return answer

    async def ask_all(
        self, path: str, parameters: Mapping[str, Mapping[str, str]], wait_s: float
    ) -> list[Json | PeerFailed]:
        """What each of them answers, in the order of `parameters` (address → parameters)."""

        async def one(url: str, each: Mapping[str, str]) -> Json | PeerFailed:
            try:
                return await self.ask(url, path, each, wait_s)
            except PeerFailed as failed:
                return failed

        return await asyncio.gather(*(one(url, each) for url, each in parameters.items()))

    @asynccontextmanager
    async def stream(
        self, url: str, path: str, parameters: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[tuple[str, str, bytes]]]:
        """Its server-sent events: name, id, data. Raises PeerFailed."""
        try:
            async with self._client().get(
                URL(url).with_path(path),
                params=parameters,
                timeout=aiohttp.ClientTimeout(total=None, connect=ANSWER_MAX_S, sock_read=60),
                read_bufsize=LINE_MAX_BYTES,
            ) as response:
                if response.status != 200:
                    raise PeerFailed
                yield _events(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise PeerFailed from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, str, bytes]]:
    name, event_id, data = "message", "", b""
    async for line in response.content:
        field, _, value = line.rstrip(b"\r\n").partition(b": ")
        if field == b"event":
            name = value.decode()
        elif field == b"id":
            event_id = value.decode()
        elif field == b"data":
            data = value
        elif not field and data:
            yield name, event_id, data
            name, event_id, data = "message", "", b""
