"""Run the sink for `taskflow sink postgres`."""

import asyncio

from processor.cli.common.service import FROM_SETTING, database_dsn, run_service
from processor.contract.rights import Role
from processor.settings import Settings
from processor.sink.sink import PostgresSink


def sink_dsn(settings: Settings, given: str = FROM_SETTING) -> str:
    """The address of the sink's PostgreSQL. Raises WrongUse if there is none."""
    return database_dsn(settings.sink_dsn, given, "TASKFLOW_SINK_DSN", "of the sink")


async def run_sink(settings: Settings, stop: asyncio.Event, *, once: bool) -> None:
    """Write until `stop` is set; with `once` only what was there at the start.

    Raises what `PostgresSink.run` does, NotAuthorized, AddressInUse.
    """
    sink = PostgresSink(settings, sink_dsn(settings), follow=not once)
    await run_service(
        sink,
        settings,
        stop,
        role=Role.CONSUMER,
        http=None if once else settings.sink_http,
        variable="TASKFLOW_SINK_HTTP",
    )
