"""Serve MCP on standard input and output, until either the client or a signal ends it."""

import asyncio
import sys
from typing import Any, Final, Self, cast

from anyio import AsyncFile
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

from processor.runtime import unless_stopped

LINE_MAX_BYTES: Final = 16 * 1024 * 1024
"""Limit of one message; a longer one ends the server."""


class StandardInput:
    """The lines of standard input. The SDK's own reader waits for a line in a thread, which no
    signal ends."""

    def __init__(self, reader: asyncio.StreamReader, transport: asyncio.ReadTransport) -> None:
        self._reader = reader
        self._transport = transport

    def close(self) -> None:
        self._transport.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        line = await self._reader.readline()
        if not line:
            raise StopAsyncIteration
        return line.decode("utf-8", "replace")


async def serve_stdio(server: Server[Any], stop: asyncio.Event) -> None:
    """Serve until `stop` is set, or standard input ends."""
    stdin = await _standard_input()

    async def speak() -> None:
        async with stdio_server(stdin=cast("AsyncFile[str] | None", stdin)) as (read, write):
            await server.run(read, write, server.create_initialization_options())

    try:
        await unless_stopped(speak(), stop)
    finally:
        if stdin is not None:
            stdin.close()


async def _standard_input() -> StandardInput | None:
    """Open standard input as a pipe; None if it is a file, which the SDK can read to its end."""
    reader = asyncio.StreamReader(limit=LINE_MAX_BYTES)
    protocol = asyncio.StreamReaderProtocol(reader)
    try:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.connect_read_pipe(lambda: protocol, sys.stdin)
    except (ValueError, OSError):
        return None
    return StandardInput(reader, transport)
