"""Serve liveness, readiness and metrics over HTTP."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from processor.engine.encoding import encode
from processor.settings import Address

if TYPE_CHECKING:
    from aiohttp import web

METRICS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OTHERWISE: Final = "TASKFLOW_HTTP to another address, or to off"
SIGNALS_OTHERWISE: Final = "TASKFLOW_SIGNALS_HTTP to another address, or to off"
VIEWS_OTHERWISE: Final = "TASKFLOW_VIEWS_HTTP to another address"
CONNECTIONS_MAX: Final = 64
"""Of a worker's health server: probes, scrapers, and a person."""

Report = Callable[[], Awaitable[dict[str, Any]]]
Scraped = Callable[[], Awaitable[bytes]]


@asynccontextmanager
async def serve(
    address: Address | None,
    *,
    report: Report,
    metrics: Scraped,
    hosts: Iterable[str] = (),
    otherwise: str = OTHERWISE,
) -> AsyncIterator[Address | None]:
    """Serve a process's health until the block ends; the address that is really listened on.

    `hosts`: the names that requests may ask for, beside the address and the loopback names;
    `otherwise`: what to set if the address is taken, and to what.
    Raises AddressInUse.
    """
    if address is None:
        yield None
        return
    # Here, since it takes a sixth of a worker's start.
    from aiohttp import web

    from processor.telemetry.http.hosts import HostPolicy
    from processor.telemetry.http.limits import HttpLimits
    from processor.telemetry.http.server import listening

    app = web.Application()
    app.add_routes(health_routes(report, metrics))
    async with listening(
        app,
        address,
        otherwise,
        limits=HttpLimits(connections=CONNECTIONS_MAX),
        hosts=HostPolicy(hosts),
    ) as where:
        yield where


def health_routes(
    report: Report,
    metrics: Scraped,
    *,
    may_see_all: "Callable[[web.Request], bool]" = lambda _: True,
) -> "list[web.RouteDef]":
    """`/live`; `/ready`, which answers with `report()`, 503 unless it says `ready`; `/metrics`,
    with `metrics()` in the exposition format. `may_see_all`: whether a request may see more of the
    report than `ready`."""
    from aiohttp import web

    async def live(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(request: web.Request) -> web.Response:
        body = await report()
        if not may_see_all(request):
            body = {"ready": body["ready"]}
        return web.Response(
            body=encode(body),
            status=200 if body["ready"] else 503,
            content_type="application/json",
        )

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=await metrics(), headers={"Content-Type": METRICS_TYPE})

    return [web.get("/live", live), web.get("/ready", ready), web.get("/metrics", scrape)]
