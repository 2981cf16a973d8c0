"""The broker's clock, as append times show it."""

from processor.partition.scheduling.broker_clock import CLOCK_WINDOW_S, BrokerClock
from tests.unit.adapters.sqlite.tables import NOON_MS


def clock_of(*seen: tuple[int, float]) -> BrokerClock:
    clock = BrokerClock()
    for at_ms, at_s in seen:
        clock.observe(at_ms, at_s)
    return clock


def test_nobody_knows_the_time_before_the_broker_has_told_it() -> None:
    clock = BrokerClock()
    assert (clock.now_ms(5.0), clock.latest_ms, clock.age_s(5.0)) == (None, 0, float("inf"))


def test_it_goes_on_as_our_own_does() -> None:
    clock = clock_of((NOON_MS, 100.0))
    assert clock.now_ms(100.0) == NOON_MS
    assert clock.now_ms(103.5) == NOON_MS + 3_500
    assert clock.age_s(103.5) == 3.5
    assert clock.latest_ms == NOON_MS


def test_the_word_that_was_underway_shortest_counts() -> None:
    # Appended at the same distance from our clock, heard of after 20 ms, 1 ms and 300 ms.
    clock = clock_of((NOON_MS, 100.020), (NOON_MS + 1_000, 101.001), (NOON_MS + 2_000, 102.300))
    assert clock.now_ms(103.001) == NOON_MS + 3_000


def test_an_old_record_does_not_set_it_back() -> None:
    assert clock_of((NOON_MS, 100.0), (NOON_MS - 3_600_000, 101.0)).now_ms(101.0) == NOON_MS + 1_000


def test_a_clock_that_runs_slower_than_ours_is_followed_after_two_windows() -> None:
    clock = clock_of((NOON_MS, 100.0))
    for window in (1, 2):
        at_s = 100.0 + window * (CLOCK_WINDOW_S + 1)
        clock.observe(NOON_MS, at_s)
        assert clock.now_ms(at_s) == NOON_MS + (61_000 if window == 1 else 61_000 * 2 - 61_000)
    at_s += CLOCK_WINDOW_S + 1
    clock.observe(NOON_MS, at_s)
    assert clock.now_ms(at_s) == NOON_MS + 61_000


def test_it_begins_again_when_it_was_ahead() -> None:
    clock = clock_of((NOON_MS, 100.0))
    clock.set_back(NOON_MS - 60_000, 101.0)
    assert clock.now_ms(102.0) == NOON_MS - 59_000
