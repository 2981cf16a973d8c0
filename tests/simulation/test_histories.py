"""Thousands of histories of faults, and nothing lost in any of them."""

import os
from typing import Final

import pytest

from tests.simulation.faults import FAULTS_OF_STEPS as OF_STEPS
from tests.simulation.running import report, run, summary
from tests.support.moments import Fault

HISTORIES: Final = int(os.environ.get("TASKFLOW_TEST_HISTORIES", "10000"))
FIRST_SEED: Final = int(os.environ.get("TASKFLOW_TEST_SEED", "0"))
PARTS: Final = 10
"""What is left to `make soak`, each a test of its own, for as many processes as there are."""
SOON: Final = 300
"""The histories that every run of the tests takes; all but the rarest fault is met in them."""
SOON_WITH_EXECUTORS: Final = 100
RAREST: Final = (Fault.RETENTION,)
SEEDS: Final = range(FIRST_SEED, FIRST_SEED + HISTORIES)


def part_of_all(part: int, soon: int) -> range:
    """The seeds of a part; part 0 are those that every run takes."""
    return SEEDS[soon:][part - 1 :: PARTS] if part else SEEDS[:soon]


PART = pytest.mark.parametrize(
    "part", [pytest.param(n, marks=[pytest.mark.soak] if n else []) for n in range(PARTS + 1)]
)


@PART
def test_whatever_breaks_nothing_is_lost(part: int) -> None:
    ran = run(part_of_all(part, SOON))

    print(summary(ran))
    assert not ran.red, "\n\n".join(map(report, ran.red[:3]))
    assert ran.outcomes >= ran.commands > 0
    if len(SEEDS) == 10_000:  # fewer do not meet them
        rare = () if part else RAREST
        known = [fault for fault in Fault if fault not in OF_STEPS and fault not in rare]
        assert [fault for fault in known if not ran.met[fault]] == [], "out of use"


@PART
def test_whatever_breaks_each_step_ends_once(part: int) -> None:
    ran = run(part_of_all(part, SOON_WITH_EXECUTORS), executors=True)

    print(summary(ran))
    assert not ran.red, "\n\n".join(map(report, ran.red[:3]))
    assert ran.outcomes >= ran.commands
    assert [fault for fault in OF_STEPS if not ran.met[fault]] == [], "out of use"
