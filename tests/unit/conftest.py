"""What the tests of a partition's owner share."""

from pathlib import Path

import pytest

from processor import partition
from tests.support.scripted import Stage


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """An empty partition; after an error its owners begin again at once."""
    monkeypatch.setattr(partition, "BACKOFF_MIN_S", 0.0)
    return Stage(tmp_path / "state")
