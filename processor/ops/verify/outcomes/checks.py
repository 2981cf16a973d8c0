"""Check each outcome, by itself and against its command and events: I1 to I4, I9, I12."""

from collections.abc import Sequence
from typing import Any, Final

from processor.contract.events import TRACEPARENT_HEADER, TRACEPARENT_MAX_BYTES
from processor.contract.topics import Topics
from processor.contract.values import instant, parse_timestamp
from processor.ops.verify.contract import (
    CAUSES,
    CODES,
    OUTCOME_FIELDS,
    Doc,
    allowed,
    digest,
    home_of,
    own_events,
    parsed,
    uuid_or_none,
    without_nulls,
)
from processor.ops.verify.event_checks import EventChecks
from processor.ops.verify.outcomes.admission import AdmissionChecks
from processor.ops.verify.outcomes.forwards import copied
from processor.ops.verify.outcomes.resends import ResendChecks
from processor.ops.verify.ports import LogRecord
from processor.ops.verify.report import Report
from processor.ops.verify.scratch_store import Forwarded, ScratchStore

KEY_KEPT_BYTES: Final = 512 * 1024


class _Adder:
    """Adds violations of one outcome."""

    def __init__(self, report: Report, record: LogRecord, outcome: Doc) -> None:
        self._report = report
        self._record = record
        self._outcome = outcome

    def __call__(self, invariant: str, kind: str, message: str) -> None:
        outcome, source = self._outcome, self._outcome["source"]
        who = f"Outcome {outcome['verdict']} of {source['topic']} offset {source['offset']}: "
        self._report.at(self._record, invariant, kind, who + message, outcome["flow_id"])


class OutcomeChecks:
    """Compare outcomes of one partition with their commands, in the order of decision."""

    def __init__(
        self,
        scratch: ScratchStore,
        report: Report,
        fold: EventChecks,
        topics: Topics,
        partition: int,
        partitions: int,
        *,
        window_ms: int,
        only: str | None,
    ) -> None:
        self._scratch = scratch
        self._report = report
        self._fold = fold
        self._topics = topics
        self._partition = partition
        self._partitions = partitions
        self._only = only
        self._admission = AdmissionChecks(fold.steps, topics)
        self.resends = ResendChecks(scratch, report, window_ms=window_ms)
        self._knows_flows = fold.whole
        """Whether a flow that the fold does not have is not there."""

    def begin(self, *, late: bool) -> None:
        """Note whether the fold has still to come to where the outcomes begin."""
        self._knows_flows = self._fold.whole and not late

    def read(self, record: LogRecord) -> Doc | None:
        """The outcome in a record; None if it is none."""
        outcome = parsed(record.value)
        if outcome is None or not _shaped(outcome):
            message = "The record does not have the fields of an Outcome."
            self._report.at(record, "I1", "not_an_outcome", message)
            return None
        return outcome

    def concerns(self, outcome: Doc, record: LogRecord, source: LogRecord | None) -> bool:
        """Whether it is about the one flow that is looked at."""
        only = self._only
        if only is None or outcome["flow_id"] == only or record.key == only.encode():
            return True
        return source is not None and source.key == only.encode()

    def before(self, outcome: Doc, record: LogRecord, source: LogRecord | None) -> Doc | None:
        """Check what does not depend on the outcome's events; its command, if it is readable."""
        add = _Adder(self._report, record, outcome)
        self._report.checked["I1"] += 1
        verdict, code = outcome["verdict"], outcome["code"]
        if code not in CODES[verdict]:
            add("I1", "outcome_code", f"The code is {code}.")
        if not outcome["message"]:
            add("I1", "outcome_message", "There is no message.")
        idle = verdict not in ("accepted", "duplicate") or outcome["dry_run"]
        if idle and outcome["event_ids"]:
            add("I9", "outcome_names_events", "Nothing happened, but it names events.")
        if outcome["source"]["topic"] == self._topics.commands:
            at_ms = _at_ms(outcome) if source is None else source.timestamp
            self._fold.steps.leases.decided(at_ms, add)
        if source is None:
            self.resends.check(outcome, _at_ms(outcome), add)
            return None
        if outcome["at"] != instant(source.timestamp):
            add(
                "I1",
                "outcome_at",
                f"at is {outcome['at']}, but the command was appended {instant(source.timestamp)}.",
            )
        self._report.checked["I9"] += 1
        if _traces(record) != _carried(source):
            add("I9", "traceparent_lost", "traceparent is not the command's.")
        raw = parsed(source.value)
        if verdict == "quarantined":
            self._quarantined(outcome, record, source, raw, add)
            return None
        if raw is None or source.key is None:
            add("I1", "unreadable_decided", "The record is no command, but it was decided.")
            return None
        command = without_nulls(raw)
        for name in ("command_id", "flow_id", "kind"):
            if outcome[name] != command.get(name):
                add("I1", f"outcome_{name}", f"{name} is not the command's.")
        if outcome["dry_run"] is not command.get("dry_run", False):
            add("I1", "outcome_dry_run", "dry_run is not the command's.")
        if outcome["command_digest"] != digest(command):
            add("I1", "outcome_digest", "command_digest is not the command's.")
        self._report.checked["I12"] += 1
        if record.key != source.key or outcome["flow_id"] != _utf8(source.key):
            add("I12", "outcome_key", "Key of the outcome, key of the command and flow differ.")
        if verdict == "forwarded":
            home = home_of(source.key, self._partitions)
            if home == self._partition:
                add("I12", "forwarded_in_vain", "It lies where its key belongs.")
            self._scratch.put_forwarded(
                Forwarded(
                    *(f"{source.topic}/{source.partition}/{source.offset}", copied(source)),
                    *(home, source.timestamp, record.partition, record.offset),
                    outcome["flow_id"],
                )
            )
            return None
        before = self._fold.flow(outcome["flow_id"]) if outcome["flow_id"] else None
        # A flow that is known lies right: its first event was looked at.
        if before is None and home_of(source.key, self._partitions) != self._partition:
            add("I12", "decided_elsewhere", "The flow belongs to another partition.")
        self.resends.check(outcome, source.timestamp, add)
        self._report.checked["I4"] += 1
        known = self._knows_flows or before is not None
        if verdict == "accepted":
            self._admission.accepted(command, outcome, source, before, known=known, add=add)
        elif verdict == "rejected" and not self._admission.founded(
            code, command, source, before, known=known
        ):
            add("I4", "refusal_unfounded", f"Refused as {code}, which the flow does not bear out.")
        return command

    def after(
        self,
        outcome: Doc,
        record: LogRecord,
        source: LogRecord | None,
        command: Doc | None,
        caused: Sequence[tuple[LogRecord, Doc]],
    ) -> None:
        """Check what depends on the events, which are folded by now."""
        verdict, flow_id = outcome["verdict"], outcome["flow_id"]
        if verdict in ("quarantined", "forwarded") or flow_id is None:
            return
        add = _Adder(self._report, record, outcome)
        for event_record, event in caused:
            cause = (event["source"], event["command_id"], event["flow_id"])
            if cause != (outcome["source"], outcome["command_id"], flow_id):
                add("I9", "event_of_another", f"Event {event['id']} says it has another cause.")
            if source is not None and _traces(event_record) != _carried(source):
                add(
                    "I9",
                    "traceparent_lost",
                    f"traceparent of event {event['id']} is not the command's.",
                )
        if verdict == "accepted" and not outcome["dry_run"] and command is not None:
            kinds = [event["kind"] for _, event in caused]
            if own_events(kinds) not in CAUSES.get(command.get("kind", ""), []):
                add("I4", "other_events", f"{command.get('kind')} caused {kinds}.")
        entry = self._fold.flow(flow_id)
        doc = entry.doc if entry is not None else None
        if doc is not None and caused:
            self._fold.steps.ended(flow_id, doc, [event for _, event in caused], add)
        if doc is None and not self._knows_flows and entry is None:
            return
        now = (doc.get("revision"), doc.get("status")) if doc else (None, None)
        if verdict != "duplicate" and not (verdict == "accepted" and outcome["dry_run"]):
            self._report.checked["I3"] += 1
            if (outcome["revision"], outcome["status"]) != now:
                stated = (outcome["revision"], outcome["status"])
                add("I3", "outcome_revision", f"It says {stated}, but the flow is at {now}.")
        expected: Any = None
        if doc is not None:
            if "cancel_requested" not in doc:
                return
            control = outcome["source"]["topic"] == self._topics.control
            expected = allowed(doc["status"], doc["cancel_requested"], control)
        if outcome["allowed"] != expected:
            add("I4", "outcome_allowed", f"allowed is {outcome['allowed']}, not {expected}.")

    def _quarantined(
        self, outcome: Doc, record: LogRecord, source: LogRecord, raw: Doc | None, add: _Adder
    ) -> None:
        code = outcome["code"]
        if any(outcome[name] is not None for name in ("revision", "status", "allowed")):
            add("I1", "outcome_of_nothing", "It names a flow, but the command was quarantined.")
        read = None if code in ("too_large", "malformed") else raw
        known = read or {}
        kind = known.get("kind")
        expected = {
            "command_id": uuid_or_none(known.get("command_id")),
            "flow_id": uuid_or_none(known.get("flow_id")),
            "kind": kind if isinstance(kind, str) and kind in CAUSES else None,
            "command_digest": None if read is None else digest(without_nulls(read)),
        }
        for name, value in expected.items():
            # Where the handler itself failed, it may not have come so far.
            lost = code == "internal_error" and outcome[name] is None
            if outcome[name] != value and not lost:
                add("I1", f"outcome_{name}", f"{name} is not what the bytes say.")
        flow_id = outcome["flow_id"]
        key = source.key and source.key[:KEY_KEPT_BYTES]
        self._report.checked["I12"] += 1
        if record.key != (key if flow_id is None else flow_id.encode()):
            add("I12", "outcome_key", "The key is neither the flow nor the command's.")


def _at_ms(outcome: Doc) -> int:
    try:
        return parse_timestamp(outcome["at"])
    except ValueError:
        return 0


def _traces(record: LogRecord) -> list[bytes | None]:
    return [value for name, value in record.headers if name == TRACEPARENT_HEADER]


def _carried(source: LogRecord) -> list[bytes | None]:
    """What of a command's goes on to what it causes."""
    return [v for v in _traces(source)[-1:] if len(v or b"") <= TRACEPARENT_MAX_BYTES]


def _utf8(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


def _shaped(outcome: Doc) -> bool:
    verdict, source, ids = outcome.get("verdict"), outcome.get("source"), outcome.get("event_ids")
    more = {"original"} if verdict == "duplicate" else set()
    return (
        outcome.keys() == OUTCOME_FIELDS | more
        and verdict in CODES
        and isinstance(source, dict)
        and source.keys() == {"topic", "partition", "offset"}
        and type(source["offset"]) is int
        and isinstance(outcome["at"], str)
        and isinstance(ids, list)
        and all(type(one) is int for one in ids)
    )
