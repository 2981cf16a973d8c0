"""Ask the views over HTTP."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson

from processor.cli.common.runner import WrongUse
from processor.errors import TaskflowError

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from pydantic import SecretStr

    from processor.settings import Address, Settings

TIMEOUT_S: Final = 5.0
KNOCK_S: Final = 1.0
"""How long a connection may take: views that are near answer at once, or are not there."""
Document = dict[str, Any]


class NoViews(TaskflowError):
    """No views answer where they were looked for."""

    retriable = True


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

    async def are_of(self, settings: Settings) -> bool:
        """Whether they show the topics that `settings` name. Raises NoViews."""
        _, body = await self._ask("ready", {})
        ours = settings.bootstrap_servers, settings.topic_prefix
        return (body.get("brokers"), body.get("prefix")) == ours

    async def _ask(self, path: str, query: Mapping[str, str]) -> tuple[int, Document]:
        from aiohttp import ClientError

        try:
            # Neither a proxy nor a redirect has a say in where flows are read from.
            async with self._session.get(
                f"{self.url}/{path}", params=query, allow_redirects=False
            ) as response:
                return response.status, dict(orjson.loads(await response.read()))
        except (ClientError, TimeoutError, OSError, ValueError, TypeError) as error:
            raise NoViews(f"No views answer at {self.url} ({_why(error)}).") from None


@asynccontextmanager
async def asking(url: str, token: SecretStr | None = None) -> AsyncIterator[ViewsClient]:
    """Views at `url`, with their read token if they want one; nothing is asked yet."""
    from aiohttp import ClientSession, ClientTimeout

    timeout = ClientTimeout(total=TIMEOUT_S, connect=KNOCK_S)
    headers = read_headers(token)
    async with ClientSession(timeout=timeout, trust_env=False, headers=headers) as session:
        yield ViewsClient(session, url)


def read_headers(token: SecretStr | None) -> dict[str, str]:
    """What a request to views carries that want this read token."""
    return {} if token is None else {"Authorization": f"Bearer {token.get_secret_value()}"}


def views_url(settings: Settings, given: str | None = None) -> str:
    """Where views are: as `given`, `host:port` or a URL, or where ours would listen. Raises
    WrongUse."""
    if given is None:
        return f"http://{_reachable(settings.views_http)}"
    url = given if "://" in given else f"http://{given}"
    parts = urlsplit(url)
    try:
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fits = False
    if not fits or parts.query or parts.fragment:
        raise WrongUse(f"--views is {given!r}, which is no address such as http://127.0.0.1:8901.")
    return url.rstrip("/")


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
