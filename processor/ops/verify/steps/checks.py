"""Checks of managed steps: I13, their times; I14, how each moves; I16, how flows and joins
end.
"""

from collections.abc import Callable, Sequence
from typing import Final

from processor.contract.headers import MOVED_FROM
from processor.contract.values import parse_timestamp
from processor.ops.verify.contract import TERMINAL, Doc, canonical, hash16, same
from processor.ops.verify.ports import LogRecord
from processor.ops.verify.report import Report
from processor.ops.verify.scratch_store import ScratchStore
from processor.ops.verify.steps import rules
from processor.ops.verify.steps.item_checks import item_of
from processor.ops.verify.steps.lease_checks import LeaseChecks
from processor.ops.verify.steps.store import Awaited

ENDS_FLOW: Final = frozenset({"finished", "failed", "cancelled"})
ENDS_STEP: Final = frozenset({"step_succeeded", "step_failed", "step_cancelled"})

Add = Callable[[str, str, str], None]


class StepChecks:
    """Folds the managed steps of one partition, and holds them against their commands.

    `whole` says of a flow that all its events were seen. Where they were not, a step that is not
    known may be there.
    """

    def __init__(self, scratch: ScratchStore, report: Report) -> None:
        self._scratch = scratch
        self._managed = scratch.managed
        self._report = report
        self.leases = LeaseChecks(report)

    # Events

    def apply(
        self,
        record: LogRecord,
        event: Doc,
        command: Doc | None,
        flow: Doc,
        at_ms: int | None,
        *,
        whole: bool,
        add: Add,
    ) -> None:
        """Fold the event of a step, which is in `record`. `flow` is the step's as far as it is
        known, `at_ms` the append time of the command, where that is known."""
        self._report.checked["I14"] += 1
        kind, payload = event["kind"], event["payload_json"]
        if not rules.shaped(event):
            add("I14", "step_event", "The payload does not have the fields that its kind says.")
            return
        run_id = rules.run_id_of(event)
        step = self._managed.get(event["flow_id"], run_id)
        if kind == "step_scheduled":
            if self._scratch.step(event["flow_id"], run_id) is not None:
                add("I14", "step_scheduled_again", f"Step {run_id!r} is there already.")
            after: Doc = payload["step"]
            step = None
        elif step is None:
            if whole:
                add("I14", "event_of_no_step", f"{kind} of step {run_id!r}, which is not there.")
            self._offered(record, event, None)
            return
        else:
            self._moved(event, step, add)
            after = {**step, **payload["changes"]}
        if command is not None and at_ms is not None and "cancel_requested" in flow:
            self._held_against(event, command, flow, step, at_ms, add)
        if command is not None and step is not None:
            self._expired(record, command, step)
        self._managed.put(after, hash16(canonical(after)))
        self._offered(record, event, after)

    def _offered(self, record: LogRecord, event: Doc, step: Doc | None) -> None:
        """Note whether the event has offered its step; `step` is None where it is not known."""
        flow_id, run_id, payload = event["flow_id"], rules.run_id_of(event), event["payload_json"]
        execution = payload.get("step", payload.get("changes"))["execution"]
        if event["kind"] not in rules.OFFERS or execution["offers"] == 0:
            self._managed.taken(flow_id, run_id)
            return
        item = None if step is None else item_of(event, step, record.headers)
        at_ms = parse_timestamp(event["at"])
        self._managed.offered(Awaited(flow_id, run_id, event["id"], at_ms, record.offset), item)

    def _expired(self, record: LogRecord, command: Doc, step: Doc) -> None:
        """Note a lease that was ended. Not one that a repartition copied: it interleaves what
        several partitions had decided."""
        if command.get("kind") != "wake_step" or step["status"] != "running":
            return
        if not any(name == MOVED_FROM for name, _ in record.headers):
            self.leases.expired(command, rules.due_ms(step["execution"]))

    def _moved(self, event: Doc, step: Doc, add: Add) -> None:
        """What holds whatever the command was."""
        kind, changes = event["kind"], event["payload_json"]["changes"]
        origins, to, _ = rules.MOVES[kind]
        if step["status"] not in origins or changes.get("status") != to:
            stated = changes.get("status", "as it was")
            add("I14", "step_move", f"{kind} of a step that is {step['status']}; it is {stated}.")
        started = kind == "step_started"
        was, now = step["execution"]["attempt"], changes["execution"]["attempt"]
        if now != was + started:
            add("I14", "step_attempt", f"Attempt {now} follows attempt {was}.")
        if changes["updated_at"] != event["at"]:
            add("I14", "step_updated_at", "updated_at is not the event's time.")

    def _held_against(
        self, event: Doc, command: Doc, flow: Doc, step: Doc | None, at_ms: int, add: Add
    ) -> None:
        kind = event["kind"]
        if command["kind"] in rules.COMMANDS:
            caused = rules.caused(command, step, flow["cancel_requested"], at_ms)
            if kind != caused:
                stated = caused or "nothing"
                add("I14", "other_step_event", f"It should have caused {stated}, by its past.")
                return
        elif kind != "step_cancelled" or flow["status"] not in TERMINAL:
            add("I14", "other_step_event", f"{command['kind']} does not cause {kind}.")
            return
        expected = rules.payload_of(kind, command, event["flow_id"], step, at_ms)
        if not same(event["payload_json"], expected):
            add("I14", "step_payload", "It is not what its command and the step's past say.")

    # Outcomes

    def accepted(
        self, command: Doc, outcome: Doc, flow: Doc, at_ms: int, *, by_owner: bool, add: Add
    ) -> None:
        """Check an accepted command about a step before its events are folded."""
        kind, flow_id, run_id = command["kind"], outcome["flow_id"], command.get("run_id", "")
        self._report.checked["I14"] += 1
        cancel_requested = flow.get("cancel_requested", False)
        if cancel_requested and kind not in rules.DURING_CANCEL:
            add("I14", "begun_while_cancel_pending", f"{kind} after a cancel was requested.")
        if kind == "schedule_step":
            return
        step = self._managed.get(flow_id, run_id)
        if step is None:
            return
        if step["status"] not in rules.ORIGINS[kind]:
            add("I14", "step_illegal_move", f"{kind} of a step that was {step['status']}.")
            return
        if kind in rules.HELD and not rules.is_held_by(command, step, by_owner=by_owner):
            add("I14", "not_the_holder", f"{kind} from one that did not hold the step.")
        if kind in ("start_step", "wake_step") and not rules.is_due(command, step, at_ms):
            add("I14", "step_early", f"{kind} before its time.")
        if "cancel_requested" not in flow:
            return
        caused = rules.caused(command, step, cancel_requested, at_ms)
        if (caused is None) is bool(outcome["event_ids"]) and not outcome["dry_run"]:
            add("I14", "other_step_event", f"It should have caused {caused or 'nothing'}.")
        expected = rules.details(command, step, cancel_requested, at_ms)
        if not same(outcome["details"], expected):
            add("I14", "step_details", f"details are {outcome['details']}, not {expected}.")

    def founded(self, code: str, command: Doc, at_ms: int, *, by_owner: bool, whole: bool) -> bool:
        """Whether a refusal that is about a step may be right."""
        kind, flow_id, run_id = command["kind"], command["flow_id"], command.get("run_id", "")
        step = self._managed.get(flow_id, run_id)
        match code:
            case "step_exists":
                there = step is not None or (
                    kind == "schedule_step" and self._scratch.step(flow_id, run_id) is not None
                )
                return there or not whole
            case "step_not_found":
                return step is None
            case "illegal_transition":
                if step is None:
                    return not whole
                return step["status"] not in rules.ORIGINS.get(kind, ())
            case "not_holder":
                if step is None:
                    return not whole
                return not rules.is_held_by(command, step, by_owner=by_owner)
            case "not_due" if step is not None:
                return not rules.is_due(command, step, at_ms)
            case _:
                return True

    def ended(self, flow_id: str, flow: Doc, caused: Sequence[Doc], add: Add) -> None:
        """I16, once a command's events are folded: `flow` is as they leave it."""
        kinds = [event["kind"] for event in caused]
        if kinds and kinds[0] in ENDS_FLOW:
            self._report.checked["I16"] += 1
            left = sum(self._managed.statuses(flow_id, None, rules.LIVE).values())
            if left:
                add("I16", "live_step_of_ended_flow", f"It ended, and {left} of its steps did not.")
            run_ids = [rules.run_id_of(event) for event in caused[1:]]
            if run_ids != sorted(run_ids, key=str.encode):
                add("I16", "steps_out_of_order", "Its steps did not end in order of their run ids.")
        wait = flow.get("wait_json")
        if not isinstance(wait, dict) or wait.get("kind") != "steps":
            return
        if flow.get("cancel_requested") or ENDS_STEP.union({"waiting"}).isdisjoint(kinds):
            return
        self._report.checked["I16"] += 1
        if self._over(flow_id, wait):
            add("I16", "join_not_resumed", "What the flow waits for has come, and it still waits.")

    def resumed(self, flow_id: str, wait: Doc, add: Add) -> None:
        """Check that a join is over that was ended as such."""
        self._report.checked["I16"] += 1
        if wait.get("kind") != "steps":
            add("I16", "join_of_nothing", "The flow did not wait for steps.")
        elif not self._over(flow_id, wait):
            add("I16", "join_resumed_early", "The steps that the flow waited for have not ended.")

    # Times

    def overdue(self, before_ms: int, add: Callable[[str, str, str, str], None]) -> None:
        """Check that no step has a time any more that lies before `before_ms`; `add` gets the flow
        first."""
        for step in self._managed.live():
            self._report.checked["I13"] += 1
            due_at = step["execution"]["due_at"]
            if due_at is None or parse_timestamp(due_at) < before_ms:
                about = f"Step {step['run_id']!r} is {step['status']}, and was due at {due_at}."
                add(step["flow_id"], "I13", "step_overdue", about)

    def _over(self, flow_id: str, wait: Doc) -> bool:
        statuses = self._managed.statuses(flow_id, wait.get("run_ids"), None)
        return rules.join_over(wait, statuses)
