"""Talk to a schema registry by the API of Confluent's registry, which others have, too."""

from base64 import b64encode
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, unquote, urlunsplit

import orjson

from processor.cli.common.runner import Refused, WrongUse
from processor.cli.common.service_address import http_address

if TYPE_CHECKING:
    from aiohttp import ClientSession

TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 5.0
JSON_TYPE: Final = "application/vnd.schemaregistry.v1+json"
KIND: Final = "JSON"
_HEADERS: Final = MappingProxyType({"Accept": JSON_TYPE, "Content-Type": JSON_TYPE})


class SchemaRegistry:
    """A registry at `url`, without its password; made by `connected`."""

    def __init__(self, session: "ClientSession", url: str) -> None:
        self._session = session
        self.url = url

    async def version_of(self, subject: str, schema: str) -> int | None:
        """The version of `schema` under `subject`; None if it is not registered. Raises Refused."""
        status, body = await self._ask("POST", f"subjects/{quote(subject, safe='')}", of(schema))
        if status == 404:
            return None
        return int(self._checked(subject, status, body)["version"])

    async def exists(self, subject: str) -> bool:
        """Whether `subject` has any version. Raises Refused."""
        status, body = await self._ask("GET", f"subjects/{quote(subject, safe='')}/versions/latest")
        if status == 404:
            return False
        self._checked(subject, status, body)
        return True

    async def fits(self, subject: str, schema: str) -> bool:
        """Whether `schema` may be the next version of `subject`, by its present level. Raises
        Refused."""
        path = f"compatibility/subjects/{quote(subject, safe='')}/versions/latest"
        status, body = await self._ask("POST", path, of(schema))
        return bool(self._checked(subject, status, body)["is_compatible"])

    async def level(self, subject: str) -> str | None:
        """The compatibility level of `subject` itself. Raises Refused."""
        status, body = await self._ask("GET", f"config/{quote(subject, safe='')}")
        if status == 404:
            return None
        found = self._checked(subject, status, body).get("compatibilityLevel")
        return None if found is None else str(found)

    async def set_level(self, subject: str, level: str) -> None:
        """Set the compatibility level of `subject`. Raises Refused."""
        path = f"config/{quote(subject, safe='')}"
        self._checked(subject, *await self._ask("PUT", path, {"compatibility": level}))

    async def register(self, subject: str, schema: str) -> int:
        """Register `schema` as the next version unless it is registered; return its id. Raises
        Refused."""
        path = f"subjects/{quote(subject, safe='')}/versions"
        return int(self._checked(subject, *await self._ask("POST", path, of(schema)))["id"])

    def _checked(self, subject: str, status: int, body: Any) -> Mapping[str, Any]:
        if status != 200 or not isinstance(body, dict):
            said = body.get("message") if isinstance(body, dict) else None
            raise Refused(
                f"The registry at {self.url} refused {subject} ({status}"
                + (f": {str(said).rstrip('.')}" if said else "")
                + ")."
            )
        return body

    async def _ask(
        self, method: str, path: str, body: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        from aiohttp import ClientError

        try:
            async with self._session.request(
                method,
                f"{self.url}/{path}",
                data=None if body is None else orjson.dumps(body),
                allow_redirects=False,
            ) as response:
                content = await response.read()
        except (ClientError, TimeoutError, OSError) as error:
            why = "it took too long" if isinstance(error, TimeoutError) else str(error)
            raise Refused(f"No schema registry responds at {self.url} ({why}).") from None
        try:
            return response.status, orjson.loads(content)
        except orjson.JSONDecodeError:
            return response.status, None


def of(schema: str) -> dict[str, str]:
    """The body of a request about `schema`."""
    return {"schema": schema, "schemaType": KIND}


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[SchemaRegistry]:
    """Make the client of the registry at `url`, which may hold `user:password@`; it connects at the
    first request. Raises WrongUse."""
    from aiohttp import ClientSession, ClientTimeout

    parts = http_address(url)
    if parts is None:
        raise WrongUse("--registry is no address such as https://registry.example:8081.")
    headers = dict(_HEADERS)
    if parts.username is not None:
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {b64encode(user.encode()).decode()}"
    where = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    timeout = ClientTimeout(total=TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    async with ClientSession(timeout=timeout, headers=headers) as session:
        yield SchemaRegistry(session, where.rstrip("/"))
