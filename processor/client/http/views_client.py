"""ViewsClient: read flows, histories and streams of events from the views over HTTP.

A request needs aiohttp, of the extra `cli`.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from processor.errors import TaskflowError

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from pydantic import SecretStr

    from processor.settings import Address, Settings

TIMEOUT_S: Final = 5.0
KNOCK_S: Final = 1.0
"""Time-out of a connection in seconds; views respond at once or are absent."""
STREAM_SILENCE_S: Final = 30.0
"""Seconds without a byte after which a stream is broken; it has a comment at least every 10 s."""
Document = dict[str, Any]


class NoViews(TaskflowError):
    """No views respond at their address, or they respond with an error."""

    retriable = True


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """One server-sent event of `ViewsClient.stream`.

    `id`: continue after it. `name`: `event` for a FlowEvent, whose fields are in `data`; or `ready`
    or `lost`.
    """

    id: str
    name: str
    data: Any


class ViewsClient:
    """A client of one view worker, which responds for all of them; made by `asking`."""

    def __init__(self, session: ClientSession, url: str) -> None:
        self.url = url
        self._session = session

    async def get(self, path: str, **query: str | int | None) -> Document:
        """Return the document at `/v1/{path}`; {} if it is not found. Raises NoViews."""
        asked = {name: str(value) for name, value in query.items() if value is not None}
        status, body = await self._ask(f"v1/{path}", asked)
        if status == 404 and body.get("code") == "not_found":
            return {}
        if status == 401:
            raise NoViews(
                f"The views at {self.url} want their read token: set TASKFLOW_VIEWS_READ_TOKEN."
            )
        if status != 200:
            raise NoViews(f"The views at {self.url} answered {status}: {_detail(body)}")
        return body

    async def post(self, path: str, body: Document, token: SecretStr, **query: str) -> Document:
        """Post `body` to `/v1/{path}` with `token`; return the response. Raises NoViews."""
        status, document = await self._ask(
            f"v1/{path}", query, body=orjson.dumps(body), headers=read_headers(token)
        )
        if status not in (200, 202):
            raise NoViews(f"The views at {self.url} refused ({status}): {_detail(document)}")
        return document

    async def stream(
        self, *, owner: str | None = None, last_event_id: str | None = None
    ) -> AsyncGenerator[StreamedEvent, None]:
        """Yield FlowEvents of one owner or of all as they arrive, from now on or after
        `last_event_id`. Raises NoViews when the stream ends."""
        from aiohttp import ClientError, ClientTimeout

        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        try:
            async with self._session.get(
                f"{self.url}/v1/stream",
                params={} if owner is None else {"owner": owner},
                headers=headers,
                allow_redirects=False,
                timeout=ClientTimeout(connect=KNOCK_S, sock_read=STREAM_SILENCE_S),
            ) as response:
                if response.status != 200:
                    raise NoViews(f"The views at {self.url} gave {response.status} for a stream.")
                pending = b""
                async for chunk in response.content.iter_any():
                    *blocks, pending = (pending + chunk).split(b"\n\n")
                    for block in blocks:
                        if (event := _streamed(block)) is not None:
                            yield event
        except (ClientError, TimeoutError, OSError, ValueError, LookupError) as error:
            raise NoViews(f"The stream of {self.url} has ended ({_why(error)}).") from None
        raise NoViews(f"The stream of {self.url} has ended.")

    async def are_of(self, settings: Settings) -> bool:
        """Whether the views show the topics of `settings`. Raises NoViews."""
        _, body = await self._ask("ready", {})
        ours = settings.bootstrap_servers, settings.topic_prefix
        return (body.get("brokers"), body.get("prefix")) == ours

    async def _ask(
        self,
        path: str,
        query: Mapping[str, str],
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Document]:
        from aiohttp import ClientError

        json = {} if body is None else {"Content-Type": "application/json"}
        try:
            # Proxies and redirects must not change where flows are read from.
            async with self._session.request(
                "GET" if body is None else "POST",
                f"{self.url}/{path}",
                params=query,
                data=body,
                headers={**json, **(headers or {})},
                allow_redirects=False,
            ) as response:
                return response.status, dict(orjson.loads(await response.read()))
        except (ClientError, TimeoutError, OSError, ValueError, TypeError) as error:
            raise NoViews(f"No views answer at {self.url} ({_why(error)}).") from None


@asynccontextmanager
async def asking(
    url: str, token: SecretStr | None = None, *, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[ViewsClient]:
    """Make a client of the views at `url`, with their read token; it sends no request yet."""
    from aiohttp import ClientSession, ClientTimeout

    timeout = ClientTimeout(total=timeout_s, connect=KNOCK_S)
    headers = read_headers(token)
    async with ClientSession(timeout=timeout, trust_env=False, headers=headers) as session:
        yield ViewsClient(session, url)


def read_headers(token: SecretStr | None) -> dict[str, str]:
    """The headers of a request with this read token."""
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}


def own_views_url(settings: Settings) -> str:
    """The address of views with these settings."""
    return f"http://{_reachable(settings.views_http)}"


def _reachable(address: Address) -> Address:
    """The address at which a local server that listens on all addresses is reached."""
    from processor.settings import Address

    anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return Address(anywhere.get(address.host, address.host), address.port)


def _why(error: BaseException) -> str:
    from aiohttp import ClientError

    if isinstance(error, TimeoutError):
        return "it took too long"
    if isinstance(error, ValueError | TypeError) and not isinstance(error, OSError | ClientError):
        return "that is no answer of theirs"
    inner = getattr(error, "os_error", error)
    errno = getattr(inner, "errno", None)
    # Python's message would repeat the address.
    return os.strerror(errno).lower() if errno and errno > 0 else str(inner) or repr(inner)


def _detail(body: Mapping[str, Any]) -> str:
    return str(body.get("detail") or body.get("title") or "without saying why")


def _streamed(block: bytes) -> StreamedEvent | None:
    """The event of a block of lines; None if it has none but comments or a retry interval."""
    fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
    if b"event" not in fields:
        return None
    return StreamedEvent(
        fields[b"id"].decode(), fields[b"event"].decode(), orjson.loads(fields[b"data"])
    )
