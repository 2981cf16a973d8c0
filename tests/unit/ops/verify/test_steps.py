"""What verify finds in histories of managed steps: nothing, or the defect that was planted."""

import json
from typing import Any

import pytest

from processor.contract.events import CHAIN_HEADER
from processor.contract.values import instant
from processor.ops.verify.contract import hash16
from tests.support import builders as given
from tests.support.builders import EXECUTOR, HOUR_MS, STRANGER, document
from tests.support.json_values import json_of
from tests.support.recorded_deployment import Recorded, edit, kinds, violations
from tests.unit.ops.verify.histories import ABOUT, ONE, TWO

LEASE_MS = 5_000
ITEM = {"task": "t", "lease_ms": LEASE_MS, "backoff_ms": 0, "input_json": {"é": 1.5}}


def scheduled(flow_id: Any, run_id: Any, **fields: Any) -> Any:
    return ("commands", document("schedule_step", flow_id=flow_id, run_id=run_id, **ITEM | fields))


def of_step(kind: str, flow_id: Any, run_id: Any, **fields: Any) -> Any:
    body = document(kind, flow_id=flow_id, run_id=run_id, **{"issued_by": EXECUTOR, **fields})
    return ("control" if kind == "wake_step" else "commands", body)


def a_history() -> Recorded:
    """Two flows: a step that is tried again and succeeds, a join, steps that end with their flow,
    and refusals of each kind that is about a step."""
    all_of = Recorded()
    one, two = {"flow_id": ONE}, {"flow_id": TWO}
    seen = {"task": "t", "status": "running"}
    all_of.send(
        ("commands", document("create_mirrored", **one, **ABOUT)),
        scheduled(ONE, "a", max_attempts=4),
        scheduled(ONE, "b", not_before=instant(all_of.now + HOUR_MS)),
        of_step("start_step", ONE, "a"),
        of_step("start_step", ONE, "b"),
        of_step("start_step", ONE, "a"),
        scheduled(ONE, "a"),
        of_step("start_step", ONE, "none"),
    )
    all_of.send(of_step("wake_step", ONE, "a"))
    all_of.send(of_step("extend_step", ONE, "a", attempt=1, progress_json=[1]))
    all_of.send(of_step("extend_step", ONE, "a", attempt=1))
    all_of.send(of_step("complete_step", ONE, "a", attempt=1, issued_by=STRANGER))
    lapsed = all_of.now + LEASE_MS
    all_of.send(of_step("wake_step", ONE, "a"), at_ms=lapsed)
    all_of.send(
        of_step("start_step", ONE, "a", issued_by="executor:2"),
        of_step("fail_step", ONE, "a", attempt=1, reason="late"),
        of_step("fail_step", ONE, "a", attempt=2, reason="503", issued_by="executor:2"),
        of_step("start_step", ONE, "a", dry_run=True),
        of_step("start_step", ONE, "a"),
        of_step("release_step", ONE, "a", attempt=3),
        of_step("start_step", ONE, "a"),
        ("commands", document("set_waiting", **one, wait=given.steps("a", "b", mode="any"))),
        of_step("complete_step", ONE, "a", attempt=4, result_json={"n": 1}),
    )
    all_of.send(
        ("commands", document("create_managed", **two, **ABOUT)),
        scheduled(TWO, "z"),
        scheduled(TWO, "é"),
        scheduled(TWO, "c"),
        ("commands", document("retry_step", flow_id=TWO, run_id="z", attempts=2)),
        ("commands", document("cancel_step", flow_id=TWO, run_id="c")),
        (
            "commands",
            document("record_step_observation", **two, run_id="z", **seen),
        ),
        (
            "commands",
            document("record_step_observation", **two, run_id="o", **seen),
        ),
        ("commands", document("cancel", **two)),
        of_step("start_step", TWO, "z"),
    )
    all_of.keep_tables()
    return all_of


CLEAN = a_history()


@pytest.fixture
def history() -> Recorded:
    return CLEAN.copy()


async def test_a_clean_history_has_no_violations(history: Recorded) -> None:
    report = await history.verify()

    assert report.ok, violations(report)
    assert report.checked["I14"] > 20
    assert report.checked["I16"] == 3  # a join that begins, one that is over, a flow's end
    codes = {json_of(record)["code"] for record in history.of("outcomes")}
    about_steps = {"step_exists", "step_not_found", "not_holder", "not_due", "illegal_transition"}
    assert about_steps <= codes
    events = {json_of(record)["kind"] for record in history.of("audit")}
    assert len({kind for kind in events if kind.startswith("step_")}) >= 8


def events(kind: str) -> Any:
    return [i for i, r in enumerate(CLEAN.of("audit")) if json_of(r)["kind"] == kind]


def rechained(history: Recorded) -> None:
    """As a processor that believes in the change would have written it."""
    chains: dict[str, bytes] = {}
    records = history.of("audit")
    for index, record in enumerate(records):
        flow_id = json_of(record)["flow_id"]
        chains[flow_id] = hash16(chains.get(flow_id, bytes(16)) + (record.value or b""))
        headers = [(n, chains[flow_id] if n == CHAIN_HEADER else v) for n, v in record.headers]
        records[index] = record.__class__(
            *(record.topic, record.partition, record.offset, record.timestamp),
            *(record.key, record.value, tuple(headers)),
        )


def changed(kind: str, nth: int = 0, **fields: Any) -> Any:
    """Another payload of an event: `execution` and other changes by name, or what stands beside."""

    def plant(history: Recorded) -> None:
        records = history.of("audit")
        index = events(kind)[nth]
        payload = json.loads(records[index].value)["payload_json"]
        for name, value in fields.items():
            if name == "execution":
                holder = payload.get("step") or payload["changes"]
                holder["execution"] |= value
            elif name in payload:
                payload[name] = value
            else:
                (payload.get("step") or payload["changes"])[name] = value
        records[index] = edit(records[index], payload_json=payload)
        rechained(history)

    return plant


def other_kind(kind: str, nth: Any, to: Any, **payload: Any) -> Any:
    def plant(history: Recorded) -> None:
        records, index = history.of("audit"), events(kind)[nth]
        old = json.loads(records[index].value)["payload_json"]
        records[index] = edit(records[index], kind=to, payload_json={**old, **payload})
        rechained(history)

    return plant


def sent_by(command_kind: Any, name: Any, **fields: Any) -> Any:
    """A command that had been another when it was accepted."""

    def plant(history: Recorded) -> None:
        records = history.of(name)
        index = next(i for i, r in enumerate(records) if json_of(r)["kind"] == command_kind)
        records[index] = edit(records[index], **fields)

    return plant


def accepted(code: Any, nth: int = 0) -> Any:
    """A refusal that was none."""

    def plant(history: Recorded) -> None:
        records = history.of("outcomes")
        found = [i for i, r in enumerate(records) if json_of(r)["code"] == code]
        index = found[nth]
        records[index] = edit(records[index], verdict="accepted", code=None, details={})

    return plant


def refused(kind: str, code: Any, nth: int = 0) -> Any:
    def plant(history: Recorded) -> None:
        records = history.of("outcomes")
        found = [
            i
            for i, r in enumerate(records)
            if (o := json_of(r))["kind"] == kind and o["verdict"] == "accepted"
        ]
        records[found[nth]] = edit(records[found[nth]], verdict="rejected", code=code)

    return plant


def details(kind: str, **fields: Any) -> Any:
    def plant(history: Recorded) -> None:
        records = history.of("outcomes")
        index = next(
            i
            for i, r in enumerate(records)
            if (o := json_of(r))["kind"] == kind and o["verdict"] == "accepted"
        )
        records[index] = edit(records[index], details=fields)

    return plant


def dropped(kind: str, nth: Any) -> Any:
    def plant(history: Recorded) -> None:
        del history.of("audit")[events(kind)[nth]]
        rechained(history)

    return plant


def swapped(kind: str, one: Any, other: Any) -> Any:
    def plant(history: Recorded) -> None:
        records = history.of("audit")
        i, j = events(kind)[one], events(kind)[other]
        payloads = [json.loads(records[n].value)["payload_json"] for n in (i, j)]
        records[i] = edit(records[i], payload_json=payloads[1])
        records[j] = edit(records[j], payload_json=payloads[0])
        rechained(history)

    return plant


DEFECTS = {
    "an attempt skipped": (
        changed("step_started", execution={"attempt": 7}),
        *("I14", "step_attempt"),
    ),
    "an attempt not counted": (
        changed("step_started", 1, execution={"attempt": 1}),
        *("I14", "step_attempt"),
    ),
    "a lease of another length": (
        changed("step_started", execution={"due_at": "2026-05-28T21:00:00.000Z"}),
        *("I14", "step_payload"),
    ),
    "a holder who did not send the start": (
        changed("step_started", child_session_key="x"),
        *("I14", "step_payload"),
    ),
    "a step scheduled with other attempts": (
        changed("step_scheduled", execution={"max_attempts": 9}),
        *("I14", "step_payload"),
    ),
    "a lapsed lease without its holder": (
        changed("step_retried", child_session_key=None),
        *("I14", "step_payload"),
    ),
    "a backoff that was not waited for": (
        changed("step_retried", execution={"offers": 2}),
        *("I14", "step_payload"),
    ),
    "a result that is not the command's": (
        changed("step_succeeded", result_json=7),
        *("I14", "step_payload"),
    ),
    "a step that succeeds instead of being released": (
        other_kind("step_released", 0, "step_succeeded"),
        *("I14", "step_event"),
    ),
    "a step that goes from pending to pending": (
        changed("step_started", status="pending"),
        *("I14", "step_move"),
    ),
    "a step that is offered while it runs": (
        other_kind("step_extended", 0, "step_dispatched"),
        *("I14", "step_move"),
    ),
    "an updated_at that is not the event's": (
        changed("step_extended", updated_at="2026-05-28T20:26:42.000Z"),
        *("I14", "step_updated_at"),
    ),
    "a step scheduled twice": (
        changed("step_scheduled", 1, run_id="a"),
        *("I14", "step_scheduled_again"),
    ),
    "an event of a step that was never scheduled": (
        changed("step_started", run_id="never"),
        *("I14", "event_of_no_step"),
    ),
    "an event of a step's flow that says too little": (
        changed("step_started", run_id=None),
        *("I14", "step_event"),
    ),
    "a cancel of a step told as its flow's": (
        changed("step_cancelled", by="flow"),
        *("I14", "step_payload"),
    ),
    "a result refused although its sender held the step": (
        sent_by("complete_step", "commands", attempt=1, issued_by=EXECUTOR),
        *("I4", "refusal_unfounded"),
    ),
    "a second holder": (accepted("not_holder"), "I14", "not_the_holder"),
    "a step started before its time": (accepted("not_due"), "I14", "step_early"),
    "a step woken before its time": (accepted("not_due", 1), "I14", "step_early"),
    "a step command that was accepted and did nothing": (
        accepted("not_holder"),
        *("I4", "other_events"),
    ),
    "a start refused as if the step were not there": (
        refused("start_step", "step_not_found"),
        *("I4", "refusal_unfounded"),
    ),
    "a schedule refused as if the run id were taken": (
        refused("schedule_step", "step_exists"),
        *("I4", "refusal_unfounded"),
    ),
    "an extension refused as if it were another's": (
        refused("extend_step", "not_holder"),
        *("I4", "refusal_unfounded"),
    ),
    "a start refused as if it were early": (
        refused("start_step", "not_due"),
        *("I4", "refusal_unfounded"),
    ),
    "a release refused as if the step were pending": (
        refused("release_step", "illegal_transition"),
        *("I4", "refusal_unfounded"),
    ),
    "a start that tells another lease": (
        details("start_step", attempt=1, due_at="2026-05-28T20:26:42.000Z"),
        *("I14", "step_details"),
    ),
    "a live step of a flow that has ended": (
        dropped("step_cancelled", -1),
        *("I16", "live_step_of_ended_flow"),
    ),
    "steps that end in another order": (
        swapped("step_cancelled", -1, -2),
        *("I16", "steps_out_of_order"),
    ),
    "a join that is not resumed": (dropped("resumed", 0), "I16", "join_not_resumed"),
    "a join that is resumed before a step has ended": (
        other_kind("step_succeeded", 0, "step_started"),
        *("I16", "join_resumed_early"),
    ),
    "a flow resumed by steps that waited for none": (
        changed("waiting", wait={"kind": "manual"}),
        *("I16", "join_of_nothing"),
    ),
}


@pytest.mark.parametrize(("plant", "invariant", "kind"), DEFECTS.values(), ids=list(DEFECTS))
async def test_a_planted_defect_is_found(
    plant: Any, invariant: str, kind: str, history: Recorded
) -> None:
    plant(history)

    assert (invariant, kind) in kinds(await history.verify())
