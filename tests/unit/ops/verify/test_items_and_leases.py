"""What verify finds of work items (I15), of leases that have expired (I17), and of steps whose time
has passed (I13)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from processor.contract.values import EVENTS_PER_PARTITION, instant
from processor.engine.partitioner import partition_of
from processor.testing.memory.record import Appended
from tests.support.builders import EXECUTOR, HOUR_MS, TIMER, document
from tests.support.json_values import json_of
from tests.support.recorded_deployment import Recorded, edit, kinds, violations
from tests.unit.ops.verify.histories import ABOUT, ONE
from tests.unit.ops.verify.test_steps import LEASE_MS, of_step, scheduled

MINUTES = 60_000


def offered() -> Recorded:
    """Step `a` waits for somebody to start it, for the second time; `b` was started, `c` has ended,
    `d` is not to be started yet; `e` is tried again."""
    all_of = Recorded(steps_partitions=3)
    all_of.send(
        ("commands", document("create_mirrored", flow_id=ONE, **ABOUT)),
        *(scheduled(ONE, run_id) for run_id in "abce"),
        scheduled(ONE, "d", not_before=instant(all_of.now + HOUR_MS)),
    )
    all_of.send(
        of_step("wake_step", ONE, "a", issued_by=TIMER),
        *(of_step("start_step", ONE, run_id) for run_id in "bce"),
        of_step("complete_step", ONE, "c", attempt=1),
        of_step("fail_step", ONE, "e", attempt=1, reason="503"),
        at_ms=all_of.now + LEASE_MS,
    )
    # Its cursor says that the items of the events before are written.
    all_of.send(("commands", document("update_state", flow_id=ONE, patch={})))
    all_of.keep_tables()
    return all_of


CLEAN = offered()


@pytest.fixture
def history() -> Recorded:
    return CLEAN.copy()


def items(history: Recorded) -> list[tuple[list[Appended], int, dict[str, Any]]]:
    """Where each work item lies, and what it says, in order of their events."""
    found = [
        (records, index, json_of(record))
        for (name, _), records in sorted(history.records.items())
        if name == "steps"
        for index, record in enumerate(records)
    ]
    return sorted(found, key=lambda one: int(one[2]["event_id"]))


def newest_of(history: Recorded, run_id: str) -> tuple[list[Appended], int, dict[str, Any]]:
    return [one for one in items(history) if one[2]["run_id"] == run_id][-1]


async def test_items_that_are_there_once_or_twice_are_in_order(history: Recorded) -> None:
    assert len(items(history)) == 6  # each once scheduled, but for `d`; `a` and `e` again
    assert len({records[index].partition for records, index, _ in items(history)}) > 1
    for number in range(3):
        records = history.of("steps", number)
        records += [replace(one, offset=one.offset + len(records)) for one in records]

    report = await history.verify()

    assert report.ok, violations(report)
    assert report.checked["I15"] == report.counts["work_items"] == 12


@pytest.mark.parametrize("run_id", ["b", "c"])
async def test_the_item_of_a_step_that_was_started_may_be_left_out(
    history: Recorded, run_id: str
) -> None:
    records, index, _ = newest_of(history, run_id)
    del records[index]

    assert (await history.verify()).ok


async def test_the_item_of_an_offering_that_was_repeated_may_be_left_out(
    history: Recorded,
) -> None:
    records, index, _ = next(one for one in items(history) if one[2]["run_id"] == "a")
    del records[index]

    assert (await history.verify()).ok


def lost(run_id: str) -> Callable[[Recorded], None]:
    def plant(history: Recorded) -> None:
        records, index, _ = newest_of(history, run_id)
        del records[index]

    return plant


def edited(**fields: Any) -> Callable[[Recorded], None]:
    def plant(history: Recorded) -> None:
        records, index, _ = newest_of(history, "a")
        records[index] = edit(records[index], **fields)

    return plant


def replaced(**fields: Any) -> Callable[[Recorded], None]:
    def plant(history: Recorded) -> None:
        records, index, _ = newest_of(history, "a")
        records[index] = replace(records[index], **fields)

    return plant


def moved(history: Recorded) -> None:
    records, index, _ = newest_of(history, "a")
    record = records.pop(index)
    other = (record.partition + 1) % 3
    history.of("steps", other).append(replace(record, partition=other, offset=99))


def of_a_start(history: Recorded) -> None:
    (started, *_) = [
        json_of(record)["id"]
        for record in history.of("audit")
        if json_of(record)["kind"] == "step_started"
    ]
    edited(event_id=started)(history)


DEFECTS = {
    "a lost item": (lost("a"), "offering_without_item"),
    "a lost item of a step that is tried again": (lost("e"), "offering_without_item"),
    "an item of an event that offered nothing": (of_a_start, "item_of_no_offering"),
    "an item of an event that is not there": (
        edited(event_id=99),
        "item_of_no_offering",
    ),
    "an item of a partition that is not there": (
        edited(event_id=7 * EVENTS_PER_PARTITION + 1),
        "item_of_no_offering",
    ),
    "an item with another attempt": (edited(attempt=2), "item_differs"),
    "an item with another input": (edited(input_json={"é": 1.6}), "item_differs"),
    "an item with another time": (edited(at="2026-05-28T20:26:42.000Z"), "item_differs"),
    "an item without its task's header": (replaced(headers=()), "item_differs"),
    "an item with another key": (replaced(key=ONE.encode()), "item_key"),
    "an item on another partition": (moved, "item_misplaced"),
    "an item without a lease": (edited(lease_ms=None), "not_an_item"),
    "an item with a field too many": (edited(more=1), "not_an_item"),
    "no item at all": (replaced(value=b"[]"), "not_an_item"),
}


@pytest.mark.parametrize(("plant", "kind"), DEFECTS.values(), ids=list(DEFECTS))
async def test_a_planted_defect_of_items_is_found(
    plant: Callable[[Recorded], None], kind: str, history: Recorded
) -> None:
    plant(history)

    assert ("I15", kind) in kinds(await history.verify())


async def test_items_stay_where_they_are_when_the_topic_grows(history: Recorded) -> None:
    history.steps_partitions = 7
    number = partition_of(f"{ONE}/a".encode(), 7)
    records, index, _ = newest_of(history, "a")
    record = records.pop(index)
    history.of("steps", number).append(replace(record, partition=number, offset=99))

    report = await history.verify()

    assert report.ok, violations(report)
    assert report.counts["work_items"] == 6


async def test_what_retention_took_of_the_items_is_not_known(history: Recorded) -> None:
    for number in range(3):
        history.of("steps", number).clear()
        history.starts["steps", number] = history.end("steps", number)
    report = await history.verify()
    assert report.ok, violations(report)
    assert any("steps/0 begins at offset" in sentence for sentence in report.not_covered)

    # Behind what it took, all is looked at.
    history = CLEAN.copy()
    records, index, _ = newest_of(history, "a")
    history.starts["steps", records[index].partition] = 1
    first = replace(records[index], offset=1, timestamp=records[0].timestamp - MINUTES)
    records[:] = [replace(first, value=items(CLEAN)[0][0][0].value, key=None)]
    assert ("I15", "offering_without_item") in kinds(await history.verify())


async def test_items_of_events_that_are_not_kept_are_not_known(history: Recorded) -> None:
    records = history.of("audit")
    history.starts["audit", 0] = records[-2].offset
    del records[:-2]

    report = await history.verify()

    assert not [kind for kind in kinds(report) if kind[0] == "I15"], violations(report)


async def test_an_item_that_is_under_way_is_not_missing(history: Recorded) -> None:
    lost("a")(history)
    assert ("I15", "offering_without_item") in kinds(await history.verify(at_rest=False))

    # The newest cursor does not say that it is written.
    state = history.of("state")
    state[-1] = edit(state[-1], offered=7)
    assert (await history.verify(at_rest=False)).ok
    assert ("I15", "offering_without_item") in kinds(await history.verify())


async def test_one_flow_alone_has_its_items(history: Recorded) -> None:
    report = await history.verify(flow_id=ONE)
    assert report.ok, violations(report)
    assert report.checked["I15"] == 6

    lost("a")(history)
    assert ("I15", "offering_without_item") in kinds(await history.verify(flow_id=ONE))


async def test_since_a_time_only_later_items_are_looked_at() -> None:
    history = CLEAN.copy()
    tomorrow = history.now + 24 * HOUR_MS
    history.send(scheduled(ONE, "f"), at_ms=tomorrow)
    history.keep_tables()
    assert (await history.verify(since_ms=tomorrow)).ok

    lost("a")(history)
    assert (await history.verify(since_ms=tomorrow)).ok
    lost("f")(history)
    assert ("I15", "offering_without_item") in kinds(await history.verify(since_ms=tomorrow))


# Leases


def lapsing(
    decided_ms: int, *, wake_first: bool = True, before: bool = False, by: str = TIMER
) -> Recorded:
    """A lease that ends, an answer `decided_ms` after its end, and a wake; which is decided first?
    `before`: another command came before the answer, later by its time."""
    history = Recorded()
    history.send(
        ("commands", document("create_mirrored", flow_id=ONE, **ABOUT)),
        scheduled(ONE, "a"),
        of_step("start_step", ONE, "a"),
    )
    end_ms = history.now + LEASE_MS
    decide_at = of_step("complete_step", ONE, "a", attempt=1, issued_by=EXECUTOR)
    wake = of_step("wake_step", ONE, "a", issued_by=by)
    if before:
        history.send(of_step("extend_step", ONE, "none", attempt=1), at_ms=end_ms + 1)
    history.send(decide_at, at_ms=end_ms + decided_ms, decide=False)
    history.send(wake, at_ms=max(end_ms, end_ms + decided_ms), decide=False)
    batch = [history.of("commands")[-1], history.of("control")[-1]]
    history.decide(0, batch[::-1] if wake_first else batch)
    history.keep_tables()
    return history


@pytest.mark.parametrize("decided_ms", [-LEASE_MS + 1, -1, 0])
async def test_an_answer_within_the_lease_is_decided_before_the_lease_ends(
    decided_ms: int,
) -> None:
    right = await lapsing(decided_ms, wake_first=False).verify()
    assert right.ok, violations(right)

    wrong = await lapsing(decided_ms).verify()
    assert kinds(wrong) == {("I17", "decided_after_lease")}
    assert wrong.checked["I17"] == 1
    (found,) = wrong.first.values()
    assert (found.topic, found.flow_id) == ("taskflow.outcomes", ONE)


async def test_an_answer_behind_the_lease_may_be_decided_late() -> None:
    report = await lapsing(1).verify()

    assert report.ok, violations(report)
    assert report.checked["I17"] == 1


async def test_a_clock_that_was_set_back_is_no_early_end() -> None:
    assert (await lapsing(-1, before=True).verify()).ok


async def test_a_lease_that_an_operator_ended_is_his() -> None:
    report = await lapsing(-1, by="operator:ana").verify()

    assert report.ok, violations(report)
    assert report.checked["I17"] == 0


@pytest.mark.parametrize("status", ["pending", "running"])
async def test_a_step_whose_time_has_passed_is_found_at_rest(status: str) -> None:
    history = Recorded()
    history.send(
        ("commands", document("create_mirrored", flow_id=ONE, **ABOUT)),
        scheduled(ONE, "a"),
        *([of_step("start_step", ONE, "a")] if status == "running" else []),
    )
    due_ms = history.now + LEASE_MS
    for late_ms, expected in ((60_000, set()), (91_000, {("I13", "step_overdue")})):
        update = document("update_state", flow_id=ONE, patch={})
        history.send(("commands", update), at_ms=due_ms + late_ms)
        history.keep_tables()
        assert kinds(await history.verify()) == expected
    assert (await history.verify(at_rest=False)).ok
