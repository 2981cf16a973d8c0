"""Fold a partition's audit and check each event: I3, I4, I7, I9, I12, I13."""

from collections.abc import Callable
from typing import Any, Final

from processor.contract.events import CHAIN_HEADER, CHAIN_START
from processor.contract.values import EVENTS_PER_PARTITION, instant
from processor.ops.verify.contract import (
    EVENT_FIELDS,
    EVENT_KINDS,
    MOVES,
    STATUSES,
    STEP_EVENTS,
    TERMINAL,
    Doc,
    canonical,
    due_ms,
    hash16,
    home_of,
    merged,
    parsed,
    payload_of,
    same,
    step_id,
    uuid_or_none,
)
from processor.ops.verify.ports import LogRecord
from processor.ops.verify.report import Report
from processor.ops.verify.scratch_store import FoldedFlow, ScratchStore
from processor.ops.verify.steps.checks import StepChecks

STEP_FIELDS: Final = frozenset(
    [
        "id",
        "flow_id",
        "runtime",
        "child_session_key",
        "run_id",
        "task",
        "status",
        "result_json",
        "created_at",
        "updated_at",
    ]
)


class EventChecks:
    """Folds the events of one partition, in their order.

    `whole`: it begins with the first event that ever was. Otherwise a flow's predecessor of the
    first event seen is taken as given. `only`: the one flow that is looked at, if not all.
    """

    def __init__(
        self,
        scratch: ScratchStore,
        report: Report,
        partition: int,
        partitions: int,
        *,
        whole: bool,
        only: str | None,
    ) -> None:
        self._scratch = scratch
        self._report = report
        self._partition = partition
        self._partitions = partitions
        self._only = only
        self.whole = whole
        self.steps = StepChecks(scratch, report)
        self.next_id: int | None = partition * EVENTS_PER_PARTITION + 1 if whole else None
        """The id that must come next; None if it is not known."""

    def flow(self, flow_id: str) -> FoldedFlow | None:
        return self._scratch.flow(flow_id)

    def read(self, record: LogRecord) -> Doc | None:
        """The event in a record, once its place in the topic is checked; None if it is none."""
        add = self._adder(record)
        event = parsed(record.value)
        if event is None or event.keys() != EVENT_FIELDS or not _typed(event):
            add("I3", "not_an_event", "The record does not have the fields of a FlowEvent.")
            self.next_id = None
            return None
        self._report.checked["I3"] += 1
        event_id, flow_id = event["id"], event["flow_id"]
        if self.next_id is not None and event_id != self.next_id:
            kind = "event_id_gap" if event_id > self.next_id else "event_id_repeated"
            add("I3", kind, f"Event id {event_id} stands where {self.next_id} must be.", flow_id)
        self.next_id = event_id + 1
        self._report.checked["I12"] += 1
        if record.key != flow_id.encode():
            add("I12", "event_key", f"The key is {_text(record.key)}, not the flow.", flow_id)
        return event

    def apply(
        self, record: LogRecord, event: Doc, command: Doc | None, source: LogRecord | None
    ) -> None:
        """Fold an event that was read. `command` and its record `source` are what caused it, as far
        as they can be known."""
        flow_id, kind, payload = event["flow_id"], event["kind"], event["payload_json"]
        if self._only not in (None, flow_id):
            return
        add = self._adder(record, flow_id, event)
        before = self._scratch.flow(flow_id)
        chain = self._chain(record, before, add)
        self._report.checked["I4"] += 1
        at = event["at"]
        if command is not None and source is not None:
            self._held_against(event, command, source, before, add)
        known = before is not None and before.doc is not None
        if not known and home_of(flow_id.encode(), self._partitions) != self._partition:
            add("I12", "event_misplaced", "The flow belongs to another partition.")
        if kind == "created":
            if known:
                add("I4", "created_again", "The flow is there already.")
            doc: Doc = _created(flow_id, payload, at)
            whole = True
        elif not known:
            if self.whole or before is not None:
                add("I4", "event_of_no_flow", f"{kind} of a flow that is not there.")
                return
            # Its past was not seen: what the event says is where it stands.
            doc = {"status": event["status"], "revision": event["revision"]}
            _learn(doc, kind, payload, at)
            whole = False
        else:
            assert before is not None
            assert before.doc is not None
            doc, whole = before.doc, before.whole
            if kind not in STEP_EVENTS and kind != "pruned":
                doc = self._moved(event, doc, add)
        self._report.checked["I3"] += 1
        stated, stands = (event["revision"], event["status"]), (doc.get("revision"), doc["status"])
        if stated != stands:
            add("I3", "event_revision", f"It says revision {stated}, its fold {stands}.")
        if kind == "step_observed":
            self._step(event, command, known and whole, add)
        elif kind in STEP_EVENTS:
            at_ms = None if source is None else source.timestamp
            self.steps.apply(record, event, command, doc, at_ms, whole=known and whole, add=add)
        if kind == "pruned":
            if doc["status"] not in TERMINAL:
                add("I4", "illegal_move", f"Pruned while {doc['status']}.")
            self._scratch.drop_steps(flow_id)
            if self.whole:
                self._scratch.drop_flow(flow_id)
            else:
                gone = FoldedFlow(None, event["id"], chain, True, 0)
                self._scratch.put_flow(flow_id, gone)
            return
        weight = (before.weight if before else 0) + len(record.value or b"")
        self._scratch.put_flow(flow_id, FoldedFlow(doc, event["id"], chain, whole, weight))

    def _chain(self, record: LogRecord, before: FoldedFlow | None, add: "Add") -> bytes:
        """The event's chain value as its header has it, so that one break is reported once."""
        values = [value or b"" for name, value in record.headers if name == CHAIN_HEADER]
        if len(values) != 1 or len(values[0]) != 16:
            add("I7", "chain_missing", f"{len(values)} chain headers of 16 bytes, not one.")
            return CHAIN_START
        if before is None and not self.whole:
            return values[0]  # what came before is taken as given
        self._report.checked["I7"] += 1
        start = before.chain if before is not None and before.doc is not None else CHAIN_START
        if values[0] != hash16(start + (record.value or b"")):
            add(
                "I7",
                "chain_broken",
                "Its chain does not follow from the event before and its own "
                "bytes: something was edited, dropped or moved.",
            )
        return values[0]

    def _held_against(
        self, event: Doc, command: Doc, source: LogRecord, before: FoldedFlow | None, add: "Add"
    ) -> None:
        self._report.checked["I9"] += 1
        for name, expected in (
            ("flow_id", command.get("flow_id")),
            ("command_id", command.get("command_id")),
            ("actor", command.get("issued_by")),
            ("at", instant(source.timestamp)),
        ):
            if event[name] != expected:
                add(
                    "I9", f"event_{name}", f"{name} is {event[name]!r}, its command's {expected!r}."
                )
        if event["kind"] in STEP_EVENTS:
            return
        doc = before.doc if before is not None else None
        if event["kind"] == "resumed" and command.get("kind") == "wake":
            if doc is None or "wait_json" not in doc:
                return
            self._report.checked["I13"] += 1
            due = due_ms(doc["wait_json"])
            if due is None or source.timestamp < due:
                until = "without a time" if due is None else f"until {instant(due)}"
                add("I13", "woken_early", f"It waited {until} and was woken at {event['at']}.")
        wait = (doc or {}).get("wait_json")
        if event["payload_json"].get("by") == "steps" and isinstance(wait, dict):
            self.steps.resumed(event["flow_id"], wait, add)
        expected = payload_of(command, event["kind"], wait)
        if not same(event["payload_json"], expected):
            add("I9", "event_payload", "Its payload is not what its command asked for.")

    def _moved(self, event: Doc, doc: Doc, add: "Add") -> Doc:
        kind, payload = event["kind"], event["payload_json"]
        origins, to = MOVES[kind]
        if doc["status"] not in origins:
            add("I4", "illegal_move", f"{kind} of a flow that is {doc['status']}.")
        if doc.get("cancel_requested") and kind != "cancelled":
            add("I4", "moved_while_cancel_pending", f"{kind} after a cancel was requested.")
        moved = {**doc, "status": to or doc["status"], "revision": doc["revision"] + 1}
        _learn(moved, kind, payload, event["at"])
        return moved

    def _step(self, event: Doc, command: Doc | None, whole: bool, add: "Add") -> None:
        self._report.checked["I5"] += 1
        flow_id, step = event["flow_id"], event["payload_json"].get("step")
        shaped = isinstance(step, dict) and step.keys() == STEP_FIELDS
        if step is None or not shaped or not isinstance(step["run_id"], str):
            add("I5", "step", "The payload holds no step.")
            return
        run_id = step["run_id"]
        old = self._scratch.step(flow_id, run_id)
        fresh = old is None and whole
        wrong = [
            name
            for name, expected in (
                ("id", step_id(flow_id, run_id)),
                ("flow_id", flow_id),
                ("runtime", "mirrored"),
                ("updated_at", event["at"]),
                ("created_at", old[1] if old else event["at"] if fresh else step["created_at"]),
            )
            if step[name] != expected
        ]
        if command is not None:
            for name in ("run_id", "task", "status", "result_json"):
                if not same(step[name], command.get(name)):
                    wrong.append(name)
            child = command.get("child_session_key", old[0] if old else None)
            if (old or fresh or child is not None) and step["child_session_key"] != child:
                wrong.append("child_session_key")
        if wrong:
            add(
                "I5",
                "step",
                f"Step {run_id!r}: {', '.join(wrong)} not as its past and command say.",
            )
        self._scratch.put_step(
            *(flow_id, run_id, hash16(canonical(step))),
            *(step["child_session_key"], step["created_at"]),
        )

    def _adder(
        self, record: LogRecord, flow_id: str | None = None, event: Doc | None = None
    ) -> "Add":
        who = f"Event {event['id']} ({event['kind']}): " if event else ""

        def add(invariant: str, kind: str, message: str, of: str | None = flow_id) -> None:
            if self._only in (None, of):
                self._report.at(record, invariant, kind, who + message, of)

        return add


Add = Callable[..., None]


def _typed(event: Doc) -> bool:
    return (
        type(event["id"]) is int
        and type(event["revision"]) is int
        and uuid_or_none(event["flow_id"]) is not None
        and isinstance(event["payload_json"], dict)
        and isinstance(event["source"], dict)
        and isinstance(event["at"], str)
        and event["kind"] in EVENT_KINDS
        and event["status"] in STATUSES
        and event["schema_version"] == 1
    )


def _created(flow_id: str, payload: Doc, at: str) -> Doc:
    return {
        "id": flow_id,
        **payload,
        "wait_json": None,
        "status": "created",
        "cancel_requested": False,
        "revision": 0,
        "created_at": at,
        "updated_at": at,
    }


def _learn(doc: Doc, kind: str, payload: Doc, at: str) -> None:
    """Put into `doc` what an event says beside revision and status."""
    patch: Any = None
    if kind not in STEP_EVENTS and kind != "pruned":
        doc["updated_at"] = at
    if kind == "waiting":
        doc["wait_json"] = payload.get("wait")
    elif MOVES.get(kind, (None, None))[1] is not None:
        doc["wait_json"] = None
    if kind == "cancel_requested":
        doc["cancel_requested"] = True
    elif kind == "resumed":
        patch = payload.get("state_patch")
    elif kind == "finished":
        patch = payload.get("final_state")
    elif kind == "failed":
        patch = {"failure": {"reason": payload.get("reason"), "at": at}}
    elif kind == "state_updated":
        patch = payload.get("patch")
        if payload.get("next_step") is not None:
            doc["current_step"] = payload["next_step"]
    if "state_json" in doc and (patch is not None or kind == "state_updated"):
        doc["state_json"] = merged(doc["state_json"], patch)


def _text(key: bytes | None) -> str:
    return "missing" if key is None else repr(key[:64].decode("utf-8", "replace"))
