"""The contract once more, as a program that is as plain as its tables: what one partition answers.

It shares no code with the processor and knows only what a reader of the contract knows. It keeps
everything and is fast at nothing. `Contract.take(record)` answers what that record causes; where
the contract leaves the words free (sentences, some details), the answer says nothing.
"""

import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.support import reference_steps
from tests.support.reference_steps import Events
from tests.support.reference_values import (
    KIB,
    REQUIRED,
    Doc,
    Refused,
    anything,
    compact,
    digest,
    fits,
    is_copy,
    is_integer,
    is_text,
    is_time,
    is_uuid,
    merged,
    milliseconds,
    parsed,
    sorted_compact,
    without_absent,
    written,
    wrong_in,
)

TERMINAL = {"cancelled", "finished", "failed"}
LIVE = {"created", "running", "waiting"}
TO_ALL = {"resume_external", "record_step_observation"} | reference_steps.TO_ALL
CONTROL_ONLY = {"wake", "wake_step", "prune"}
THOSE_THREE = {"prune", "request_cancel", "record_step_observation"}
CREATES = {"create_managed", "create_mirrored"}
NOT_IN_LEDGER = {"forbidden", "not_owner", "idempotency_conflict"}

MOVES: dict[str, tuple[set[str], str | None]] = {
    "start_running": ({"created"}, "running"),
    "set_waiting": ({"running"}, "waiting"),
    "resume": ({"waiting"}, "running"),
    "resume_external": ({"waiting"}, "running"),
    "finish": ({"running"}, "finished"),
    "fail": ({"running", "waiting"}, "failed"),
    "request_cancel": (LIVE | TERMINAL, None),
    "cancel": (LIVE, "cancelled"),
    "update_state": (LIVE, None),
    "record_step_observation": (LIVE | TERMINAL, None),
    "wake": ({"waiting"}, "running"),
    "prune": (TERMINAL, "gone"),
}


# Fields: name → (what it must be, its default); REQUIRED has none.

COMMON = {
    "kind": (lambda v: isinstance(v, str), REQUIRED),
    "command_id": (is_uuid, REQUIRED),
    "flow_id": (is_uuid, REQUIRED),
    "issued_by": (is_text, REQUIRED),
    "expected_revision": (lambda v: is_integer(v) and v >= 0, None),
    "expires_at": (is_time, None),
    "dry_run": (lambda v: isinstance(v, bool), False),
    "schema_version": (lambda v: is_integer(v) and v == 1, 1),
}

CREATE = {
    "controller_id": (is_text, REQUIRED),
    "goal": (lambda v: is_text(v, 4096), REQUIRED),
    "requester_origin": (is_text, REQUIRED),
    "current_step": (is_text, "init"),
    "state_json": (anything, {}),
    "owner_session_key": (is_text, None),
}
OWN: dict[str, dict[str, Any]] = {
    "create_managed": CREATE,
    "create_mirrored": CREATE,
    "start_running": {},
    "set_waiting": {"wait": (lambda v: not list(wrong_in_wait(v)), REQUIRED)},
    "resume": {"state_patch": (anything, None)},
    "resume_external": {
        "topic": (lambda v: is_text(v, 512), REQUIRED),
        "correlation_id": (lambda v: is_text(v, 512), REQUIRED),
        "payload": (anything, None),
    },
    "finish": {"final_state": (anything, None)},
    "fail": {"reason": (lambda v: is_text(v, 4096), REQUIRED)},
    "request_cancel": {},
    "cancel": {},
    "update_state": {"patch": (anything, REQUIRED), "next_step": (is_text, None)},
    "record_step_observation": {
        "run_id": (is_text, REQUIRED),
        "task": (is_text, REQUIRED),
        "status": (
            lambda v: (
                isinstance(v, str)
                and v in ("pending", "running", "succeeded", "failed", "cancelled")
            ),
            REQUIRED,
        ),
        "child_session_key": (is_text, None),
        "result_json": (anything, None),
    },
    "wake": {},
    "prune": {},
    **reference_steps.FIELDS,
}
WAITS: dict[str, dict[str, Any]] = {
    "timer": {"at": (is_time, REQUIRED)},
    "external_event": {
        "topic": (lambda v: is_text(v, 512), REQUIRED),
        "correlation_id": (lambda v: is_text(v, 512), REQUIRED),
        "timeout_at": (is_time, None),
        "prompt": (anything, None),
    },
    "manual": {"timeout_at": (is_time, None), "prompt": (anything, None)},
    "steps": reference_steps.JOIN,
}


def wrong_in_wait(wait: Any) -> Iterator[str]:
    if not isinstance(wait, dict):
        yield "wait"
        return
    kind = wait.get("kind")
    if not isinstance(kind, str) or kind not in WAITS:
        yield "wait.kind"
        return
    wrong = [f"wait.{n}" for n in wrong_in(wait, {"kind": (anything, REQUIRED), **WAITS[kind]})]
    yield from wrong
    if not wrong and wait.get("mode") == "any" and wait.get("run_ids") is None:
        yield "wait"


def wrong_in_command(value: Doc) -> set[str]:
    """The fields that are missing, unknown or of another type."""
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in OWN:
        return {"kind"}
    wrong = set(wrong_in(value, COMMON | OWN[kind]))
    if kind == "set_waiting" and "wait" in wrong and "wait" in value:
        wrong = wrong - {"wait"} | set(wrong_in_wait(value["wait"]))
    return wrong


def equal_form(value: Doc) -> Doc:
    kind = value.get("kind")
    if isinstance(kind, str) and kind in OWN:
        plain = without_absent(value, COMMON | OWN[kind])
    else:
        plain = dict(value)
    wait = plain.get("wait")
    if isinstance(wait, dict) and isinstance(wait.get("kind"), str) and wait["kind"] in WAITS:
        plain["wait"] = without_absent(wait, WAITS[wait["kind"]])
    return plain


# Deciding


@dataclass(slots=True)
class Known:
    """What a partition knows of one flow."""

    flow: Doc
    steps: dict[str, Doc]
    last_event_id: int


@dataclass(slots=True)
class First:
    """The first outcome under a command id."""

    at_ms: int
    command: bytes
    outcome: Doc


@dataclass(slots=True)
class Expected:
    """What one record causes; `details` None: the contract leaves them free. `original` is the
    outcome that a duplicate repeats."""

    outcome: Doc
    events: list[Doc] = field(default_factory=list)
    original: Doc | None = None
    work: list[Doc] = field(default_factory=list)
    forwarded_to: int | None = None
    wrong_fields: set[str] | None = None


@dataclass(slots=True)
class Contract:
    """One partition. `right` answers which partition a key belongs to."""

    partition: int
    right: Callable[[bytes], int]
    window_ms: int
    horizon_ms: int
    steps_max: int = 10_000
    flows: dict[str, Known] = field(default_factory=dict)
    ledger: dict[tuple[str, str], First] = field(default_factory=dict)
    events: int = 0

    def take(self, record: Any) -> Expected:
        source = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        outcome: Doc = {
            "command_id": None, "flow_id": None, "kind": None, "code": None, "revision": None,
            "status": None, "event_ids": [], "allowed": None, "details": {}, "dry_run": None,
            "command_digest": None, "source": source, "at": written(record.timestamp),
        }  # fmt: skip
        expected = Expected(outcome)
        code = self._quarantine(record, expected)
        if code is not None:
            outcome |= {"verdict": "quarantined", "code": code}
            return expected
        if expected.forwarded_to is not None:
            outcome |= {"verdict": "forwarded", "details": None}
            return expected
        command = equal_form(json.loads(record.value))
        self._expect(command, record, expected)
        return expected

    def _quarantine(self, record: Any, expected: Expected) -> str | None:
        """Checks 1 to 6."""
        value, key, outcome = record.value, record.key, expected.outcome
        if len(value or b"") > 512 * KIB or len(key or b"") > 64:
            return "too_large"
        command = parsed(value)
        if command is None:
            return "malformed"
        flow_id, command_id, kind = (command.get(n) for n in ("flow_id", "command_id", "kind"))
        flag = command.get("dry_run")
        outcome |= {
            "flow_id": flow_id if is_uuid(flow_id) else None,
            "command_id": command_id if is_uuid(command_id) else None,
            "kind": kind if isinstance(kind, str) and kind in OWN else None,
            "dry_run": False if flag is None else flag if isinstance(flag, bool) else None,
            "command_digest": digest(sorted_compact(equal_form(command))).hex(),
        }
        version = command.get("schema_version")
        if version is not None and not (is_integer(version) and version == 1):
            return "unsupported_version"
        if wrong := wrong_in_command(command):
            expected.wrong_fields = wrong
            return "invalid_command"
        if key is None or key != command["flow_id"].encode():
            return "invalid_key"
        right = self.right(key)
        if right != self.partition:
            if is_copy(record.headers):
                return "invalid_key"
            expected.forwarded_to = right
        return None

    def _expect(self, command: Doc, record: Any, expected: Expected) -> None:
        outcome = expected.outcome
        from_owner = record.topic.endswith(".commands")
        identity = command["flow_id"], command["command_id"]
        known = self.flows.get(command["flow_id"])
        first = self.ledger.get(identity)
        if first is not None and record.timestamp - first.at_ms <= self.window_ms:
            if first.command == sorted_compact(command):
                expected.original = first.outcome
                outcome |= {
                    "verdict": "duplicate",
                    "original": first.outcome["verdict"],
                    **{
                        name: first.outcome[name]
                        for name in ("code", "revision", "status", "event_ids", "details")
                    },
                    "allowed": known and allowed(known.flow, from_owner),
                }
                return
            self._say(outcome, known, from_owner)
            outcome |= {"verdict": "rejected", "code": "idempotency_conflict"}
            return
        dry = outcome["dry_run"]
        try:
            events = self._decide(command, known, record.timestamp, from_owner)
        except Refused as refused:
            self._say(outcome, known, from_owner)
            outcome |= {"verdict": "rejected", "code": refused.code, "details": refused.details}
        else:
            before = dict(known.flow) if known else None
            would_be: Doc | None = json.loads(compact(known.flow)) if known else None
            for kind, payload in events:
                would_be = after(would_be, kind, payload, outcome["flow_id"], outcome["at"])
                last = would_be or before
                assert last is not None, "a flow is pruned only where there is one"
                outcome |= {"revision": last["revision"], "status": last["status"]}
                if not dry:
                    self._write(expected, command, kind, payload, would_be, last)
            if not events and before is not None:
                outcome |= {"revision": before["revision"], "status": before["status"]}
            if would_be is None:
                outcome |= {"revision": None, "status": None}
            stands = before if dry else would_be
            if would_be is not None:
                steps = reference_steps.steps_after(known.steps if known else {}, events)
                outcome["details"] = reference_steps.details_of(command, would_be, steps)
            outcome |= {
                "verdict": "accepted",
                "allowed": stands and allowed(stands, from_owner),
                "event_ids": [event["id"] for event in expected.events],
            }
        if not dry and outcome["code"] not in NOT_IN_LEDGER:
            self.ledger[identity] = First(record.timestamp, sorted_compact(command), outcome)

    def _say(self, outcome: Doc, known: Known | None, from_owner: bool) -> None:
        """How the flow stands, which a refusal has not changed."""
        if known is not None:
            outcome |= {
                "revision": known.flow["revision"],
                "status": known.flow["status"],
                "allowed": allowed(known.flow, from_owner),
            }

    def _write(
        self,
        expected: Expected,
        command: Doc,
        kind: str,
        payload: Doc,
        flow: Doc | None,
        last: Doc,
    ) -> None:
        self.events += 1
        outcome = expected.outcome
        event = {
            "id": self.partition * 2**40 + self.events,
            "flow_id": command["flow_id"],
            "kind": kind,
            "payload_json": payload,
            "at": outcome["at"],
            "revision": last["revision"],
            "status": last["status"],
            "command_id": command["command_id"],
            "actor": command["issued_by"],
            "source": outcome["source"],
            "schema_version": 1,
        }
        known = self.flows.get(command["flow_id"])
        expected.events.append(event)
        if flow is None:
            del self.flows[command["flow_id"]]
            return
        if known is None:
            known = self.flows[command["flow_id"]] = Known(flow, {}, 0)
        known.flow, known.last_event_id = flow, event["id"]
        known.steps = reference_steps.steps_after(known.steps, [(kind, payload)])
        if kind.startswith("step_") and kind != "step_observed":
            run_id = payload["step"]["run_id"] if "step" in payload else payload["run_id"]
            item = reference_steps.work_of(event, known.steps[run_id])
            expected.work += [] if item is None else [item]

    def _decide(self, command: Doc, known: Known | None, at_ms: int, from_owner: bool) -> Events:
        """Checks 8 to 17: the events of an accepted command, or Refused."""
        kind, at = command["kind"], written(at_ms)
        flow = known.flow if known else None
        if from_owner and kind in CONTROL_ONLY:
            raise Refused("forbidden")
        if "expires_at" in command and at_ms > (milliseconds(command["expires_at"]) or 0):
            raise Refused("expired")
        if kind in CREATES:
            return self._create(command, flow, from_owner)
        if flow is None or known is None:
            raise Refused("not_found")
        stranger = command["issued_by"] != flow["owner_session_key"]
        if from_owner and stranger and kind not in TO_ALL:
            raise Refused("not_owner")
        expected = command.get("expected_revision", flow["revision"])
        if expected != flow["revision"]:
            raise Refused("revision_mismatch", {"expected": expected, "actual": flow["revision"]})
        if (code := stopped_by_status(kind, flow)) is not None:
            details = None
            if code == "illegal_transition":
                details = {"from": flow["status"], "to": MOVES[kind][1]}
            raise Refused(code, details)
        if kind in reference_steps.FIELDS:
            events = reference_steps.Deciding(
                *(command, flow, known.steps, at_ms),
                from_owner=from_owner,
                horizon_ms=self.horizon_ms,
                steps_max=self.steps_max,
            ).events()
        else:
            events = self._follow(command, known, at_ms, at)
        return events + self._consequences(flow, known.steps, events, at)

    def _consequences(self, flow: Doc, steps: dict[str, Doc], events: Events, at: str) -> Events:
        """What steps add to a command's events: their end with the flow, the end of a join."""
        now: Doc | None = flow
        for kind, payload in events:
            now = after(now, kind, payload, flow["id"], at)
        if now is None:
            return []
        if now["status"] in TERMINAL and flow["status"] in LIVE:
            return reference_steps.ended_with_flow(steps, at)
        if now["status"] != "waiting" or now["cancel_requested"]:
            return []
        ends = {"waiting", "step_succeeded", "step_failed", "step_cancelled"}
        wait, steps = now["wait_json"], reference_steps.steps_after(steps, events)
        if wait["kind"] != "steps" or ends.isdisjoint(kind for kind, _ in events):
            return []
        over = reference_steps.join_is_over(wait, steps)
        return [("resumed", {"by": "steps", "state_patch": None})] if over else []

    def _create(self, command: Doc, flow: Doc | None, from_owner: bool) -> Events:
        owner = command.get("owner_session_key", command["issued_by"])
        if flow is not None:
            raise Refused("already_exists")
        if from_owner and owner != command["issued_by"]:
            raise Refused("not_owner")
        if "expected_revision" in command:
            expected = command["expected_revision"]
            raise Refused("revision_mismatch", {"expected": expected, "actual": None})
        payload = {
            "controller_id": command["controller_id"],
            "goal": command["goal"],
            "owner_session_key": owner,
            "requester_origin": command["requester_origin"],
            "current_step": command.get("current_step", "init"),
            "state_json": fits(command.get("state_json", {}), 256),
        }
        events: Events = [("created", payload)]
        if command["kind"] == "create_mirrored":
            events.append(("started", {}))
        return events

    def _follow(self, command: Doc, known: Known, at_ms: int, at: str) -> Events:
        kind, flow = command["kind"], known.flow
        state, wait = flow["state_json"], flow["wait_json"]
        if kind == "start_running":
            return [("started", {})]
        if kind == "set_waiting":
            new = dict(command["wait"])
            for name in ("at", "timeout_at"):
                if name in new:
                    until_ms = milliseconds(new[name]) or 0
                    if not at_ms < until_ms <= at_ms + self.horizon_ms:
                        raise Refused("invalid_data")
                    new[name] = written(until_ms)
            if len(compact(new.get("prompt"))) > 16 * KIB:
                raise Refused("invalid_data")
            if new["kind"] == "steps":
                reference_steps.check_join(new, known.steps)
            return [("waiting", {"wait": new})]
        if kind == "resume":
            patch = command.get("state_patch")
            if patch is not None:
                fits(merged(state, patch), 256)
            return [("resumed", {"by": "command", "state_patch": patch})]
        if kind == "resume_external":
            there = wait["kind"], wait.get("topic"), wait.get("correlation_id")
            if there != ("external_event", command["topic"], command["correlation_id"]):
                raise Refused("wait_mismatch")
            patch = {"resume_event": command["payload"]} if "payload" in command else None
            if patch is not None:
                fits(merged(state, patch), 256)
            return [("resumed", {"by": "external_event", "state_patch": patch})]
        if kind == "finish":
            patch = command.get("final_state")
            if patch is not None:
                fits(merged(state, patch), 256)
            return [("finished", {"final_state": patch})]
        if kind == "fail":
            return [("failed", {"reason": command["reason"]})]
        if kind == "request_cancel":
            noop = flow["cancel_requested"] or flow["status"] in TERMINAL
            return [] if noop else [("cancel_requested", {})]
        if kind == "cancel":
            return [("cancelled", {})]
        if kind == "update_state":
            fits(merged(state, command["patch"]), 256)
            step = command.get("next_step")
            return [("state_updated", {"patch": command["patch"], "next_step": step})]
        if kind == "record_step_observation":
            return [("step_observed", {"step": self._step(command, known, at)})]
        if kind == "wake":
            if flow["cancel_requested"]:
                return [("cancelled", {})]
            until = wait.get("at", wait.get("timeout_at"))
            if until is None:
                raise Refused("wait_mismatch")
            if at_ms < (milliseconds(until) or 0):
                raise Refused("not_due")
            by = "timer" if wait["kind"] == "timer" else "timeout"
            return [("resumed", {"by": by, "state_patch": None})]
        assert kind == "prune"
        return [("pruned", {})]

    def _step(self, command: Doc, known: Known, at: str) -> Doc:
        run_id = command["run_id"]
        old = known.steps.get(run_id, {})
        if old.get("runtime") == "managed":
            raise Refused("step_exists", reference_steps.taken(old))
        result = fits(command.get("result_json"), 64)
        if not old and len(known.steps) >= self.steps_max:
            raise Refused("too_many_steps")
        return {
            "id": str(uuid.uuid5(uuid.UUID(command["flow_id"]), run_id)),
            "flow_id": command["flow_id"],
            "runtime": "mirrored",
            "child_session_key": command.get("child_session_key", old.get("child_session_key")),
            "run_id": run_id,
            "task": command["task"],
            "status": command["status"],
            "result_json": result,
            "created_at": old.get("created_at", at),
            "updated_at": at,
        }


def stopped_by_status(kind: str, flow: Doc) -> str | None:
    """Checks 13 to 15."""
    status = flow["status"]
    if kind not in THOSE_THREE:
        if status in TERMINAL:
            return "already_terminal"
        leads_there = kind == "cancel" or (kind == "wake" and status == "waiting")
        leads_there = leads_there or kind in reference_steps.DURING_CANCEL
        if flow["cancel_requested"] and not leads_there:
            return "cancel_pending"
    if kind in reference_steps.FIELDS:
        return None  # the rest is the step's
    return None if status in MOVES[kind][0] else "illegal_transition"


def allowed(flow: Doc, from_owner: bool) -> list[str]:
    hidden = CONTROL_ONLY if from_owner else set()
    return sorted(k for k in MOVES if k not in hidden and stopped_by_status(k, flow) is None)


def after(flow: Doc | None, kind: str, payload: Doc, flow_id: str, at: str) -> Doc | None:
    """The flow after an event."""
    if kind == "created":
        return {
            "id": flow_id, **payload, "wait_json": None, "status": "created",
            "cancel_requested": False, "revision": 0, "created_at": at, "updated_at": at,
        }  # fmt: skip
    if kind == "pruned":
        return None
    assert flow is not None
    if kind.startswith("step_"):
        return flow
    flow = {**flow, "revision": flow["revision"] + 1, "updated_at": at}
    patch = payload.get("state_patch", payload.get("final_state"))
    if patch is not None:
        flow["state_json"] = merged(flow["state_json"], patch)
    if kind == "waiting":
        return {**flow, "status": "waiting", "wait_json": payload["wait"]}
    if kind == "cancel_requested":
        return {**flow, "cancel_requested": True}
    if kind == "state_updated":
        step = payload["next_step"]
        flow["state_json"] = merged(flow["state_json"], payload["patch"])
        return {**flow, "current_step": flow["current_step"] if step is None else step}
    if kind == "failed":
        failure = {"failure": {"reason": payload["reason"], "at": at}}
        flow["state_json"] = merged(flow["state_json"], failure)
    status = {"started": "running", "resumed": "running"}.get(kind, kind)
    return {**flow, "status": status, "wait_json": None}
