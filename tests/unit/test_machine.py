"""Deadlines of the tests grow with the slowness of the machine, and only so far."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import machine


@pytest.mark.parametrize(
    ("expected", "taken"), [("0.2", 1.0), ("1", 1.0), ("3.5", 3.5), ("99", machine.SLOWNESS_MAX)]
)
def test_slowness_is_bounded(monkeypatch: pytest.MonkeyPatch, expected: str, taken: float) -> None:
    monkeypatch.setenv(machine.VARIABLE, expected)

    assert machine.slowness.__wrapped__() == taken


def test_slowness_is_measured_where_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(machine.VARIABLE)

    assert 1.0 <= machine.slowness.__wrapped__() <= machine.SLOWNESS_MAX


def test_the_time_that_pytest_gives_each_test_grows_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", __file__],
        env={**os.environ, machine.VARIABLE: "2"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )

    assert "times 2.00" in done.stdout
    assert "timeout: 360.0s" in done.stdout
