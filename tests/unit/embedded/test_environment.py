"""What the embedded broker takes from the environment."""

from pathlib import Path

import pytest

from processor.embedded import environment


def test_an_aot_cache_is_used_only_where_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cache = tmp_path / "kafka.aot"
    monkeypatch.setenv(environment.AOT_VARIABLE, str(cache))
    assert environment.aot_options() == []

    cache.touch()
    assert f"-XX:AOTCache={cache}" in environment.aot_options()

    monkeypatch.delenv(environment.AOT_VARIABLE)
    assert environment.aot_options() == []
