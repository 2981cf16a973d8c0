"""The HTTP API in this process, over a view without Kafka."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from processor.views.model.read_model import ReadModel
from tests.support.recorded_deployment import Recorded
from tests.support.served_views import serving

Served = Callable[..., AbstractAsyncContextManager[tuple[ClientSession, ReadModel]]]


@pytest.fixture
def served(tmp_path: Path) -> Served:
    """A client of a view of what was recorded, and the view."""

    @asynccontextmanager
    async def client_and_view(
        recorded: Recorded, **options: Any
    ) -> AsyncIterator[tuple[ClientSession, ReadModel]]:
        async with serving(tmp_path, recorded, **options) as here:
            yield here.client, here.view

    return client_and_view
