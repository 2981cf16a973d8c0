"""Timers of a partition: what is woken, when, and how many at a time."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest

from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.domain.waits import AT_ONCE_MS, due_ms
from processor.engine.rows import Deadline, FlowRow
from processor.partition.scheduling import timers
from processor.partition.scheduling.timers import (
    AT_ONCE_MAX,
    NEAR_MS,
    RETRY_MAX_MS,
    RETRY_MIN_MS,
    UNDECIDED_MAX,
    TimerChange,
    Timers,
    WakeOutcome,
    Wakeup,
)
from tests.unit.adapters.sqlite.tables import NOON_MS, flow_row, later, uuid


class Waits:
    """A table of nothing but waits."""

    def __init__(self, *waits: tuple[int, int]) -> None:
        self.waits = sorted(Deadline(at_ms, uuid(number)) for number, at_ms in waits)
        self.asked = 0

    async def due(self, after: tuple[int, str], until_ms: int, limit: int) -> list[Deadline]:
        self.asked += 1
        return [one for one in self.waits if after < one and one.at_ms <= until_ms][:limit]


Flows = Timers[str]


def loaded(table: Waits, now_ms: int = NOON_MS, into: Flows | None = None) -> Flows:
    into = into or Timers("")
    asyncio.run(into.load(table.due, now_ms))
    return into


def waiting(number: int, at_ms: int, **values: Any) -> FlowRow:
    wait = {"kind": "timer", "at": instant(at_ms)}
    return flow_row(number, status=FlowStatus.WAITING, wait_json=wait, **values)


def written(
    some: Flows,
    waits: Sequence[tuple[FlowRow | None, FlowRow | None]],
    wakeups: Mapping[str, Wakeup],
    ledger_entries: Sequence[WakeOutcome[str]],
    flows: Mapping[str, FlowRow | None],
    now_ms: int,
) -> timers.DecidedWakes:
    """A batch is written that changed what flows wait for."""

    def over(row: FlowRow | None) -> int | None:
        return None if row is None else due_ms(row.flow)

    changes = [
        TimerChange(known.flow.id, over(was), over(row))
        for was, row in waits
        if (known := was or row)
    ]
    left = {flow_id: over(row) for flow_id, row in flows.items()}
    return some.written(changes, wakeups, ledger_entries, left, now_ms)


def send(some: Flows, taken: dict[str, int]) -> None:
    """What was taken is written; command ids are the flows' own."""
    wakeups = {flow_id: Wakeup(flow_id, at_ms) for flow_id, at_ms in taken.items()}
    written(some, [], wakeups, [], {}, NOON_MS)


def refused(some: Flows, row: FlowRow, at_ms: int) -> timers.DecidedWakes:
    """The wake of a flow that goes on waiting, appended at `at_ms`, comes to nothing."""
    ledger_entry = WakeOutcome(row.flow.id, row.flow.id, at_ms, False)
    return written(some, [], {}, [ledger_entry], {row.flow.id: row}, NOON_MS)


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
    ledger_entries = [WakeOutcome(uuid(n), uuid(n), NOON_MS, True) for n in range(1, 11)]
    gone = [
        (waiting(n, NOON_MS), later(waiting(n, NOON_MS), status=FlowStatus.RUNNING))
        for n in range(1, 11)
    ]
    report = written(some, gone, {}, ledger_entries, {}, NOON_MS + 7)
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
    ledger_entry = WakeOutcome(uuid(1), uuid(99), NOON_MS, False)
    row = waiting(1, NOON_MS)
    report = written(some, [], {}, [ledger_entry], {uuid(1): row}, NOON_MS)
    assert (report.ended, report.retried, some.overdue(NOON_MS)) == (0, 0, 1)


def test_who_is_asked_to_cancel_while_near_is_woken_once() -> None:
    some = loaded(Waits((1, NOON_MS + 1)))
    was = waiting(1, NOON_MS + 1)
    row = waiting(1, NOON_MS + 1, cancel_requested=True)
    wakeups = {uuid(1): Wakeup(uuid(1), AT_ONCE_MS)}
    written(some, [(was, row)], wakeups, [], {}, NOON_MS)
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
        written(some, [(None, row)], {}, [], {}, NOON_MS)
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
    written(some, [(None, row) for row in nearer], {}, [], {}, NOON_MS)
    table.waits = [
        *table.waits,
        *(Deadline(NOON_MS + row.row_number, row.flow.id) for row in nearer),
    ]
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
    ledger_entry = WakeOutcome(uuid(1), uuid(1), NOON_MS - 1, False)
    written(some, [(was, row)], {}, [ledger_entry], {uuid(1): row}, NOON_MS)
    expected = wait is not None and wait <= NOON_MS + NEAR_MS
    assert (some.next_ms() is not None) is expected
    assert some.armed == (wait is not None)
    assert some.overdue(NOON_MS) == 0


@pytest.mark.parametrize("at_ms", [NOON_MS, NOON_MS + 5, NOON_MS + 2 * NEAR_MS])
def test_a_flow_that_is_woken_and_waits_anew_in_one_batch_is_not_forgotten(at_ms: int) -> None:
    some = loaded(Waits((1, NOON_MS)))
    send(some, some.take(NOON_MS))
    was, row = waiting(1, NOON_MS), waiting(1, at_ms)
    ledger_entry = WakeOutcome(uuid(1), uuid(1), NOON_MS, True)
    report = written(some, [(was, row)], {}, [ledger_entry], {uuid(1): row}, NOON_MS + 3)
    assert (report.ended, report.retried, report.lags_ms) == (1, 0, [3])
    again = some.next_ms() or loaded(Waits((1, at_ms)), at_ms, some).next_ms()
    assert again == at_ms


def test_a_copy_of_our_wake_is_no_second_answer() -> None:
    some = loaded(Waits((1, NOON_MS)))
    send(some, some.take(NOON_MS))
    ledger_entries = [
        WakeOutcome(uuid(1), uuid(1), NOON_MS, True),
        WakeOutcome(uuid(1), uuid(1), NOON_MS + 1, False),
    ]
    report = written(some, [], {}, ledger_entries, {uuid(1): None}, NOON_MS)
    assert (report.ended, report.retried) == (1, 0)


def test_a_flow_taken_on_a_wrong_word_and_not_sent_is_not_forgotten() -> None:
    some = loaded(Waits((1, NOON_MS - 500)))
    assert some.take(NOON_MS)
    # A step is observed in the same batch: its row tells when the wait is really over.
    row = waiting(1, NOON_MS + 5)
    written(some, [(row, row)], {}, [], {}, NOON_MS)
    assert some.next_ms() == NOON_MS + 5
