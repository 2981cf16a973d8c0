"""Ask the other view workers for the partitions that they have by Faust's assignment.

A member of the group may name any address, so an address is asked by a question that only a worker
with the same secret can answer (access/peer_key.py), and nothing that it sends is read before it
has proved that. Redirects are not followed; sizes and times are bounded.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp
import orjson
from yarl import URL

from processor.views.access.peer_key import (
    QUESTION,
    RESPONSE,
    Exchange,
    ForgedError,
    PeerKey,
    address_of,
)

RESPONSE_MAX_S: Final = 5.0
RESPONSE_MAX_BYTES: Final = 24 * 1024 * 1024
LINE_MAX_BYTES: Final = 4 * 1024 * 1024
SILENT_MAX_S: Final = 30.0
"""Between two lines of a stream, which has one at least every 10 s."""
AVOIDED_S: Final = 5.0
"""For how long an address is not asked after it took too long, or proved nothing: a question must
not wait each time for an address at which no worker of ours is."""
_ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9.\[\]:_-]{1,255}")
_PLAIN: Final = {"Accept-Encoding": "identity"}

_log = logging.getLogger(__name__)

Json = dict[str, Any]


class PeerFailed(Exception):
    """A peer did not answer, or not as asked; `problem` is what it said instead."""

    def __init__(self, problem: Json | None = None) -> None:
        super().__init__(problem)
        self.problem = problem


class Peers:
    """`shared_out()`: address → partitions, of all workers as the group has shared them out.
    Without `key` no worker is asked, and none is believed."""

    def __init__(
        self, own: str, shared_out: Callable[[], Mapping[str, set[int]]], key: PeerKey | None
    ) -> None:
        self.own = own
        self.key = key
        self._shared_out = shared_out
        self._session: aiohttp.ClientSession | None = None
        self._avoided_until_s: dict[str, float] = {}

    def others(self) -> dict[str, set[int]]:
        """Address → partitions, without us and those who have none, or no address."""
        own = address_of(self.own)
        return {
            address: partitions
            for url, partitions in self._shared_out().items()
            if partitions and _ADDRESS.fullmatch(url.rstrip("/"))
            if (address := _spelled(url)) is not None and address != own
        }

    async def ask(self, url: str, path: str, parameters: Mapping[str, str], wait_s: float) -> Json:
        """What the worker at `url` answers. Raises PeerFailed."""
        if self._is_avoided(url):
            raise PeerFailed
        try:
            status, body = await self._signed_response(url, path, parameters, wait_s)
            body = orjson.loads(body)
        except (ForgedError, TimeoutError) as error:
            self._avoid(url, error)
            raise PeerFailed from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise PeerFailed from error
        if status != 200 or not isinstance(body, dict):
            raise PeerFailed(body if isinstance(body, dict) else None)
        return body

    async def _signed_response(
        self, url: str, path: str, parameters: Mapping[str, str], wait_s: float
    ) -> tuple[int, bytes]:
        """Status and body, made for this question by a worker that knows the secret."""
        asked, exchange, headers = self._question(url, path, parameters)
        async with self._client().get(
            asked,
            headers=headers,
            allow_redirects=False,
            timeout=aiohttp.ClientTimeout(total=RESPONSE_MAX_S + wait_s),
        ) as response:
            digest = exchange.expect(response.headers.get(RESPONSE, ""), response.status)
            body = bytearray()
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > RESPONSE_MAX_BYTES:
                    raise ForgedError("the answer is too large")
        exchange.check(digest, bytes(body))
        return response.status, bytes(body)

    def _question(
        self, url: str, path: str, parameters: Mapping[str, str]
    ) -> tuple[URL, Exchange, dict[str, str]]:
        if self.key is None:
            raise PeerFailed
        asked = URL(url).with_path(path).with_query(parameters)
        exchange, header = self.key.ask(url, asked.raw_path_qs)
        return asked, exchange, {**_PLAIN, QUESTION: header}

    def _is_avoided(self, url: str) -> bool:
        return time.monotonic() < self._avoided_until_s.get(url, 0.0)

    def _avoid(self, url: str, error: Exception) -> None:
        self._avoided_until_s[url] = time.monotonic() + AVOIDED_S
        if isinstance(error, ForgedError):
            _log.warning(
                "the view worker at %s does not prove that it knows the peer secret; its answers "
                "are left out. Give all view workers the same TASKFLOW_VIEWS_PEER_SECRET.",
                url,
            )

    async def ask_all(
        self, path: str, parameters: Mapping[str, Mapping[str, str]], wait_s: float
    ) -> list[Json | PeerFailed]:
        """What each of them answers, in the order of `parameters` (address → parameters)."""

        async def one(url: str, each: Mapping[str, str]) -> Json | PeerFailed:
            try:
                return await self.ask(url, path, each, wait_s if "after" in each else 0.0)
            except PeerFailed as failed:
                return failed

        return await asyncio.gather(*(one(url, each) for url, each in parameters.items()))

    @asynccontextmanager
    async def stream(
        self, url: str, path: str, parameters: Mapping[str, str]
    ) -> AsyncIterator[AsyncIterator[tuple[str, str, bytes]]]:
        """Its server-sent events: name, id, data. Raises PeerFailed."""
        if self._is_avoided(url):
            raise PeerFailed
        try:
            asked, exchange, headers = self._question(url, path, parameters)
            async with self._client().get(
                asked,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(
                    total=None, connect=RESPONSE_MAX_S, sock_read=SILENT_MAX_S
                ),
                read_bufsize=LINE_MAX_BYTES,
            ) as response:
                exchange.expect(response.headers.get(RESPONSE, ""), response.status)
                if response.status != 200:
                    raise PeerFailed
                yield _events(response, exchange)
        except ForgedError as error:
            self._avoid(url, error)
            raise PeerFailed from error
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise PeerFailed from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                # As many as are asked for: streams have a limit of their own.
                connector=aiohttp.TCPConnector(limit=0),
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session


async def _events(
    response: aiohttp.ClientResponse, exchange: Exchange
) -> AsyncIterator[tuple[str, str, bytes]]:
    """Raises ForgedError for an event that the worker did not sign as the next one."""
    sequence = 0
    name, event_id, data, code = "message", "", b"", ""
    async for line in response.content:
        field, _, value = line.rstrip(b"\r\n").partition(b": ")
        if field == b"event":
            name = value.decode()
        elif field == b"id":
            event_id = value.decode()
        elif field == b"data":
            data = value
        elif field == b"code":
            code = value.decode()
        elif not field and data:
            exchange.check_event(code, sequence, name, event_id, data)
            sequence += 1
            yield name, event_id, data
            name, event_id, data, code = "message", "", b"", ""


def _spelled(url: str) -> str | None:
    try:
        return address_of(url)
    except ValueError:
        return None
