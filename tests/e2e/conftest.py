"""The program beside a real broker, with topics of its own."""

from pathlib import Path

import pytest

from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
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
