"""Directories with flows in them are closed to other users."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from processor.adapters.sqlite.files import open_table, table_path
from processor.adapters.sqlite.lock import state_dir_lock
from processor.embedded.directory import open_directory
from processor.runtime import private_directory
from processor.views.model.database import open_database


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.fixture(autouse=True)
def loose_umask() -> Iterator[Any]:
    before = os.umask(0o002)
    yield
    os.umask(before)


def test_what_is_missing_is_made_for_this_user_alone(tmp_path: Path) -> None:
    private_directory(tmp_path / "a" / "b" / "c")
    assert {mode(tmp_path / "a"), mode(tmp_path / "a/b"), mode(tmp_path / "a/b/c")} == {0o700}


def test_what_is_there_is_closed_unless_it_is_meant_for_others_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, before, after in (("open", 0o755, 0o700), ("sticky", 0o1777, 0o1777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(before)
        private_directory(tmp_path / name)
        assert mode(tmp_path / name) == after
    for name in ("here", "home"):
        (tmp_path / name).mkdir(mode=0o755)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    private_directory(Path())
    private_directory(tmp_path / "home")
    assert mode(tmp_path / "here") == mode(tmp_path / "home") == 0o755


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o644)
    with pytest.raises(NotADirectoryError):
        private_directory(tmp_path / "file")
    assert mode(tmp_path / "file") & 0o777 == 0o644


async def test_each_state_directory_is_closed(tmp_path: Path) -> None:
    with state_dir_lock(tmp_path / "worker"):
        path = table_path(tmp_path / "worker", "taskflow", 0)
        async with open_table(path, partition=0, prefix="taskflow", partitions=1):
            assert mode(tmp_path / "worker") == 0o700
    async with open_database(tmp_path / "state" / "views"):
        assert {mode(tmp_path / "state"), mode(tmp_path / "state/views")} == {0o700}
    async with open_directory(tmp_path / "up" / "broker"):
        assert {mode(tmp_path / "up"), mode(tmp_path / "up/broker")} == {0o700}
