"""What a view worker serves: the API, the page, its health and its metrics."""

import hashlib
import mimetypes
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from aiohttp import web

from processor.http import METRICS_TYPE, AddressInUse
from processor.settings import Address
from processor.views import openapi
from processor.views.api import Api
from processor.views.metrics import ViewMetrics
from processor.views.problems import Problem, say_problems
from schemas.values import COMMAND_MAX_BYTES

STATIC: Final = Path(__file__).parent / "static"
INDEX: Final = "index.html"
CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.setdefault("Cache-Control", "no-store")


class Page:
    """The page's files, by name. Read anew when one changes, so that nobody restarts for a look."""

    def __init__(self, folder: Path = STATIC) -> None:
        self._folder = folder

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Raises Problem."""
        name = request.match_info.get("name", INDEX)
        path = self._folder / name
        if path.resolve().parent != self._folder.resolve() or not path.is_file():
            raise Problem("not_found", "The page has no such file.")
        body = path.read_bytes()
        etag = hashlib.blake2b(body, digest_size=12).hexdigest()
        headers = {"Cache-Control": "no-cache"}
        wanted = request.if_none_match or ()
        if any(tag.value in (etag, "*") for tag in wanted):
            response = web.Response(status=304, headers=headers)
        else:
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            charset = "utf-8" if kind.startswith("text/") or kind.endswith("javascript") else None
            response = web.Response(body=body, content_type=kind, charset=charset, headers=headers)
        response.etag = etag
        return response


@asynccontextmanager
async def serve(
    address: Address,
    api: Api,
    *,
    report: Callable[[], dict[str, Any]],
    metrics: ViewMetrics,
    static: Path = STATIC,
) -> AsyncIterator[Address]:
    """Serve until the block ends; the address that is really listened on.

    `/ready` answers with `report()`, 503 unless it says `ready`. Raises AddressInUse.
    """
    document = openapi.text().encode()
    page = Page(static)

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        body = report()
        return web.Response(
            body=orjson.dumps(body),
            status=200 if body["ready"] else 503,
            content_type="application/json",
        )

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": METRICS_TYPE})

    async def describe(_: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    app = web.Application(client_max_size=COMMAND_MAX_BYTES, middlewares=[say_problems])
    app.on_response_prepare.append(_protect)
    app.add_routes(api.routes())
    app.add_routes(
        [
            web.get("/live", live),
            web.get("/ready", ready),
            web.get("/metrics", scrape),
            web.get("/openapi.json", describe),
            web.get("/", page.serve),
            web.get("/{name}", page.serve),
            web.get("/static/{name}", page.serve),
        ]
    )
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address.host, address.port)
        try:
            await site.start()
        except OSError as error:
            raise AddressInUse(
                f"Cannot listen on {address} ({error.strerror or error}); set TASKFLOW_VIEWS_HTTP "
                "to another address."
            ) from None
        host, port, *_ = runner.addresses[0]
        yield Address(host, port)
    finally:
        await runner.cleanup()
