"""`taskflow mcp`: serve flows to agents by the Model Context Protocol.

What the command needs is imported when it runs.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import typer

from processor.cli.common.runner import WrongUse, run_until_stopped, settings_and_logs
from processor.errors import ExtraMissing


def mcp(
    write: bool = typer.Option(
        False, "--write", help="Let flows of the session be started and changed, too."
    ),
    operator: bool = typer.Option(
        False,
        "--operator",
        help="Let all sessions' flows be cancelled and resumed; with --write.",
    ),
    owner: str | None = typer.Option(
        None, "--owner", help="The session to act as; TASKFLOW_MCP_OWNER, or this login and host."
    ),
    tools: str | None = typer.Option(
        None, "--tools", help="A file of tools whose work executors do; with --write."
    ),
    http: bool = typer.Option(
        False, "--http", help="Serve at TASKFLOW_MCP_HTTP, until SIGTERM, instead of on stdin."
    ),
    views: str | None = typer.Option(
        None, "--views", help="Where views are; those of TASKFLOW_VIEWS_HTTP unless given."
    ),
) -> None:
    """Serve flows to agents by the Model Context Protocol.

    A client starts it, such as an editor or a chat program, speaks to it on stdin and stdout, and
    ends it. Without --write it only shows. It acts as one session: a model cannot choose another.
    Flows are read from the views, so `taskflow up` or `taskflow views` must run.

    With --tools, each call of such a tool is a managed step of a flow, and a task of the protocol's
    Tasks extension: it goes on while server, client, worker or executor are killed and start again.

    Example: `taskflow mcp --write --owner my-agent`

    Settings: those of Kafka, `TASKFLOW_MCP_*`, TASKFLOW_VIEWS_HTTP, TASKFLOW_VIEWS_READ_TOKEN,
    TASKFLOW_VIEWS_OPERATOR_TOKEN, TASKFLOW_RETAIN_TERMINAL.
    """
    if (operator or tools is not None) and not write:
        raise WrongUse(f"{'--operator' if operator else '--tools'} needs --write.")
    try:
        from processor.cli.mcp.execute import McpChoice, serve_mcp
    except ModuleNotFoundError as missing:
        raise ExtraMissing(f"`taskflow mcp` needs {missing.name} of", "mcp") from None
    settings = settings_and_logs()
    chosen = McpChoice(
        write=write,
        operator=operator,
        owner=owner,
        tools=None if tools is None else Path(tools),
        views=views,
    )

    async def serve(stop: asyncio.Event) -> None:
        await serve_mcp(settings, chosen, stop, http=http)

    run_until_stopped(serve)
