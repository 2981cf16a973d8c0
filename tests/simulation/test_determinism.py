"""A seed is a history: the same one each time, in each process."""

import os
import subprocess
import sys
from typing import Final

import pytest

from tests.simulation.running import simulate
from tests.support.machine import patience

SEEDS: Final = range(8)
DIGESTS: Final = (
    "from tests.simulation.running import simulate\n"
    f"for seed in range({len(SEEDS)}): print(simulate(seed).digest)"
)


def test_the_same_seed_is_the_same_history_to_the_byte() -> None:
    once = [simulate(seed).digest for seed in SEEDS]
    again = [simulate(seed).digest for seed in reversed(SEEDS)][::-1]

    assert once == again
    assert len(set(once)) == len(SEEDS)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_no_process_has_a_history_of_its_own(hash_seed: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
        timeout=patience(120),
    )

    assert ran.stdout.split() == [simulate(seed).digest for seed in SEEDS]
