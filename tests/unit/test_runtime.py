"""What all parts share at run time."""

import pytest

from processor.runtime import backoff_s


@pytest.mark.parametrize("failures", [0, 1, 2, 3, 6, 7, 1_023, 1_024, 1_100, 10**9])
def test_a_pause_is_doubled_up_to_its_longest_whatever_the_number_of_failures(
    failures: int,
) -> None:
    """1,100 failures, by pauses of 5 s: a broker that is away for 90 minutes."""
    assert backoff_s(failures, 0.05, 5.0) == min(0.05 * 2 ** min(failures, 10), 5.0)
