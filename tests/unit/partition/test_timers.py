"""The parts of a partition's errands, one by one: the broker's clock, and which flows to wake."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import pytest

from processor.contract.commands import COMMANDS, Wake
from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.domain.waits import AT_ONCE_MS
from processor.engine.ports import Table
from processor.engine.rows import Deadline, FlowRow
from processor.partition import timers
from processor.partition.timers import (
    AT_ONCE_MAX,
    CLOCK_WINDOW_S,
    NEAR_MS,
    RETRY_MAX_MS,
    RETRY_MIN_MS,
    UNDECIDED_MAX,
    BrokerClock,
    Timers,
    WakeOutcome,
    Wakeup,
)
from tests.support.builders import TIMER, document
from tests.unit.adapters.sqlite.tables import NOON_MS, flow_row, later, uuid

# The broker's clock


def heard(*told: tuple[int, float]) -> BrokerClock:
    clock = BrokerClock()
    for at_ms, at_s in told:
        clock.heard(at_ms, at_s)
    return clock


def test_nobody_knows_the_time_before_the_broker_has_told_it() -> None:
    clock = BrokerClock()
    assert (clock.now_ms(5.0), clock.latest_ms, clock.age_s(5.0)) == (None, 0, float("inf"))


def test_it_goes_on_as_our_own_does() -> None:
    clock = heard((NOON_MS, 100.0))
    assert clock.now_ms(100.0) == NOON_MS
    assert clock.now_ms(103.5) == NOON_MS + 3_500
    assert clock.age_s(103.5) == 3.5
    assert clock.latest_ms == NOON_MS


def test_the_word_that_was_underway_shortest_counts() -> None:
    # Appended at the same distance from our clock, heard of after 20 ms, 1 ms and 300 ms.
    clock = heard((NOON_MS, 100.020), (NOON_MS + 1_000, 101.001), (NOON_MS + 2_000, 102.300))
    assert clock.now_ms(103.001) == NOON_MS + 3_000


def test_an_old_record_does_not_set_it_back() -> None:
    assert heard((NOON_MS, 100.0), (NOON_MS - 3_600_000, 101.0)).now_ms(101.0) == NOON_MS + 1_000


def test_a_clock_that_runs_slower_than_ours_is_followed_after_two_windows() -> None:
    clock = heard((NOON_MS, 100.0))
    for window in (1, 2):
        at_s = 100.0 + window * (CLOCK_WINDOW_S + 1)
        clock.heard(NOON_MS, at_s)
        assert clock.now_ms(at_s) == NOON_MS + (61_000 if window == 1 else 61_000 * 2 - 61_000)
    at_s += CLOCK_WINDOW_S + 1
    clock.heard(NOON_MS, at_s)
    assert clock.now_ms(at_s) == NOON_MS + 61_000


def test_it_begins_again_when_it_was_ahead() -> None:
    clock = heard((NOON_MS, 100.0))
    clock.set_back(NOON_MS - 60_000, 101.0)
    assert clock.now_ms(102.0) == NOON_MS - 59_000


# Which flows to wake


class Waits:
    """A table of nothing but waits."""

    def __init__(self, *waits: tuple[int, int]) -> None:
        self.waits = sorted(Deadline(at_ms, uuid(number)) for number, at_ms in waits)
        self.asked = 0

    async def due(self, after: Deadline, until_ms: int, limit: int) -> list[Deadline]:
        self.asked += 1
        return [one for one in self.waits if after < one and one.at_ms <= until_ms][:limit]


def loaded(table: Waits, now_ms: int = NOON_MS, into: Timers | None = None) -> Timers:
    into = into or Timers()
    asyncio.run(into.load(cast(Table, table), now_ms))
    return into


def waiting(number: int, at_ms: int, **values: Any) -> FlowRow:
    wait = {"kind": "timer", "at": instant(at_ms)}
    return flow_row(number, status=FlowStatus.WAITING, wait_json=wait, **values)


def wake_of(number: int, command_id: str) -> Wake:
    body = document("wake", flow_id=uuid(number), command_id=command_id, issued_by=TIMER)
    wake = COMMANDS.validate_python(body)
    assert isinstance(wake, Wake)
    return wake


def send(some: Timers, taken: dict[str, int]) -> None:
    """What was taken is written; command ids are the flows' own."""
    wakeups = {flow_id: Wakeup(flow_id, at_ms) for flow_id, at_ms in taken.items()}
    some.written([], wakeups, [], {}, NOON_MS)


def refused(some: Timers, row: FlowRow, at_ms: int) -> timers.Decided:
    """The wake of a flow that goes on waiting, appended at `at_ms`, comes to nothing."""
    answer = WakeOutcome(wake_of(row.number, row.flow.id), at_ms, False)
    return some.written([], {}, [answer], {row.flow.id: row}, NOON_MS)


def test_what_is_over_is_taken_once_the_earliest_first() -> None:
    some = loaded(Waits((1, NOON_MS + 1), (2, NOON_MS - 5), (3, NOON_MS), (4, NOON_MS - 9)))
    assert some.next_ms() == NOON_MS - 9
    assert list(some.take(NOON_MS).items()) == [
        (uuid(4), NOON_MS - 9),
        (uuid(2), NOON_MS - 5),
        (uuid(3), NOON_MS),
    ]
    assert some.take(NOON_MS) == {}
    assert some.next_ms() == NOON_MS + 1


def test_the_table_is_asked_once_for_a_while() -> None:
    table = Waits((1, NOON_MS + NEAR_MS), (2, NOON_MS + NEAR_MS + 1))
    some = loaded(table)
    loaded(table, NOON_MS + NEAR_MS // 2 - 1, some)
    assert table.asked == 1
    assert list(some.take(NOON_MS + 2 * NEAR_MS)) == [uuid(1)]
    loaded(table, NOON_MS + NEAR_MS // 2, some)
    assert table.asked == 2
    assert list(some.take(NOON_MS + 2 * NEAR_MS)) == [uuid(2)]


def test_wakes_go_out_in_portions_and_no_more_than_a_few_are_undecided() -> None:
    some = loaded(Waits(*((number, NOON_MS) for number in range(1, 1001))))
    sizes: Sequence[int] = []
    for _ in range(4):
        taken = some.take(NOON_MS)
        send(some, taken)
        sizes = [*sizes, len(taken)]
    assert sizes == [AT_ONCE_MAX, UNDECIDED_MAX - AT_ONCE_MAX, 0, 0]
    assert some.next_ms() is None  # nothing to hurry for, until some are decided
    answers = [WakeOutcome(wake_of(n, uuid(n)), NOON_MS, True) for n in range(1, 11)]
    gone = [
        (waiting(n, NOON_MS), later(waiting(n, NOON_MS), status=FlowStatus.RUNNING))
        for n in range(1, 11)
    ]
    report = some.written(gone, {}, answers, {}, NOON_MS + 7)
    assert (report.ended, report.retried, report.lags_ms) == (10, 0, [7] * 10)
    assert len(some.take(NOON_MS)) == 10


def test_a_refused_wake_is_sent_again_after_a_pause_that_grows_to_a_bound() -> None:
    row = waiting(1, NOON_MS - 1)
    some = loaded(Waits((1, NOON_MS - 1)))
    now_ms, pauses = NOON_MS, []
    for _ in range(14):
        send(some, some.take(now_ms))
        refused(some, row, now_ms)
        again_ms = some.next_ms()
        assert again_ms is not None
        pauses.append(again_ms - now_ms)
        now_ms = again_ms
    assert pauses[0] == RETRY_MIN_MS
    assert all(after == min(2 * before, RETRY_MAX_MS) for before, after in pairwise(pauses))
    assert pauses[-1] == RETRY_MAX_MS


def test_a_wake_that_came_too_early_says_so_and_is_sent_when_it_is_due() -> None:
    some = loaded(Waits((1, NOON_MS)))
    send(some, some.take(NOON_MS))
    report = refused(some, waiting(1, NOON_MS), NOON_MS - 60_000)
    assert (report.too_early, report.retried, report.ended) == (True, 1, 0)
    assert some.next_ms() == NOON_MS


@pytest.mark.parametrize(("woken_ms", "too_early"), [(NOON_MS - 1, True), (NOON_MS, False)])
def test_a_wake_at_the_very_end_of_its_wait_is_not_too_early(
    woken_ms: int, too_early: bool
) -> None:
    some = loaded(Waits((1, NOON_MS)))
    send(some, some.take(NOON_MS))
    assert refused(some, waiting(1, NOON_MS), woken_ms).too_early is too_early


def test_a_table_that_names_too_early_a_time_says_nothing_of_the_clock() -> None:
    some = loaded(Waits((1, NOON_MS - 500)))
    send(some, some.take(NOON_MS))
    report = refused(some, waiting(1, NOON_MS + 86_400_000), NOON_MS)
    assert not report.too_early
    assert some.next_ms() == NOON_MS + 86_400_000  # the table does not name it again


def test_somebody_elses_wake_decides_nothing_about_ours() -> None:
    some = loaded(Waits((1, NOON_MS)))
    send(some, some.take(NOON_MS))
    answer = WakeOutcome(wake_of(1, uuid(99)), NOON_MS, False)
    row = waiting(1, NOON_MS)
    report = some.written([], {}, [answer], {uuid(1): row}, NOON_MS)
    assert (report.ended, report.retried, some.overdue(NOON_MS)) == (0, 0, 1)


def test_who_is_asked_to_cancel_while_near_is_woken_once() -> None:
    some = loaded(Waits((1, NOON_MS + 1)))
    was = waiting(1, NOON_MS + 1)
    row = waiting(1, NOON_MS + 1, cancel_requested=True)
    wakeups = {uuid(1): Wakeup(uuid(1), AT_ONCE_MS)}
    some.written([(was, row)], wakeups, [], {}, NOON_MS)
    assert some.take(NOON_MS + 1) == {}
    assert some.overdue(NOON_MS) == 1


def test_memory_is_bounded_and_what_is_left_to_the_table_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timers, "NEAR_MAX", 10)
    table = Waits()
    some = loaded(table)
    for number in range(100, 0, -1):  # the later ones first
        row = waiting(number, NOON_MS + number)
        some.written([(None, row)], {}, [], {}, NOON_MS)
        table.waits = sorted([*table.waits, Deadline(NOON_MS + number, row.flow.id)])
        assert len(some._near) <= 10
        assert len(some._queue) <= 20
    assert some.armed == 100
    taken: list[str] = []
    while more := loaded(table, NOON_MS + 200, some).take(NOON_MS + 200):
        taken.extend(more)
    assert taken == [uuid(number) for number in range(1, 101)]


def test_what_was_refused_stays_in_memory_for_the_table_names_a_time_that_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(timers, "NEAR_MAX", 10)
    table = Waits((1, NOON_MS))
    some = loaded(table)
    send(some, some.take(NOON_MS))
    refused(some, waiting(1, NOON_MS), NOON_MS)
    nearer = [waiting(number, NOON_MS + number) for number in range(2, 22)]
    some.written([(None, row) for row in nearer], {}, [], {}, NOON_MS)
    table.waits = [*table.waits, *(Deadline(NOON_MS + row.number, row.flow.id) for row in nearer)]
    taken: list[str] = []
    while more := loaded(table, NOON_MS + 200, some).take(NOON_MS + 200):
        taken.extend(more)
    assert sorted(taken) == [uuid(number) for number in range(1, 22)]


@pytest.mark.parametrize("wait", [None, NOON_MS + 5, NOON_MS + 2 * NEAR_MS])
def test_a_refused_wake_of_a_flow_that_was_touched_leaves_what_it_waits_for_now(
    wait: int | None,
) -> None:
    some = loaded(Waits((1, NOON_MS)))
    some.armed = 1
    send(some, some.take(NOON_MS))
    was = waiting(1, NOON_MS)
    row = later(was, status=FlowStatus.RUNNING) if wait is None else waiting(1, wait)
    answer = WakeOutcome(wake_of(1, uuid(1)), NOON_MS - 1, False)
    some.written([(was, row)], {}, [answer], {uuid(1): row}, NOON_MS)
    expected = wait is not None and wait <= NOON_MS + NEAR_MS
    assert (some.next_ms() is not None) is expected
    assert some.armed == (wait is not None)
    assert some.overdue(NOON_MS) == 0


@pytest.mark.parametrize("at_ms", [NOON_MS, NOON_MS + 5, NOON_MS + 2 * NEAR_MS])
def test_a_flow_that_is_woken_and_waits_anew_in_one_batch_is_not_forgotten(at_ms: int) -> None:
    some = loaded(Waits((1, NOON_MS)))
    send(some, some.take(NOON_MS))
    was, row = waiting(1, NOON_MS), waiting(1, at_ms)
    answer = WakeOutcome(wake_of(1, uuid(1)), NOON_MS, True)
    report = some.written([(was, row)], {}, [answer], {uuid(1): row}, NOON_MS + 3)
    assert (report.ended, report.retried, report.lags_ms) == (1, 0, [3])
    again = some.next_ms() or loaded(Waits((1, at_ms)), at_ms, some).next_ms()
    assert again == at_ms


def test_a_copy_of_our_wake_is_no_second_answer() -> None:
    some = loaded(Waits((1, NOON_MS)))
    send(some, some.take(NOON_MS))
    wake = wake_of(1, uuid(1))
    answers = [WakeOutcome(wake, NOON_MS, True), WakeOutcome(wake, NOON_MS + 1, False)]
    report = some.written([], {}, answers, {uuid(1): None}, NOON_MS)
    assert (report.ended, report.retried) == (1, 0)


def test_a_flow_taken_on_a_wrong_word_and_not_sent_is_not_forgotten() -> None:
    some = loaded(Waits((1, NOON_MS - 500)))
    assert some.take(NOON_MS)
    # A step is observed in the same batch: its row tells when the wait is really over.
    row = waiting(1, NOON_MS + 5)
    some.written([(row, row)], {}, [], {}, NOON_MS)
    assert some.next_ms() == NOON_MS + 5
