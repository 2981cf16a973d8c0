"""`taskflow outbox`: send commands that a producer writes into its own database.

What the command needs is imported when it runs.
"""

from __future__ import annotations

import asyncio

import typer

from processor.cli.common.runner import run_until_stopped, settings_and_logs, stop_with_parent


def outbox(
    dsn: str = typer.Option(
        "-", "--dsn", metavar="DSN", help="The producer's PostgreSQL; - for TASKFLOW_OUTBOX_DSN."
    ),
    ddl: bool = typer.Option(
        False, "--ddl", help="Only print the table's DDL, for your own migrations."
    ),
    once: bool = typer.Option(
        False, "--once", help="End when all rows have outcomes; else it goes on until SIGTERM."
    ),
    with_parent: bool = typer.Option(
        False, "--with-parent", hidden=True, help="Stop when standard input ends."
    ),
) -> None:
    """Send commands that a producer writes into its own database.

    A producer inserts a command into taskflow_outbox in the transaction of its own rows: both are
    there, or neither. The relay sends rows to Kafka, those of a flow in their order, and writes
    each outcome back into its row: verdict, code, revision, status, what is allowed next. A command
    is applied once, whenever the relay or the database is killed. A row that no processor could
    read as a command is refused in the row, and holds up no other.

    The table is made in TASKFLOW_OUTBOX_SCHEMA when it is missing. Rows with an outcome are deleted
    TASKFLOW_OUTBOX_RETAIN later. Start a second relay to take over at once: it waits until the
    first has ended. It needs the extra `postgres`, and the rights of `taskflow topics acls --role
    producer`. Others of this machine may see --dsn: prefer the setting, or its file.

    Example: `TASKFLOW_OUTBOX_DSN=postgresql://taskflow@db/shop taskflow outbox`

    Settings: those of Kafka, TASKFLOW_DEDUPE_WINDOW, `TASKFLOW_OUTBOX_*`, TASKFLOW_HTTP_HOSTS.
    """
    if ddl:
        from processor.cli.outbox.execute import print_ddl

        print_ddl()
        return
    settings = settings_and_logs()

    async def serve(stop: asyncio.Event) -> None:
        from processor.cli.outbox.execute import run_outbox

        if with_parent:
            stop_with_parent(stop)
        await run_outbox(settings, dsn, stop, once=once)

    run_until_stopped(serve)
