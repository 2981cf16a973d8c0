"""Serve liveness, readiness and metrics over HTTP."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from processor.engine.codec import encode
from processor.errors import TaskflowError
from processor.settings import Address

if TYPE_CHECKING:
    from aiohttp import web

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Report = Callable[[], Awaitable[dict[str, Any]]]
Scraped = Callable[[], Awaitable[bytes]]


class AddressInUse(TaskflowError):
    """Somebody else listens where the worker must; it was not started."""


@asynccontextmanager
async def serve(
    address: Address | None, *, report: Report, metrics: Scraped
) -> AsyncIterator[Address | None]:
    """Serve a worker's health until the block ends; the address that is really listened on.

    Raises AddressInUse.
    """
    if address is None:
        yield None
        return
    # Here, since it takes a sixth of a worker's start.
    from aiohttp import web

    app = web.Application()
    app.add_routes(health_routes(report, metrics))
    async with listening(app, address, "TASKFLOW_HTTP to another address, or to off") as where:
        yield where


def health_routes(report: Report, metrics: Scraped) -> "list[web.RouteDef]":
    """`/live`; `/ready`, which answers with `report()`, 503 unless it says `ready`; `/metrics`,
    with `metrics()` in the exposition format."""
    from aiohttp import web

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(_: web.Request) -> web.Response:
        body = await report()
        return web.Response(
            body=encode(body),
            status=200 if body["ready"] else 503,
            content_type="application/json",
        )

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=await metrics(), headers={"Content-Type": METRICS_TYPE})

    return [web.get("/live", live), web.get("/ready", ready), web.get("/metrics", scrape)]


@asynccontextmanager
async def listening(
    app: "web.Application", address: Address, otherwise: str
) -> AsyncIterator[Address]:
    """Serve `app` until the block ends; the address that is really listened on.

    Raises AddressInUse; `otherwise`: what to set then, and to what.
    """
    from aiohttp import web

    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        site = web.TCPSite(runner, address.host, address.port)
        try:
            await site.start()
        except OSError as error:
            raise AddressInUse(
                f"Cannot listen on {address} ({error.strerror or error}); set {otherwise}."
            ) from None
        host, port, *_ = runner.addresses[0]
        yield Address(host, port)
    finally:
        await runner.cleanup()
