"""What verify finds in a recorded history: nothing in a clean one, and each planted defect."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from processor.contract.values import instant
from processor.ops.verify.contract import home_of
from processor.ops.verify.ports import TableProblem
from processor.ops.verify.report import INVARIANTS
from tests.support import builders as given
from tests.support.builders import HOUR_MS, MORNING, STRANGER, document
from tests.support.json_values import json_of
from tests.support.recorded_deployment import Recorded, edit, kinds, renumbered, violations
from tests.unit.ops.verify.histories import ABOUT, ONE, TWO, a_days_work

THREE = "9d1c2f5e-58a7-5bb4-8d0c-2d8d3b0a4c11"


def a_history() -> Recorded:
    """A day's work, then what it has none of: waits that end by themselves, refusals
    of each kind, a flow that stays."""
    all_of = Recorded()
    for batch in a_days_work():
        all_of.send(*batch)
    now = all_of.now
    due, step = now + 5_000, {"run_id": "r", "task": "t", "status": "pending", "result_json": [1]}
    one = {"flow_id": THREE}
    all_of.send(
        ("commands", document("create_mirrored", **one, **ABOUT, current_step=None)),
        ("commands", document("set_waiting", **one, wait=given.timer(due))),
        ("commands", document("record_step_observation", **one, **step, child_session_key="c")),
    )
    all_of.send(("control", document("wake", **one)), at_ms=due - 1)
    all_of.send(("control", document("wake", **one)), at_ms=due)
    wait = given.external_event(timeout_at_ms=due + HOUR_MS)
    event = {"topic": wait["topic"], "correlation_id": wait["correlation_id"], "payload": None}
    all_of.send(
        ("commands", document("set_waiting", **one, wait=wait)),
        ("commands", document("resume_external", **one, **{**event, "topic": "x"})),
        ("commands", document("resume_external", **one, **event, issued_by=STRANGER)),
        ("commands", document("update_state", **one, patch=3, issued_by=STRANGER)),
        ("commands", document("update_state", **one, patch=3, expected_revision=0)),
        ("commands", document("update_state", **one, patch=3, expected_revision=4)),
        ("commands", document("wake", **one)),
        ("commands", document("start_running", **one)),
        ("commands", document("create_managed", **one, **ABOUT)),
        ("commands", document("finish", **one, expires_at=instant(MORNING))),
        ("commands", document("record_step_observation", **one, **{**step, "status": "running"})),
        ("control", document("prune", **one)),
        ("commands", document("fail", flow_id=ONE, reason="r", schema_version=2)),
        ("commands", document("finish", flow_id=ONE, final_state=None, expected_revision=None)),
        ("commands", document("update_state", **one, patch="x" * 260_000)),
    )
    all_of.keep_tables()
    return all_of


CLEAN = a_history()


@pytest.fixture
def history() -> Recorded:
    return CLEAN.copy()


async def test_a_clean_history_has_no_violations_and_each_invariant_is_looked_at(
    history: Recorded,
) -> None:
    report = await history.verify()

    assert report.ok, violations(report)
    assert report.counts["outcomes"] == len(history.of("outcomes")) == 43
    assert report.counts["events"] == len(history.of("audit"))
    assert report.counts["undecided"] == 0
    assert (report.counts["flows"], report.counts["steps"]) == (2, 1)
    assert report.tables == ["table-0"]
    # Managed steps have a history of their own, in test_steps.
    assert {name for name in INVARIANTS if not report.checked[name]} == {"I14", "I15", "I17"}
    codes = Counter(json.loads(r.value or b"")["code"] for r in history.of("outcomes"))
    assert len(codes) > 12


async def test_a_clean_history_holds_without_a_table_and_while_work_goes_on(
    history: Recorded,
) -> None:
    history.tables.clear()
    history.send(("commands", document("cancel", flow_id=ONE)), decide=False)

    report = await history.verify(at_rest=False)

    assert report.ok, violations(report)
    assert report.counts["undecided"] == 1
    assert "Partition 0: there is no table at hand." in report.not_covered


async def test_a_command_without_an_answer_is_a_violation_only_at_rest(history: Recorded) -> None:
    history.send(("commands", document("cancel", flow_id=ONE)), decide=False)

    assert kinds(await history.verify()) == {("I10", "command_unanswered")}


def drop(topic: Any, index: Any) -> Any:
    return lambda history: history.of(topic).pop(index)


def double(topic: Any, index: Any) -> Any:
    """Again, at the end and at an offset of its own."""

    def plant(history: Recorded) -> None:
        records = history.of(topic)
        records.append(replace(records[index], offset=records[-1].offset + 1))

    return plant


def swap(topic: Any, i: Any, j: Any) -> Any:
    def plant(history: Recorded) -> None:
        records = history.of(topic)
        a, b = records[i], records[j]
        records[i], records[j] = replace(b, offset=a.offset), replace(a, offset=b.offset)

    return plant


def change(topic: Any, index: Any, **fields: Any) -> Any:
    def plant(history: Recorded) -> None:
        history.of(topic)[index] = edit(history.of(topic)[index], **fields)

    return plant


def other(topic: Any, index: Any, **attributes: Any) -> Any:
    def plant(history: Recorded) -> None:
        history.of(topic)[index] = replace(history.of(topic)[index], **attributes)

    return plant


def place(topic: Any, matches: Any) -> Any:
    """The index of the first record in CLEAN whose JSON holds `matches`."""
    for index, record in enumerate(CLEAN.of(topic)):
        value = json.loads(record.value or b"null")
        if isinstance(value, dict) and matches.items() <= value.items():
            return index
    raise AssertionError(f"no {matches} on {topic}")


def event(kind: str, nth: int = 0) -> Any:
    found = [i for i, r in enumerate(CLEAN.of("audit")) if json_of(r)["kind"] == kind]
    return found[nth]


def outcome(**matches: Any) -> Any:
    return place("outcomes", matches)


def snapshot(flow_id: Any) -> Any:
    """The index of the newest record of a flow on `state`."""
    keys = [record.key for record in CLEAN.of("state")]
    return len(keys) - 1 - keys[::-1].index(flow_id.encode())


def cursor(nth: Any) -> Any:
    return [i for i, r in enumerate(CLEAN.of("state")) if r.key == b"cursor/0"][nth]


def closed_up(history: Recorded) -> None:
    """An event dropped by somebody who closed the gap in the ids behind it."""
    records = history.of("audit")
    del records[2]
    history.records["audit", 0] = [edit(r, id=i + 1) for i, r in enumerate(renumbered(records))]


def row(**columns: Any) -> Any:
    def plant(history: Recorded) -> None:
        rows = history.tables[0].flows
        index = [one.flow_id for one in rows].index(THREE)
        rows[index] = rows[index]._replace(**columns)

    return plant


def row_doc(**fields: Any) -> Any:
    def plant(history: Recorded) -> None:
        (old,) = (one for one in history.tables[0].flows if one.flow_id == THREE)
        row(doc=json.dumps({**json.loads(old.doc), **fields}))(history)

    return plant


def table_at(**fields: Any) -> Any:
    def plant(history: Recorded) -> None:
        history.tables[0].position = history.tables[0].position._replace(**fields)

    return plant


def stale_snapshot(history: Recorded) -> None:
    """The newest snapshot of a flow was lost, and an older one is taken for it."""
    records = history.of("state")
    del records[snapshot(THREE)]


def forgotten_prune(history: Recorded) -> None:
    """The tombstone of a pruned flow was lost, its snapshot was not."""
    records = history.of("state")
    tombstones = [i for i, r in enumerate(records) if r.key == TWO.encode() and r.value is None]
    del records[tombstones[0]]


def step_lost_on_state(history: Recorded) -> None:
    records = history.of("state")
    history.records["state", 0] = [r for r in records if r.key != f"{THREE}/r".encode()]


def a_stranger(history: Recorded) -> None:
    """A second writer's batch amid an owner's transaction."""
    records = history.of("state")
    records.insert(cursor(0), replace(records[0], value=records[0].value))


def an_event_of_nobody(history: Recorded) -> None:
    """Appended by somebody who knows the rules, but wrote no outcome."""
    last = history.of("audit")[-1]
    number = json_of(last)["id"] + 1
    history.of("audit").append(replace(edit(last, id=number), offset=last.offset + 1))


def moved_on_by_nobody(history: Recorded) -> None:
    an_event_of_nobody(history)
    index = cursor(-1)
    doc = json.loads(history.of("state")[index].value)
    change("state", index, next_event_id=doc["next_event_id"] + 1)(history)
    table_at(next_event_id=doc["next_event_id"] + 1)(history)


FIRST_START = outcome(kind="start_running", verdict="accepted")
TIMER = event("resumed")
DEFECTS = {
    "an event dropped": (drop("audit", 3), "I3", "event_id_gap"),
    "an event dropped, as its outcome sees it": (drop("audit", 3), "I9", "event_missing"),
    "an event dropped, as its flow's chain sees it": (drop("audit", 3), "I7", "chain_broken"),
    "the last event dropped": (drop("audit", -1), "I9", "event_missing"),
    "an event dropped and the ids closed up": (closed_up, "I7", "chain_broken"),
    "an event doubled": (double("audit", -1), "I3", "event_id_repeated"),
    "events swapped": (swap("audit", 1, 2), "I3", "event_id_repeated"),
    "an event's payload edited": (change("audit", 0, payload_json={}), "I7", "chain_broken"),
    "an event's payload is not the command's": (
        change("audit", 0, payload_json={}),
        *("I9", "event_payload"),
    ),
    "an event's revision": (change("audit", 1, revision=9), "I3", "event_revision"),
    "an event's status": (change("audit", -1, status="failed"), "I3", "event_revision"),
    "an event's actor": (change("audit", -1, actor="x"), "I9", "event_actor"),
    "an event's time": (change("audit", 0, at="2026-01-01T00:00:00.000Z"), "I9", "event_at"),
    "an event's source": (change("audit", 0, source={}), "I9", "event_of_another"),
    "an event of another kind": (change("audit", 1, kind="waiting"), "I4", "illegal_move"),
    "an event of no kind": (change("audit", 1, kind="danced"), "I3", "not_an_event"),
    "an event of another command's kind": (
        change("audit", 1, kind="cancelled"),
        *("I4", "other_events"),
    ),
    "a flow created twice": (change("audit", 1, kind="created"), "I4", "created_again"),
    "a chain lost": (other("audit", 1, headers=()), "I7", "chain_missing"),
    "a traceparent of an event lost": (
        other("audit", 1, headers=CLEAN.of("audit")[1].headers[:1]),
        *("I9", "traceparent_lost"),
    ),
    "an event under another key": (other("audit", 1, key=b"x"), "I12", "event_key"),
    "a timer fired early": (
        other("control", place("control", {"kind": "wake", "flow_id": THREE}) + 1, timestamp=1),
        *("I13", "woken_early"),
    ),
    "a timer's wake taken for a timeout": (
        change("audit", TIMER, payload_json={"by": "timeout", "state_patch": None}),
        *("I9", "event_payload"),
    ),
    "a step's payload": (change("audit", event("step_observed"), payload_json={}), "I5", "step"),
    "an event without outcome": (moved_on_by_nobody, "I9", "event_without_outcome"),
    "an outcome dropped": (drop("outcomes", 5), "I1", "command_without_outcome"),
    "the last outcome dropped": (drop("outcomes", -1), "I1", "command_without_outcome"),
    "an outcome doubled": (double("outcomes", 0), "I1", "outcome_repeated"),
    "outcomes swapped": (swap("outcomes", 7, 8), "I1", "outcome_out_of_order"),
    "an outcome of nothing": (drop("commands", 3), "I1", "outcome_without_command"),
    "no outcome at all": (change("outcomes", 3, more=1), "I1", "not_an_outcome"),
    "an outcome's revision": (
        change("outcomes", FIRST_START, revision=2),
        *("I3", "outcome_revision"),
    ),
    "an outcome's status": (
        change("outcomes", FIRST_START, status="failed"),
        *("I3", "outcome_revision"),
    ),
    "an outcome's time": (
        change("outcomes", 1, at="2026-01-01T00:00:00.000Z"),
        *("I1", "outcome_at"),
    ),
    "an outcome's digest": (
        change("outcomes", 1, command_digest="0" * 32),
        *("I1", "outcome_digest"),
    ),
    "an outcome's command id": (
        change("outcomes", 1, command_id=THREE),
        *("I1", "outcome_command_id"),
    ),
    "an outcome's code": (change("outcomes", 1, code="not_found"), "I1", "outcome_code"),
    "an outcome without a message": (change("outcomes", 1, message=""), "I1", "outcome_message"),
    "an outcome's dry_run": (change("outcomes", 1, dry_run=True), "I1", "outcome_dry_run"),
    "an outcome's key": (other("outcomes", 0, key=b"x"), "I12", "outcome_key"),
    "an outcome's traceparent": (other("outcomes", 0, headers=()), "I9", "traceparent_lost"),
    "an outcome's partition": (
        change("outcomes", 0, source={"topic": "taskflow.commands", "partition": 1, "offset": 0}),
        *("I12", "outcome_elsewhere"),
    ),
    "allowed not sorted": (change("outcomes", 0, allowed=["x"]), "I4", "outcome_allowed"),
    "a refusal that names events": (
        change("outcomes", outcome(verdict="rejected"), event_ids=[1]),
        *("I9", "outcome_names_events"),
    ),
    "an outcome that names other events": (
        change("outcomes", 0, event_ids=[7]),
        *("I9", "event_without_outcome"),
    ),
    "a quarantined outcome with a status": (
        change("outcomes", outcome(verdict="quarantined"), status="running"),
        *("I1", "outcome_of_nothing"),
    ),
    "a resend accepted": (
        change("outcomes", outcome(verdict="duplicate"), verdict="accepted", original=None),
        *("I1", "not_an_outcome"),
    ),
    "a resend with another answer": (
        change("outcomes", outcome(verdict="duplicate"), revision=7),
        *("I2", "another_answer"),
    ),
    "a conflict taken for another refusal": (
        change("outcomes", outcome(code="idempotency_conflict"), code="not_owner"),
        *("I2", "conflict_not_seen"),
    ),
    "a first taken for a resend": (
        change("outcomes", 0, verdict="rejected", code="idempotency_conflict", event_ids=[]),
        *("I2", "first_taken_for_resend"),
    ),
    "a refusal without ground": (
        change("outcomes", outcome(code="already_exists"), code="not_found"),
        *("I4", "refusal_unfounded"),
    ),
    "an expired command accepted": (
        change("outcomes", outcome(code="expired"), verdict="accepted", code=None),
        *("I4", "accepted_late"),
    ),
    "an unexpected revision accepted": (
        change("outcomes", outcome(code="revision_mismatch"), verdict="accepted", code=None),
        *("I4", "revision_ignored"),
    ),
    "a stranger's command accepted": (
        change("outcomes", outcome(code="not_owner"), verdict="accepted", code=None),
        *("I4", "not_the_owner"),
    ),
    "a wake on commands accepted": (
        change("outcomes", outcome(code="forbidden"), verdict="accepted", code=None),
        *("I4", "control_only"),
    ),
    "an illegal command accepted": (
        change("outcomes", outcome(code="illegal_transition"), verdict="accepted", code=None),
        *("I4", "illegal_move"),
    ),
    "another event accepted": (
        change("outcomes", outcome(code="wait_mismatch"), verdict="accepted", code=None),
        *("I4", "other_wait"),
    ),
    "a command of an unknown flow accepted": (
        change("outcomes", outcome(code="not_found"), verdict="accepted", code=None),
        *("I4", "no_such_flow"),
    ),
    "a second create accepted": (
        change("outcomes", outcome(code="already_exists"), verdict="accepted", code=None),
        *("I4", "created_again"),
    ),
    "a dead letter dropped": (drop("deadletters", 0), "I9", "dead_letter_missing"),
    "the last dead letter dropped": (drop("deadletters", -1), "I9", "dead_letter_missing"),
    "a dead letter doubled": (double("deadletters", 0), "I9", "dead_letter_extra"),
    "a dead letter's value": (
        other("deadletters", 0, value=b"\xfe"),
        *("I9", "dead_letter_differs"),
    ),
    "a dead letter's key": (other("deadletters", 0, key=b""), "I9", "dead_letter_differs"),
    "a dead letter's header": (
        other("deadletters", 0, headers=CLEAN.of("deadletters")[0].headers[1:]),
        *("I9", "dead_letter_differs"),
    ),
    "a stale snapshot": (stale_snapshot, "I5", "state_flow_differs"),
    "a stale snapshot, by its tail": (stale_snapshot, "I7", "state_tail"),
    "a snapshot edited": (
        change("state", snapshot(THREE), flow={}),
        *("I5", "state_flow_differs"),
    ),
    "a snapshot that is none": (
        other("state", snapshot(THREE), value=b"{}"),
        *("I5", "state_flow_unreadable"),
    ),
    "a snapshot removed": (
        other("state", snapshot(THREE), value=None),
        *("I5", "state_flow_missing"),
    ),
    "a snapshot's chain": (
        change("state", snapshot(THREE), chain="00" * 16),
        *("I7", "state_tail"),
    ),
    "a tombstone missing after a prune": (forgotten_prune, "I5", "state_flow_extra"),
    "a step lost": (step_lost_on_state, "I5", "state_step"),
    "a step too many": (
        lambda history: history.of("state").insert(
            0, replace(history.of("state")[0], key=f"{THREE}/z".encode(), value=b'{"step":{}}')
        ),
        *("I5", "state_step_extra"),
    ),
    "a cursor that goes back": (swap("state", cursor(0), cursor(1)), "I6", "cursor_moved_back"),
    "a cursor that is none": (change("state", cursor(0), control=None), "I6", "not_a_cursor"),
    "a cursor of another partition": (
        other("state", cursor(0), key=b"cursor/1"),
        *("I12", "cursor_misplaced"),
    ),
    "a cursor ahead of its topic": (change("state", cursor(-1), control=99), "I6", "cursor_ahead"),
    "the last cursor lost": (drop("state", cursor(-1)), "I9", "state_without_cursor"),
    "the last cursor lost, as outcomes see it": (
        drop("state", cursor(-1)),
        *("I9", "outcome_without_cursor"),
    ),
    "another producer in a transaction": (a_stranger, "I8", "state_key_twice"),
    "a table's row off by one": (row_doc(revision=3), "I5", "table_flow_differs"),
    "a payload flipped in a table": (row_doc(state_json=[1]), "I5", "table_flow_differs"),
    "a column flipped in a table": (row(status="failed"), "I5", "table_columns"),
    "a table's row with another tail": (row(chain=bytes(16)), "I7", "table_tail"),
    "a table's row that is no JSON": (row(doc="{"), "I5", "table_flow_unreadable"),
    "a table's row missing": (
        lambda history: history.tables[0].flows.clear(),
        *("I5", "table_flow_missing"),
    ),
    "a table's row too many": (row(flow_id=TWO), "I5", "table_flow_extra"),
    "a table's step lost": (
        lambda history: history.tables[0].steps.clear(),
        *("I5", "table_step"),
    ),
    "a table behind its rows": (table_at(next_event_id=3), "I5", "table_flow_extra"),
    "a table ahead": (table_at(next_event_id=99), "I6", "table_ahead"),
    "a table of other topics": (table_at(partitions=2), "I12", "table_of_other_topics"),
    "a table damaged": (
        lambda history: setattr(history.tables[0], "problem", TableProblem("it is damaged", True)),
        *("I5", "table_damaged"),
    ),
    "a transaction left open": (
        lambda history: history.ends.update({("audit", 0): (0, 5)}),
        *("I11", "transaction_open"),
    ),
}


@pytest.mark.parametrize(("plant", "invariant", "kind"), DEFECTS.values(), ids=DEFECTS)
async def test_a_planted_defect_is_found_and_named(
    history: Recorded, plant: Any, invariant: str, kind: str
) -> None:
    plant(history)

    report = await history.verify()

    assert (invariant, kind) in kinds(report), violations(report)
    first = report.first[invariant, kind]
    assert first.partition == 0
    assert first.message


async def test_a_resend_that_was_applied_twice_is_found() -> None:
    again = document("update_state", flow_id=ONE, patch={"n": 1})
    history = Recorded(window_ms=0)
    history.send(("commands", document("create_managed", flow_id=ONE, **ABOUT)))
    history.send(("commands", again))
    history.send(("commands", again))
    assert (await history.verify()).ok

    history.window_ms = 1_000
    assert kinds(await history.verify()) == {("I2", "accepted_twice")}
    history.window_ms = 999
    assert (await history.verify()).ok


async def test_a_violation_names_the_flow_and_the_place(history: Recorded) -> None:
    row_doc(current_step="nowhere")(history)

    (violation,) = (await history.verify()).as_json()["violations"]

    assert violation == {
        "invariant": "I5",
        "kind": "table_flow_differs",
        "topic": "table-0",
        "partition": 0,
        "offset": -1,
        "flow_id": THREE,
        "message": "The table has revision 6 (running), the fold 6 (running); they differ in "
        "current_step.",
        "count": 1,
    }


@pytest.mark.parametrize(
    ("key", "hashed"),
    # As Java's Utils.murmur2 gives them.
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536)],
)
def test_its_hash_is_kafkas(key: bytes, hashed: int) -> None:
    assert home_of(key, 2**31) == hashed & 0x7FFFFFFF
