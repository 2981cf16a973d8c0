"""Check acceptances and refusals against the flow that they were decided on: I4."""

from typing import Final

from processor.contract.topics import Topics
from processor.contract.values import parse_timestamp
from processor.ops.verify.contract import (
    ALWAYS,
    CONTROL_ONLY,
    FITTING,
    LIVE,
    OPEN_TO_ALL,
    TERMINAL,
    Doc,
)
from processor.ops.verify.ports import LogRecord
from processor.ops.verify.scratch_store import FoldedFlow
from processor.ops.verify.steps.checks import Add, StepChecks
from processor.ops.verify.steps.rules import COMMANDS as STEP_COMMANDS

STEP_CODES: Final = frozenset(
    {"step_exists", "step_not_found", "illegal_transition", "not_holder", "not_due"}
)
"""Refusals that a step's past must bear out."""


class AdmissionChecks:
    """Holds a verdict against `before`, the flow as the fold had it; `known` says whether a flow
    that the fold does not have is not there."""

    def __init__(self, steps: StepChecks, topics: Topics) -> None:
        self._steps = steps
        self._topics = topics

    def accepted(
        self,
        command: Doc,
        outcome: Doc,
        source: LogRecord,
        before: FoldedFlow | None,
        *,
        known: bool,
        add: Add,
    ) -> None:
        """Check that an accepted command was allowed to do what it did."""
        kind, by_owner = command.get("kind", ""), source.topic == self._topics.commands
        doc = before.doc if before is not None else None
        if by_owner and kind in CONTROL_ONLY:
            add("I4", "control_only", f"{kind} was accepted on {source.topic}.")
        expires_at = command.get("expires_at")
        if expires_at is not None and source.timestamp > parse_timestamp(expires_at):
            add("I4", "accepted_late", f"Accepted, but it had expired at {expires_at}.")
        creates = kind in ("create_managed", "create_mirrored")
        if doc is None:
            if creates:
                owner = command.get("owner_session_key", command.get("issued_by"))
                if by_owner and owner != command.get("issued_by"):
                    add("I4", "not_the_owner", "It makes a flow of another owner.")
                if "expected_revision" in command:
                    add("I4", "revision_ignored", "A create that expects a revision.")
            elif known:
                add("I4", "no_such_flow", f"{kind} of a flow that is not there.")
            return
        if creates:
            add("I4", "created_again", "The flow was there already.")
            return
        expected = command.get("expected_revision", doc["revision"])
        if expected != doc["revision"]:
            add(
                "I4",
                "revision_ignored",
                f"It expected {expected}, but the flow was at {doc['revision']}.",
            )
        owner = doc.get("owner_session_key", command.get("issued_by"))
        if by_owner and kind not in OPEN_TO_ALL and command.get("issued_by") != owner:
            add("I4", "not_the_owner", f"Issued by {command.get('issued_by')!r}, not by the owner.")
        of_steps = STEP_COMMANDS if doc["status"] in LIVE else frozenset()
        if kind not in FITTING[doc["status"]] | ALWAYS | of_steps:
            add("I4", "illegal_move", f"{kind} of a flow that was {doc['status']}.")
        if kind in STEP_COMMANDS:
            self._steps.accepted(
                command, outcome, doc, source.timestamp, by_owner=by_owner, add=add
            )
        wait = doc.get("wait_json")
        if kind == "resume_external" and isinstance(wait, dict):
            for name in ("topic", "correlation_id"):
                if wait.get(name) != command.get(name):
                    add("I4", "other_wait", f"The flow waited for another {name}.")
        if kind == "set_waiting":
            asked = command.get("wait", {})
            until = asked.get("at" if asked.get("kind") == "timer" else "timeout_at")
            if until is not None and parse_timestamp(until) <= source.timestamp:
                add("I4", "wait_in_the_past", f"A wait until {until} was accepted.")
        if kind == "request_cancel" and not outcome["dry_run"] and "cancel_requested" in doc:
            idle = doc["cancel_requested"] or doc["status"] in TERMINAL
            if bool(outcome["event_ids"]) is idle:
                add(
                    "I4", "other_events", "A request to cancel is noted once, while the flow lives."
                )

    def founded(
        self, code: str, command: Doc, source: LogRecord, before: FoldedFlow | None, *, known: bool
    ) -> bool:
        """Whether the refusal `code` may be right, as far as the flow's past shows."""
        kind, doc = command.get("kind", ""), before.doc if before is not None else None
        about_step = kind in STEP_COMMANDS or code == "step_exists"
        if about_step and code in STEP_CODES and doc is not None and before is not None:
            by_owner = source.topic == self._topics.commands
            return self._steps.founded(
                code, command, source.timestamp, by_owner=by_owner, whole=before.whole
            )
        match code:
            case "forbidden":
                return source.topic == self._topics.commands and kind in CONTROL_ONLY
            case "expired":
                until = command.get("expires_at")
                return until is not None and source.timestamp > parse_timestamp(until)
            case "already_exists":
                return doc is not None or not known
            case "not_found":
                return doc is None
            case "not_owner" if doc is not None:
                return bool(command.get("issued_by") != doc.get("owner_session_key"))
            case "revision_mismatch" if doc is not None:
                return bool(command.get("expected_revision") != doc["revision"])
            case "already_terminal" if doc is not None:
                return doc["status"] in TERMINAL
            case "cancel_pending" if doc is not None:
                return doc["status"] in LIVE and doc.get("cancel_requested") is not False
            case "illegal_transition" if doc is not None:
                return kind not in FITTING[doc["status"]]
            case _:
                return True
