"""Thousands of histories of faults, and nothing lost in any of them."""

import os
from typing import Final

import pytest

from processor.testing.memory.moments import Fault
from tests.simulation.faults import FAULTS_OF_STEPS as OF_STEPS
from tests.simulation.running import report, run, summary

HISTORIES: Final = int(os.environ.get("TASKFLOW_TEST_HISTORIES", "10000"))
FIRST_SEED: Final = int(os.environ.get("TASKFLOW_TEST_SEED", "0"))
PARTS: Final = 10
"""Each a test of its own, for as many processes as there are."""
SOON: Final = 1
"""The parts that every run of the tests takes; the others are left to `make soak`."""
SOON_WITH_EXECUTORS: Final = 200
"""The histories with executors that every run of the tests takes."""
SEEDS: Final = range(FIRST_SEED, FIRST_SEED + HISTORIES)


@pytest.mark.parametrize(
    "part",
    [pytest.param(n, marks=[] if n < SOON else [pytest.mark.soak]) for n in range(PARTS)],
)
def test_whatever_breaks_nothing_is_lost(part: int) -> None:
    ran = run(SEEDS[part::PARTS])

    print(summary(ran))
    assert not ran.red, "\n\n".join(map(report, ran.red[:3]))
    assert ran.outcomes >= ran.commands > 0
    if len(SEEDS) == 10_000:  # fewer do not meet the rarest
        unmet = [fault for fault in Fault if not ran.met[fault] and fault not in OF_STEPS]
        assert unmet == [], "out of use"


@pytest.mark.parametrize(
    "part",
    [pytest.param(n, marks=[pytest.mark.soak] if n else []) for n in range(PARTS + 1)],
)
def test_whatever_breaks_each_step_ends_once(part: int) -> None:
    later = SEEDS[SOON_WITH_EXECUTORS:]
    ran = run(later[part - 1 :: PARTS] if part else SEEDS[:SOON_WITH_EXECUTORS], executors=True)

    print(summary(ran))
    assert not ran.red, "\n\n".join(map(report, ran.red[:3]))
    assert ran.outcomes >= ran.commands
    assert [fault for fault in OF_STEPS if not ran.met[fault]] == [], "out of use"
