"""How slow this machine is, and deadlines that allow for it.

A deadline of a test is there for what never comes. What comes late because others use the machine
too must not miss it, so each deadline is written as it suits a quiet machine, and grows.
"""

import os
import time
from functools import cache
from statistics import median
from typing import Final

SLOWNESS_MAX: Final = 8.0
"""Where even that is not enough, a test that hangs should still be found."""
VARIABLE: Final = "TEST_SLOWNESS"
"""Names the slowness for the processes of one test run, and for whoever knows better."""
_ROUNDS: Final = 1_000_000
_QUIET_S: Final = 0.073
"""What the rounds take on two quiet cores of the machine on which the deadlines were chosen."""


@cache
def slowness() -> float:
    """How many times longer work takes than on a quiet machine, between 1 and SLOWNESS_MAX.

    Measured once in a test run, in the process that was started first: the second of three
    measurements, for a moment of others' work is not how the machine is.
    """
    given = os.environ.get(VARIABLE)
    measured = float(given) if given else median(_rounds_s() for _ in range(3)) / _QUIET_S
    return min(max(measured, 1.0), SLOWNESS_MAX)


def patience(quiet_s: float) -> float:
    """Seconds to wait for what takes less than `quiet_s` seconds on a quiet machine: twice that at
    least, since a run with more processes than there are cores is a load of its own."""
    return quiet_s * max(slowness(), 2.0)


def stretched(quiet_s: float) -> float:
    """How long something lasts, or may take, that lasts or takes `quiet_s` on a quiet machine: a
    lease that a test sees end, or a limit that it holds the product to."""
    return quiet_s * slowness()


def _rounds_s() -> float:
    """Wall time of a piece of work that waits for nothing but a core."""
    began = time.perf_counter()
    number = 1
    for _ in range(_ROUNDS):
        number = number * 1_103_515_245 + 12_345 & 0x7FFFFFFF
    return time.perf_counter() - began
