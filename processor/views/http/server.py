"""Serve the API, the page, health and metrics of a view worker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from processor.contract.values import COMMAND_MAX_BYTES
from processor.settings import Address, Settings
from processor.telemetry.health_server import VIEWS_OTHERWISE, Report, Scraped, health_routes
from processor.telemetry.http.hosts import HostPolicy
from processor.telemetry.http.limits import HttpLimits
from processor.telemetry.http.server import listening
from processor.views.http import openapi
from processor.views.http.api import Api
from processor.views.http.problem_details import problem_of
from processor.views.http.static_files import page_routes

OTHER_CONNECTIONS: Final = 384
"""As many for requests that wait for events (128), for queries, and for clients that idle."""


def limits_of(settings: Settings) -> HttpLimits:
    """What clients of a view worker may take."""
    return HttpLimits(
        connections=settings.views_streams + OTHER_CONNECTIONS,
        body_bytes=COMMAND_MAX_BYTES,
    )


@asynccontextmanager
async def serve(
    address: Address,
    api: Api,
    *,
    limits: HttpLimits,
    hosts: HostPolicy,
    report: Report,
    metrics: Scraped,
) -> AsyncIterator[Address]:
    """Serve until the block ends; the address that is really listened on. Raises AddressInUse.

    Probes and scrapers need no read token; without it, `/ready` tells them no more than that.
    """
    document = openapi.text().encode()

    async def describe(_: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    app = web.Application(middlewares=[api.readers.middleware])
    app.add_routes(api.routes())
    app.add_routes(health_routes(report, metrics, may_see_all=api.readers.may_read))
    app.add_routes([web.get("/openapi.json", describe), *page_routes()])
    async with listening(
        app,
        address,
        VIEWS_OTHERWISE,
        limits=limits,
        hosts=hosts,
        problem_of=problem_of,
    ) as where:
        yield where
