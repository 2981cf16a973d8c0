"""Serve the API, the page, health and metrics of a view worker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from processor.contract.values import COMMAND_MAX_BYTES
from processor.settings import Address
from processor.telemetry.health_server import Report, Scraped, health_routes, listening
from processor.views import openapi
from processor.views.api import Api
from processor.views.problem_details import say_problems
from processor.views.static_files import page_routes

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
    address: Address, api: Api, *, report: Report, metrics: Scraped
) -> AsyncIterator[Address]:
    """Serve until the block ends; the address that is really listened on. Raises AddressInUse."""
    document = openapi.text().encode()

    async def describe(_: web.Request) -> web.Response:
        return web.Response(body=document, content_type="application/json")

    app = web.Application(client_max_size=COMMAND_MAX_BYTES, middlewares=[say_problems])
    app.on_response_prepare.append(_protect)
    app.add_routes(api.routes())
    app.add_routes(health_routes(report, metrics))
    app.add_routes([web.get("/openapi.json", describe), *page_routes()])
    async with listening(app, address, "TASKFLOW_VIEWS_HTTP to another address") as where:
        yield where
