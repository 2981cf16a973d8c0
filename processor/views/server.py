"""What a view worker serves: the API, the page, its health and its metrics."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import orjson
from aiohttp import web

from processor.http import METRICS_TYPE, AddressInUse
from processor.settings import Address
from processor.views import openapi
from processor.views.api import Api
from processor.views.metrics import ViewMetrics
from processor.views.page import page_routes
from processor.views.problems import say_problems
from schemas.values import COMMAND_MAX_BYTES

# What the page asks for is in page.py.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)


@asynccontextmanager
async def serve(
    address: Address,
    api: Api,
    *,
    report: Callable[[], dict[str, Any]],
    metrics: ViewMetrics,
) -> AsyncIterator[Address]:
    """Serve until the block ends; the address that is really listened on.

    `/ready` answers with `report()`, 503 unless it says `ready`. Raises AddressInUse.
    """
    document = openapi.text().encode()

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
            *page_routes(),
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
