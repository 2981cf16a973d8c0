"""What benchmarks make of what they saw, also where they saw little."""

import pytest

from tests.benchmarks.views import slowest_per_s


def test_the_slowest_tenth_is_found():
    steady = [(float(n), 100 * n) for n in range(11)]
    assert slowest_per_s(steady) == 100
    assert slowest_per_s([*steady[:5], *((at_s + 4, have) for at_s, have in steady[5:])]) == 20


@pytest.mark.parametrize("points", [[(0.0, 5), (0.2, 105)], [(0.0, 5), (0.1, 95), (0.2, 105)]])
def test_an_audit_that_was_there_within_two_looks_has_a_rate(points):
    assert slowest_per_s(points) > 0
