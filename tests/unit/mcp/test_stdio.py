"""The server on standard streams: what ends it."""

import asyncio
import os
import sys

import pytest

from processor.client.http.views_client import asking
from processor.mcp.flow_session import FlowSession
from processor.mcp.server import make_server
from processor.mcp.stdio_server import serve_stdio
from processor.mcp.tools.tool import Permission
from processor.settings import Settings
from tests.support.machine import patience


@pytest.mark.parametrize("how", ["signal", "end of input"])
async def test_a_server_whose_client_says_nothing_is_ended(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that waits for a line of standard input is not ended by a signal."""
    reads, writes = os.pipe()
    stop = asyncio.Event()
    with os.fdopen(reads) as stdin, os.fdopen(writes, "w") as client:
        monkeypatch.setattr(sys, "stdin", stdin)
        async with asking("http://127.0.0.1:1") as views:
            session = FlowSession(Settings(), views, owner="ann")
            serving = asyncio.create_task(serve_stdio(make_server(session, Permission.READ), stop))
            await asyncio.wait((serving,), timeout=0.05)
            assert not serving.done()
            if how == "signal":
                stop.set()
            else:
                client.close()
            async with asyncio.timeout(patience(5)):
                await serving
