"""What verify finds transaction by transaction: on `state`, and of wakes that are owed."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.support import builders as given
from tests.support.builders import MORNING, document
from tests.support.recorded_deployment import Recorded, edit, kinds, violations
from tests.unit.ops.verify.histories import ABOUT, ONE, TWO, a_days_work

LATER = MORNING + 60_000
"""When the flow that waits at the end of the night is due."""


def a_day() -> Recorded:
    history = Recorded()
    for batch in a_days_work():
        history.send(*batch)
    history.keep_tables()
    return history


def a_night() -> Recorded:
    """A flow that waits for the morning, one that is asked to cancel, and one that waits on."""
    history = Recorded()
    timer = given.timer(MORNING + 5_000)
    history.send(
        ("commands", document("create_mirrored", flow_id=ONE, **ABOUT)),
        ("commands", document("create_mirrored", flow_id=TWO, **ABOUT)),
        ("commands", document("set_waiting", flow_id=ONE, wait=timer)),
        ("commands", document("set_waiting", flow_id=TWO, wait=given.manual())),
    )
    history.send(("commands", document("request_cancel", flow_id=TWO)))
    history.send(("control", document("wake", flow_id=ONE)), at_ms=MORNING + 6_000)
    history.send(
        ("commands", document("set_waiting", flow_id=ONE, wait=given.timer(LATER))),
        at_ms=MORNING + 7_000,
    )
    history.keep_tables()
    return history


DAY, NIGHT = a_day(), a_night()


def a_state_record(history: Recorded, key: str, nth: int = 0) -> int:
    """The index of the nth record of a key on `state`."""
    return [i for i, r in enumerate(history.of("state")) if r.key == key.encode()][nth]


def dropped(history: Recorded) -> None:
    del history.of("state")[a_state_record(history, ONE, 1)]


def dropped_and_closed_up(history: Recorded) -> None:
    """As a transaction that never wrote it would leave the topic."""
    index = a_state_record(history, ONE, 1)
    records = history.of("state")
    del records[index]
    for i in range(index, len(records)):
        records[i] = replace(records[i], offset=records[i].offset - 1)


def other_fields(history: Recorded) -> None:
    index = a_state_record(history, TWO)
    history.of("state")[index] = edit(history.of("state")[index], flow={})


def other_tail(history: Recorded) -> None:
    index = a_state_record(history, TWO)
    history.of("state")[index] = edit(history.of("state")[index], last_event_id=1)


def other_step(history: Recorded) -> None:
    index = a_state_record(history, f"{TWO}/r/1")
    history.of("state")[index] = edit(history.of("state")[index], step={})


def no_tombstone(history: Recorded) -> None:
    """The step of a pruned flow stayed."""
    index = a_state_record(history, f"{TWO}/r/1", -1)
    assert history.of("state")[index].value is None
    history.of("state")[index] = replace(history.of("state")[index], value=b'{"step":{}}')


def added(history: Recorded) -> None:
    """A step of before, once more, amid a transaction that does not touch it."""
    records = history.of("state")
    copied = records[a_state_record(history, f"{TWO}/r/1")]
    index = a_state_record(history, "cursor/0", 2)
    records.insert(index, replace(copied, offset=records[index].offset))
    for i in range(index + 1, len(records)):
        records[i] = replace(records[i], offset=records[i].offset + 1)


DEFECTS: dict[str, tuple[Callable[[Recorded], None], str, str]] = {
    "a snapshot missing": (dropped_and_closed_up, "I9", "snapshot_missing"),
    "a snapshot with other fields": (other_fields, "I5", "transaction_differs"),
    "a snapshot with another tail": (other_tail, "I5", "transaction_differs"),
    "another step": (other_step, "I5", "transaction_differs"),
    "a tombstone missing": (no_tombstone, "I9", "snapshot_without_event"),
    "a snapshot without an event": (added, "I9", "snapshot_without_event"),
}


@pytest.mark.parametrize(("plant", "invariant", "kind"), DEFECTS.values(), ids=DEFECTS)
async def test_a_defect_that_a_later_transaction_covers_up_is_found(
    plant: Callable[[Recorded], None], invariant: str, kind: str
) -> None:
    history = DAY.copy()
    assert (await history.verify()).ok

    plant(history)

    assert (invariant, kind) in kinds(await history.verify())


async def test_what_compaction_has_removed_is_not_missing() -> None:
    history = DAY.copy()
    dropped(history)

    report = await history.verify()

    assert report.ok, violations(report)


# Waits


def not_woken(history: Recorded) -> None:
    """Another command stands where the wake of the flow that was asked to cancel was."""
    history.of("control")[0] = edit(history.of("control")[0], kind="prune")


def test_a_request_to_cancel_leaves_its_wake_on_control() -> None:
    kinds_on_control = [one.value for one in NIGHT.of("control")]

    assert len(kinds_on_control) == 2
    assert all(b'"wake"' in (value or b"") for value in kinds_on_control)


@pytest.mark.parametrize(("wakes", "found"), [(1, False), (0, True)])
async def test_a_request_to_cancel_a_waiting_flow_needs_a_wake_behind_it(
    wakes: int, found: bool
) -> None:
    history = Recorded()
    history.send(("control", document("wake", flow_id=TWO)))
    history.send(
        ("commands", document("create_mirrored", flow_id=TWO, **ABOUT)),
        ("commands", document("set_waiting", flow_id=TWO, wait=given.manual())),
    )
    asked = history.append_command("commands", document("request_cancel", flow_id=TWO))
    history.commit(0, [asked])
    for _ in range(wakes):
        history.append_command("control", document("wake", flow_id=TWO))

    report = await history.verify(at_rest=False)

    assert (("I13", "cancel_without_wake") in kinds(report)) is found
    assert report.ok is not found


async def test_a_flow_that_its_transaction_takes_out_of_the_wait_needs_no_wake() -> None:
    history = Recorded()
    history.send(
        ("commands", document("create_mirrored", flow_id=TWO, **ABOUT)),
        ("commands", document("set_waiting", flow_id=TWO, wait=given.manual())),
    )
    history.send(
        ("commands", document("request_cancel", flow_id=TWO)),
        ("commands", document("cancel", flow_id=TWO)),
    )

    report = await history.verify()

    assert report.ok, violations(report)
    assert report.checked["I13"] == 1


async def test_a_wake_that_was_taken_for_another_command_is_found() -> None:
    history = NIGHT.copy()
    not_woken(history)

    assert ("I13", "cancel_without_wake") in kinds(await history.verify())


@pytest.mark.parametrize(("after_ms", "late"), [(1_000, False), (1_001, True)])
@pytest.mark.parametrize("topic", ["commands", "outcomes", "deadletters"])
async def test_a_flow_that_waits_although_its_time_is_over_is_found_at_rest(
    after_ms: int, late: bool, topic: str
) -> None:
    history = NIGHT.copy()
    # Whatever is appended last on any topic of the partition tells the time.
    records = history.of(topic)
    if records:
        records[-1] = replace(records[-1], timestamp=LATER + after_ms)
    else:
        history.now = LATER + after_ms
        history.append(topic, 0, b"k", b"v", ())

    live = await history.verify(at_rest=False, punctual_ms=1_000)
    resting = await history.verify(punctual_ms=1_000)

    assert ("I13", "wait_overdue") not in kinds(live)
    assert (("I13", "wait_overdue") in kinds(resting)) is late


async def test_a_cancelled_wait_that_goes_on_is_found_at_rest() -> None:
    history = Recorded()
    history.send(
        ("commands", document("create_mirrored", flow_id=TWO, **ABOUT)),
        ("commands", document("set_waiting", flow_id=TWO, wait=given.manual())),
    )
    asked = history.append_command("commands", document("request_cancel", flow_id=TWO))
    history.commit(0, [asked])

    assert ("I13", "wait_overdue") in kinds(await history.verify())
