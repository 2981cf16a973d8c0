"""Serve MCP by streamable HTTP, with a token."""

import asyncio
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.transport_security import TransportSecuritySettings
from pydantic import SecretStr
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from processor.runtime import end_tasks
from processor.settings import Address, BadSetting
from processor.telemetry.http.held_address import held
from processor.telemetry.http.hosts import is_loopback

PATH = "/mcp"
GRACE_S = 5
"""Seconds that running requests get when the server stops."""


class TokenRequired:
    """Passes on requests that carry the bearer token; others get 401."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._expected):
                refused = PlainTextResponse(
                    "Send the token of TASKFLOW_MCP_TOKEN as `Authorization: Bearer …`.",
                    status_code=401,
                    headers={"WWW-Authenticate": "Bearer"},
                )
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Uvicorn(uvicorn.Server):
    """A server that leaves signals to the program."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def own_names_only(host: str) -> TransportSecuritySettings | None:
    """Refuse requests that name another host than `host`, if that is of the loopback interface.

    There no token is needed, and a page whose name is made to resolve to it (DNS rebinding) could
    ask. The SDK refuses them itself only where `host` is one of its three names.
    """
    if not is_loopback(host):
        return None
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host}
    allowed = sorted(name + port for name in names for port in ("", ":*"))
    return TransportSecuritySettings(
        allowed_hosts=allowed, allowed_origins=[f"http://{name}" for name in allowed]
    )


async def serve_http(
    server: Server[Any],
    address: Address,
    token: SecretStr | None,
    stop: asyncio.Event,
    *,
    otherwise: str,
    on_ready: Callable[[str], None],
) -> None:
    """Serve until `stop` is set; `on_ready` gets the URL.

    Raises AddressInUse (`otherwise`: what to set then), and BadSetting for an address that others
    reach without a token.
    """
    if token is None and not is_loopback(address.host):
        raise BadSetting(
            f"TASKFLOW_MCP_HTTP is {address}, which other machines reach. Set TASKFLOW_MCP_TOKEN."
        )
    app: ASGIApp = server.streamable_http_app(
        host=address.host,
        streamable_http_path=PATH,
        stateless_http=True,
        transport_security=own_names_only(address.host),
    )
    if token is not None:
        app = TokenRequired(app, token.get_secret_value())
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=GRACE_S,
    )
    serving = _Uvicorn(config)
    with held(address, otherwise) as listening:
        host, port = listening.getsockname()[:2]
        running = asyncio.create_task(serving.serve(sockets=[listening]))
        stopping = asyncio.create_task(stop.wait())
        try:
            on_ready(f"http://{Address(host, port)}{PATH}")
            await asyncio.wait((running, stopping), return_when=asyncio.FIRST_COMPLETED)
            serving.should_exit = True
            await running
        finally:
            await end_tasks(running, stopping)
