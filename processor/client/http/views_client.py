"""Ask the views over HTTP: flows, histories, and events as they come.

It needs aiohttp, of the extra `cli`, once something is asked.
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
"""How long a connection may take: views that are near answer at once, or are not there."""
STREAM_SILENCE_S: Final = 30.0
"""A stream has a comment at least every 10 s; one that is silent for so long is broken."""
Document = dict[str, Any]


class NoViews(TaskflowError):
    """No views answer where they were looked for."""

    retriable = True


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """One server-sent event of `ViewsClient.stream`: `id` goes on behind it, `name` is `event` for
    a FlowEvent, whose fields `data` has, `ready` or `lost`."""

    id: str
    name: str
    data: Any


class ViewsClient:
    """Asks one view worker, which answers for all; made by `asking`."""

    def __init__(self, session: ClientSession, url: str) -> None:
        self.url = url
        self._session = session

    async def get(self, path: str, **query: str | int | None) -> Document:
        """The answer at `/v1/{path}`. Raises NoViews; what there is nothing of is {}."""
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
        """The response of `/v1/{path}` to a body, sent with this token. Raises NoViews."""
        status, document = await self._ask(
            f"v1/{path}", query, body=orjson.dumps(body), headers=read_headers(token)
        )
        if status not in (200, 202):
            raise NoViews(f"The views at {self.url} refused ({status}): {_detail(document)}")
        return document

    async def stream(
        self, *, owner: str | None = None, last_event_id: str | None = None
    ) -> AsyncGenerator[StreamedEvent, None]:
        """Give FlowEvents as they come, of one owner or of all, from now on or behind
        `last_event_id`. Raises NoViews once the stream has ended."""
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
        """Whether they show the topics that `settings` name. Raises NoViews."""
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
            # Neither a proxy nor a redirect has a say in where flows are read from.
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
    """Views at `url`, with their read token if they want one; nothing is asked yet."""
    from aiohttp import ClientSession, ClientTimeout

    timeout = ClientTimeout(total=timeout_s, connect=KNOCK_S)
    headers = read_headers(token)
    async with ClientSession(timeout=timeout, trust_env=False, headers=headers) as session:
        yield ViewsClient(session, url)


def read_headers(token: SecretStr | None) -> dict[str, str]:
    """What a request to views carries that want this read token."""
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}


def own_views_url(settings: Settings) -> str:
    """Where views with these settings would listen."""
    return f"http://{_reachable(settings.views_http)}"


def _reachable(address: Address) -> Address:
    """Who listens everywhere is found here."""
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
    # Python's own words for it name the address once more.
    return os.strerror(errno).lower() if errno and errno > 0 else str(inner) or repr(inner)


def _detail(body: Mapping[str, Any]) -> str:
    return str(body.get("detail") or body.get("title") or "without saying why")


def _streamed(block: bytes) -> StreamedEvent | None:
    """The event of a block of lines; None where it holds none: comments, how soon to reconnect."""
    fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
    if b"event" not in fields:
        return None
    return StreamedEvent(
        fields[b"id"].decode(), fields[b"event"].decode(), orjson.loads(fields[b"data"])
    )
