"""The process that forks tells how each child has ended, in whatever moment its signal comes."""

import os
from pathlib import Path

import pytest

from tests.support.forked_program import reap


def test_children_whose_ends_are_signalled_amid_one_another_are_each_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    children = {pid: str(tmp_path / f"{pid}") for pid in (1, 2, 3)}
    ended = {1: 0, 2: 256, 3: 9}

    def waitpid(pid: int, _how: int) -> tuple[int, int]:
        if pid not in ended:
            raise ChildProcessError
        found = pid, ended.pop(pid)
        reap(children)  # as the handler of a signal does that comes now
        return found

    monkeypatch.setattr(os, "waitpid", waitpid)
    reap(children)

    assert children == {}
    codes = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert codes == {"1": "0", "2": "1", "3": "-9"}
