"""`taskflow outbox`: send commands from a producer's database, and write outcomes back.

What the command needs is imported when it runs.
"""

from __future__ import annotations

import asyncio

import typer

from processor.cli.common.options import ENDS_WITH_PARENT
from processor.cli.common.runner import run_until_stopped, settings_and_logs


def outbox(
    dsn: str = typer.Option(
        "-", "--dsn", metavar="DSN", help="The producer's PostgreSQL; - for TASKFLOW_OUTBOX_DSN."
    ),
    ddl: bool = typer.Option(
        False, "--ddl", help="Print the table's DDL for your own migrations, and end."
    ),
    once: bool = typer.Option(
        False, "--once", help="End when all rows have outcomes, instead of at SIGTERM."
    ),
    with_parent: bool = ENDS_WITH_PARENT,
) -> None:
    """Send commands from a producer's database, and write outcomes back.

    A producer inserts a command into taskflow_outbox in the transaction of its own rows, so that
    both are there or neither. The relay sends the rows to Kafka, those of one flow in order, and
    writes each outcome into its row: verdict, code, revision, status, allowed commands. A command
    is applied once, even if relay or database are killed. A row that is not a valid command is
    refused in the row and holds up no other row.

    The relay makes the table in TASKFLOW_OUTBOX_SCHEMA if it is missing, and deletes rows
    TASKFLOW_OUTBOX_RETAIN after their outcome. A second relay waits until the first has ended, and
    takes over at once. It needs the extra `postgres`, and the rights of `taskflow topics acls
    --role producer`. Other users of this machine can see --dsn: prefer the setting, or its file.

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

        await run_outbox(settings, dsn, stop, once=once)

    run_until_stopped(serve, with_parent=with_parent)
