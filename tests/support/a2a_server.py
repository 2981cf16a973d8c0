"""A replica of the words agent behind HTTP.

`python -m tests.support.a2a_server PORT LEASE_MS [--hangs]`
"""

import asyncio
import sys

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
    async with FlowAgent(
        "words", agent, CARD, lease_ms=lease_ms, max_attempts=ATTEMPTS_MAX
    ) as running:
        routes = [*create_jsonrpc_routes(running.handler, "/"), *create_agent_card_routes(CARD)]
        config = uvicorn.Config(
            Starlette(routes=routes), port=port, log_level="warning", lifespan="off"
        )
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), hangs="--hangs" in sys.argv))
