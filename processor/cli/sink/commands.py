"""`taskflow sink`: write what happens to flows into a database.

What the command needs is imported when it runs.
"""

from __future__ import annotations

import asyncio

import typer

from processor.cli.common.options import ENDS_WITH_PARENT
from processor.cli.common.runner import run_until_stopped, settings_and_logs

app = typer.Typer(
    help="Write flows, steps and events into PostgreSQL as they come.", no_args_is_help=True
)


@app.callback()
def _group() -> None:
    """Write flows, steps and events into PostgreSQL as they come."""


@app.command("postgres")
def postgres(
    once: bool = typer.Option(
        False, "--once", help="Write what is there, and end; else it goes on until SIGTERM."
    ),
    with_parent: bool = ENDS_WITH_PARENT,
) -> None:
    """Write the audit into PostgreSQL: flows, steps and events as rows.

    TASKFLOW_SINK_DSN, or the file that TASKFLOW_SINK_DSN_FILE names, says where to. The tables
    taskflow_flows, taskflow_steps, taskflow_events and taskflow_positions are made in
    TASKFLOW_SINK_SCHEMA when they are missing. Rows and positions are one transaction: whenever it
    is stopped or killed, it goes on without a loss or a repeat. A gap in the audit is refused.
    Start a second one to take over at once: it waits until the first has ended.

    `taskflow verify --sink` compares the tables with the topics. It needs the extra `postgres`, and
    the rights of `taskflow topics acls --role consumer`.

    Example: `TASKFLOW_SINK_DSN=postgresql://taskflow@db/analytics taskflow sink postgres`

    Settings: those of Kafka, `TASKFLOW_SINK_*`, TASKFLOW_HTTP_HOSTS.
    """
    settings = settings_and_logs()

    async def serve(stop: asyncio.Event) -> None:
        from processor.cli.sink.execute import run_sink

        await run_sink(settings, stop, once=once)

    run_until_stopped(serve, with_parent=with_parent)
