"""The HTTP API in this process, over a view without Kafka."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from processor.settings import Address, Settings
from processor.views.api import Api
from processor.views.command_endpoint import CommandEndpoint
from processor.views.consumer_group import WorkerGroup
from processor.views.peers import Peers
from processor.views.read_model import ReadModel
from processor.views.server import serve
from tests.support.read_model_harness import view_of
from tests.support.recorded_deployment import Recorded

Served = Callable[..., AbstractAsyncContextManager[tuple[ClientSession, ReadModel]]]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """A client of a view of what was recorded, and the view."""

    @asynccontextmanager
    async def serving(
        recorded: Recorded, **options: Any
    ) -> AsyncIterator[tuple[ClientSession, ReadModel]]:
        settings = Settings(
            partitions=recorded.partitions,
            state_dir=tmp_path,
            bootstrap_servers="127.0.0.1:1",
            **options,
        )
        async with view_of(tmp_path / "views ?#%41", recorded) as view:
            peers = Peers("http://here", dict)
            group, commands = WorkerGroup(settings), CommandEndpoint(settings)
            api = Api(settings, view, peers, group=group, commands=commands)

            async def report() -> dict[str, Any]:
                return {"ready": view.ready()}

            async def scraped() -> bytes:
                return view.metrics.text()

            try:
                async with (
                    serve(
                        Address("127.0.0.1", 0),
                        api,
                        report=report,
                        metrics=scraped,
                    ) as address,
                    ClientSession(f"http://{address}") as client,
                ):
                    yield client, view
            finally:
                await commands.close()
                await group.close()
                await peers.close()

    return serving
