"""The program beside a real broker, with topics of its own; and one Chromium for the session."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.browser import chromium
from tests.support.cli_runner import Shell


@pytest.fixture
def settings(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> Settings:
    return Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=2,
        state_dir=tmp_path / "state",
        http=None,
    )


@pytest.fixture
def taskflow(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    return Shell(settings, monkeypatch, capsys)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """For tests on the session's loop, which is the browser's."""
    async with chromium() as running:
        yield running
