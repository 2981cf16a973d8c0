"""What the tests of a partition's owner share, and what holds for all of this folder."""

from pathlib import Path

import pytest
import structlog

from processor.client.http import views_client
from processor.partition import processor as partition
from tests.support.machine import patience
from tests.support.scripted_ports import Stage

# What a test logs is read when it fails: in plain lines, for structlog's own way of showing an
# error takes longer than most tests.
structlog.configure(
    processors=[
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["level", "event"]),
    ]
)

# Views in the process of a test answer a client there once the process gets a core.
views_client.KNOCK_S = patience(10.0)  # type: ignore[misc]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """An empty partition; after an error its owners begin again at once."""
    monkeypatch.setattr(partition, "BACKOFF_MIN_S", 0.0)
    return Stage(tmp_path / "state")
