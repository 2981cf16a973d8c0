"""A replica of the words agent behind HTTP.

`python -m tests.support.a2a_server PORT LEASE_MS [--hangs]`
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from starlette.applications import Starlette

from processor.a2a import FlowAgent
from tests.support.a2a_agent import CARD, WordsAgent

ATTEMPTS_MAX = 100


async def serve(port: int, lease_ms: int, *, hangs: bool) -> None:
    """Serve until a signal; `hangs`: the word `wait` never ends here."""
    agent = WordsAgent()
    if not hangs:
        agent.go_on.set()
    running = FlowAgent("words", agent, CARD, lease_ms=lease_ms, max_attempts=ATTEMPTS_MAX)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        # Within it, so that uvicorn lets it end before it passes a signal on.
        async with running:
            yield
            print("draining", flush=True)
        print("drained", flush=True)

    routes = [*create_jsonrpc_routes(running.handler, "/"), *create_agent_card_routes(CARD)]
    app = Starlette(routes=routes, lifespan=lifespan)
    await uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning")).serve()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), hangs="--hangs" in sys.argv))
