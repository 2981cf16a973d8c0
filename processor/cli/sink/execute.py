"""Run the sink for `taskflow sink postgres`, with its health server."""

import asyncio
from typing import Any, Final

from processor.adapters.kafka.access.authorization import ensure_rights
from processor.adapters.kafka.reader.record_decoder import read_any_record
from processor.cli.sink.dsn import sink_dsn
from processor.contract.rights import Role
from processor.runtime import unless_stopped
from processor.settings import Settings
from processor.sink.sink import PostgresSink
from processor.telemetry.health_server import serve

OTHERWISE: Final = "TASKFLOW_SINK_HTTP to another address, or to off"


async def run_sink(settings: Settings, stop: asyncio.Event, *, once: bool) -> None:
    """Write until `stop` is set; with `once` only what was there at the start.

    Raises what `PostgresSink.run` does, NotAuthorized, AddressInUse.
    """
    sink = PostgresSink(settings, sink_dsn(settings), follow=not once)
    read_any_record()

    async def started() -> bool:
        await ensure_rights(settings, Role.CONSUMER)
        return True

    if not await unless_stopped(started(), stop):
        return

    async def report() -> dict[str, Any]:
        return sink.report()

    async def scraped() -> bytes:
        return sink.metrics.text()

    async with serve(
        None if once else settings.sink_http,
        report=report,
        metrics=scraped,
        hosts=settings.http_hosts,
        otherwise=OTHERWISE,
    ):
        await sink.run(stop)
