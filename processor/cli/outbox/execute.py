"""Run the outbox's relay for `taskflow outbox`, or print the table's DDL."""

import asyncio

from processor.cli.common.output import write_line
from processor.cli.common.service import database_dsn, run_service
from processor.contract.rights import Role
from processor.outbox.database import statements
from processor.outbox.relay import OutboxRelay
from processor.settings import Settings


def print_ddl() -> None:
    """Print the statements that create the table."""
    write_line(statements().rstrip().encode())


async def run_outbox(settings: Settings, dsn: str, stop: asyncio.Event, *, once: bool) -> None:
    """Relay until `stop` is set; with `once` until all rows have outcomes.

    Raises what `OutboxRelay.run` does, NotAuthorized, AddressInUse.
    """
    where = database_dsn(settings.outbox_dsn, dsn, "TASKFLOW_OUTBOX_DSN", "of the producer")
    await run_service(
        OutboxRelay(settings, where, follow=not once),
        settings,
        stop,
        role=Role.PRODUCER,
        http=None if once else settings.outbox_http,
        variable="TASKFLOW_OUTBOX_HTTP",
    )
