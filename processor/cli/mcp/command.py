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
        False, "--write", help="Add tools that start and change flows of the session."
    ),
    operator: bool = typer.Option(
        False,
        "--operator",
        help="Add operators' tools, for flows of all sessions; needs --write.",
    ),
    owner: str | None = typer.Option(
        None, "--owner", help="The session; by default TASKFLOW_MCP_OWNER, or login and host."
    ),
    tools: str | None = typer.Option(
        None, "--tools", help="A file of tools that executors do; needs --write."
    ),
    http: bool = typer.Option(
        False, "--http", help="Serve at TASKFLOW_MCP_HTTP until SIGTERM, instead of on stdin."
    ),
    views: str | None = typer.Option(
        None, "--views", help="The views' address; by default TASKFLOW_VIEWS_HTTP."
    ),
) -> None:
    """Serve flows to agents by the Model Context Protocol.

    An MCP client, such as an editor or a chat program, starts it and talks to it on stdin and
    stdout. Without --write its tools only read. It acts as one session, which a model cannot
    change. It reads flows from the views, so `taskflow up` or `taskflow views` must run.

    With --tools, a call of a tool is a managed step of a flow, and a task of MCP's Tasks extension.
    It survives a restart of server, client, worker and executor.

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
