"""Thousands of histories of faults, and nothing lost in any of them."""

import os
from collections import Counter
from typing import Final

import pytest

from tests.simulation.faults import Fault
from tests.simulation.running import report, run, summary

HISTORIES: Final = int(os.environ.get("TASKFLOW_TEST_HISTORIES", "10000"))
FIRST_SEED: Final = int(os.environ.get("TASKFLOW_TEST_SEED", "0"))
PARTS: Final = 10
"""Each a test of its own, for as many processes as there are."""
SOON: Final = 3
"""The parts that every run of the tests takes; the others are left to `make soak`."""
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


def test_no_kind_of_fault_has_gone_out_of_use() -> None:
    met: Counter[str] = Counter()
    for start in range(0, 2_000, 100):
        met += run(range(start, start + 100)).met
        if met.keys() >= set(Fault):
            break

    assert [fault for fault in Fault if not met[fault]] == []
