"""An independent checker: recomputes what the contract promises from what can be seen outside.

It shares no code with the processor: its own fold, digest, chain and hash. Invariants are named
as I1…I13. `violations(world)` answers sentences; none means that all holds.
"""

import json
import re
import uuid
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from tests.support.observed_deployment import SOURCES, Seen, World, headers_of, is_at, newest_cursor
from tests.support.reference_model import equal_form
from tests.support.reference_model import milliseconds as millis

Doc = dict[str, Any]

LIVE = {"created", "running", "waiting"}
TERMINAL = {"cancelled", "finished", "failed"}
CHANGES: Mapping[str, tuple[set[str], str | None]] = {
    # event kind: from, to (None: unchanged)
    "started": ({"created"}, "running"),
    "waiting": ({"running"}, "waiting"),
    "resumed": ({"waiting"}, "running"),
    "finished": ({"running"}, "finished"),
    "failed": ({"running", "waiting"}, "failed"),
    "cancel_requested": (LIVE, None),
    "cancelled": (LIVE, "cancelled"),
    "state_updated": (LIVE, None),
}
CAUSES: Mapping[str, list[list[str]]] = {
    # command kind: the events of an accepted one, in alternatives
    "create_managed": [["created"]],
    "create_mirrored": [["created", "started"]],
    "start_running": [["started"]],
    "set_waiting": [["waiting"]],
    "resume": [["resumed"]],
    "resume_external": [["resumed"]],
    "finish": [["finished"]],
    "fail": [["failed"]],
    "request_cancel": [["cancel_requested"], []],
    "cancel": [["cancelled"]],
    "update_state": [["state_updated"]],
    "record_step_observation": [["step_observed"]],
    "wake": [["resumed"], ["cancelled"]],
    "prune": [["pruned"]],
}
ALLOWED: Mapping[str, set[str]] = {
    "created": {"start_running", "cancel", "update_state"},
    "running": {"set_waiting", "finish", "fail", "cancel", "update_state"},
    "waiting": {"resume", "resume_external", "fail", "cancel", "update_state", "wake"},
    "cancelled": {"prune"},
    "finished": {"prune"},
    "failed": {"prune"},
}
ALWAYS = {"request_cancel", "record_step_observation"}
CONTROL_ONLY = {"wake", "prune"}
OUTCOME_FIELDS = [
    "command_id", "flow_id", "kind", "verdict", "code", "message", "revision", "status",
    "event_ids", "allowed", "details", "dry_run", "command_digest", "source", "at",
]  # fmt: skip
EVENT_FIELDS = [
    "id", "flow_id", "kind", "payload_json", "at", "revision", "status", "command_id", "actor",
    "source", "schema_version",
]  # fmt: skip
FLOW_FIELDS = [
    "id", "controller_id", "goal", "owner_session_key", "requester_origin", "current_step",
    "state_json", "wait_json", "status", "cancel_requested", "revision", "created_at", "updated_at",
]  # fmt: skip
STEP_FIELDS = [
    "id", "flow_id", "runtime", "child_session_key", "run_id", "task", "status", "result_json",
    "created_at", "updated_at",
]  # fmt: skip
QUARANTINE = {
    "too_large", "malformed", "unsupported_version", "invalid_command", "invalid_key",
    "internal_error",
}  # fmt: skip
REJECTION = {
    "idempotency_conflict", "forbidden", "expired", "already_exists", "not_found", "not_owner",
    "revision_mismatch", "already_terminal", "cancel_pending", "illegal_transition",
    "wait_mismatch", "not_due", "invalid_data", "state_too_large",
}  # fmt: skip
FORGOTTEN = {"forbidden", "not_owner", "idempotency_conflict"}
ANSWER = ["code", "message", "revision", "status", "event_ids", "details"]
"""What a duplicate takes over from the first outcome."""

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


def violations(
    world: World, *, unfinished: bool = False, punctual_ms: int | None = None
) -> list[str]:
    """What does not hold; at most the first few hundred. `unfinished`: load still runs, so that
    commands without outcome and open transactions are in order. `punctual_ms`: all is at rest, and
    no flow may wait whose time lies further back than that, by what its partition's broker says."""
    found: list[str] = []
    for (topic, partition), (stable, high) in world.ends.items():
        if stable != high and not unfinished:
            found.append(f"I11 {topic}/{partition}: stable to {stable} of {high}")
    for partition in range(world.partitions):
        found.extend(_Partition(world, partition, unfinished, punctual_ms).check())
    found.extend(_misplaced_copies(world))
    return found


def assert_clean(world: World, *, punctual_ms: int | None = None) -> None:
    found = violations(world, punctual_ms=punctual_ms)
    assert not found, f"{len(found)} violations:\n" + "\n".join(found[:20])


class _Partition:
    def __init__(
        self, world: World, partition: int, unfinished: bool, punctual_ms: int | None
    ) -> None:
        self.world = world
        self.number = partition
        self.unfinished = unfinished
        self.punctual_ms = punctual_ms
        self.found: list[str] = []
        self.sources: dict[tuple[str, int], Seen] = {
            (f"{world.prefix}.{topic}", record.offset): record
            for topic in SOURCES
            for record in world.records[topic][partition]
        }
        self.events = [_json(record.value) for record in world.records["audit"][partition]]
        self.flows: dict[str, Doc] = {}
        self.steps: dict[tuple[str, str], Doc] = {}
        self.chains: dict[str, bytes] = {}
        # By flow and by step: after which event ids they were what, None for gone.
        self.flow_past: dict[str, list[tuple[int, Doc | None, bytes]]] = defaultdict(list)
        self.step_past: dict[tuple[str, str], list[tuple[int, Doc | None]]] = defaultdict(list)
        self.touched: dict[int, set[tuple[str, ...]]] = {}
        self.requests: dict[int, str] = {}
        """Flows that waited when they were asked to cancel, by the event's id."""

    def need(self, holds: bool, sentence: str) -> None:
        if not holds and len(self.found) < 200:
            self.found.append(f"partition {self.number}: {sentence}")

    def check(self) -> list[str]:
        self._audit_in_itself()
        self._outcomes()
        self._state()
        self._waits()
        self._tables()
        self._dead_letters()
        return self.found

    # The audit topic

    def _audit_in_itself(self) -> None:
        """Ids without a gap, keys, chains over the bytes."""
        expected = self.number * 2**40
        chains: dict[str, bytes] = {}
        for record, event in zip(
            self.world.records["audit"][self.number], self.events, strict=True
        ):
            expected += 1
            at = f"audit offset {record.offset}"
            if event is None or list(event) != EVENT_FIELDS:
                self.need(False, f"I3 {at}: not the fields of a FlowEvent")
                continue
            flow_id = event["flow_id"]
            self.need(event["id"] == expected, f"I3 {at}: id {event['id']}, not {expected}")
            expected = event["id"]
            self.need(record.key == flow_id.encode(), f"I12 {at}: key {record.key!r}")
            self.need(self._home(flow_id), f"I12 {at}: flow {flow_id} belongs elsewhere")
            chain = blake2b(
                chains.get(flow_id, bytes(16)) + (record.value or b""), digest_size=16
            ).digest()
            self.need(headers_of(record, "taskflow-chain") == [chain], f"I7 {at}: the chain breaks")
            if event["kind"] == "pruned":
                chains.pop(flow_id, None)
            else:
                chains[flow_id] = chain

    def _home(self, flow_id: str) -> bool:
        return partition_of(flow_id.encode(), self.world.partitions) == self.number

    # Outcomes, in the order of decision, with the events that they name

    def _outcomes(self) -> None:
        answered: set[tuple[str, int]] = set()
        newest: dict[str, int] = {}
        ledger: dict[tuple[str, str], Doc] = {}
        next_event = 0
        for record in self.world.records["outcomes"][self.number]:
            outcome = _json(record.value)
            where = f"outcome offset {record.offset}"
            if outcome is None or list(outcome)[: len(OUTCOME_FIELDS)] != OUTCOME_FIELDS:
                self.need(False, f"I1 {where}: not the fields of an Outcome")
                continue
            source = outcome["source"]
            topic, offset = source["topic"], source["offset"]
            where += f" ({topic}/{source['partition']}/{offset} {outcome['verdict']})"
            self.need(source["partition"] == self.number, f"I12 {where}: of partition {source!r}")
            self.need((topic, offset) not in answered, f"I1 {where}: a second outcome")
            self.need(offset > newest.get(topic, -1), f"I1 {where}: out of order")
            answered.add((topic, offset))
            newest[topic] = max(offset, newest.get(topic, -1))
            command = self.sources.get((topic, offset))
            if command is None:
                self.need(False, f"I1 {where}: there is no such command")
                continue
            caused: list[tuple[Seen, Doc]] = []
            if outcome["verdict"] == "accepted" and not outcome["dry_run"]:
                count = len(outcome["event_ids"])
                end = next_event + count
                caused = list(
                    zip(
                        self.world.records["audit"][self.number][next_event:end],
                        (event or {} for event in self.events[next_event:end]),
                        strict=True,
                    )
                )
                next_event = end
                ids = [event.get("id") for _, event in caused]
                self.need(ids == outcome["event_ids"], f"I9 {where}: its events are not {ids}")
            elif outcome["verdict"] != "duplicate":
                self.need(outcome["event_ids"] == [], f"I9 {where}: it names events")
            try:
                self._outcome(where, record, outcome, command, caused, ledger)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                self.need(False, f"I9 {where}: it cannot be followed: {error!r}")
        self.need(
            next_event == len(self.events),
            f"I9 {len(self.events) - next_event} events that no outcome names",
        )
        missing = self.sources.keys() - answered
        if missing and not self.unfinished:
            self.need(False, f"I1 {len(missing)} commands without outcome, as {min(missing)}")

    def _outcome(
        self,
        where: str,
        record: Seen,
        outcome: Doc,
        source: Seen,
        caused: Sequence[tuple[Seen, Doc]],
        ledger: dict[tuple[str, str], Doc],
    ) -> None:
        need = self.need
        verdict, code = outcome["verdict"], outcome["code"]
        at = instant(source.timestamp)
        need(outcome["at"] == at, f"{where}: at {outcome['at']}, appended {at}")
        codes: Mapping[str, set[Any]] = {
            "accepted": {None},
            "rejected": REJECTION,
            "duplicate": REJECTION | {None},
            "quarantined": QUARANTINE,
            "forwarded": {None},
        }
        need(code in codes.get(verdict, set()), f"{where}: code {code}")
        extra = list(outcome)[len(OUTCOME_FIELDS) :]
        need(extra == (["original"] if verdict == "duplicate" else []), f"{where}: {extra}")
        need(bool(outcome["message"]), f"{where}: no message")
        traces = [t for t in headers_of(source, "traceparent")[-1:] if len(t or b"") <= 4096]
        for one in (record, *(record for record, _ in caused)):
            need(headers_of(one, "traceparent") == traces, f"{where}: traceparent is lost")
        raw = _json(source.value)
        command = raw if isinstance(raw, dict) else None
        if verdict == "quarantined":
            self._quarantined(where, record, outcome, source, command)
            return
        if command is None or source.key is None:
            need(False, f"{where}: what cannot be read was decided")
            return
        command = equal_form(command)
        flow_id, command_id = command["flow_id"], command["command_id"]
        need(record.key == flow_id.encode(), f"I12 {where}: key {record.key!r}")
        for name in ("command_id", "flow_id", "kind"):
            need(outcome[name] == command[name], f"{where}: {name} {outcome[name]}")
        need(outcome["dry_run"] is command.get("dry_run", False), f"{where}: dry_run")
        need(outcome["command_digest"] == digest(command), f"{where}: digest")
        if verdict == "forwarded":
            self._forwarded(where, outcome, source)
            return
        need(self._home(flow_id), f"I12 {where}: flow {flow_id} belongs elsewhere")
        self._resends(where, outcome, source, ledger, (flow_id, command_id))
        before = self.flows.get(flow_id)
        if verdict == "accepted":
            self._accepted(where, command, outcome, source, before, [e for _, e in caused])
        for one, event in caused:
            self._apply(where, command, source, event, dict(one.headers).get("taskflow-chain"))
        flow = self.flows.get(flow_id)
        allowed = None if flow is None else _allowed(flow, source.topic)
        need(outcome["allowed"] == allowed, f"{where}: allowed {outcome['allowed']} not {allowed}")
        if verdict != "duplicate" and not (verdict == "accepted" and outcome["dry_run"]):
            seen = (outcome["revision"], outcome["status"])
            expected = (flow["revision"], flow["status"]) if flow else (None, None)
            need(seen == expected, f"{where}: {seen}, but the flow is at {expected}")

    def _quarantined(
        self, where: str, record: Seen, outcome: Doc, source: Seen, command: Doc | None
    ) -> None:
        need = self.need
        for name in ("revision", "status", "allowed"):
            need(outcome[name] is None, f"{where}: {name} of a quarantined command")
        key = source.key
        read = None if outcome["code"] in ("too_large", "malformed") else command
        known: Doc = read or {}
        for name in ("command_id", "flow_id"):
            text = known.get(name)
            expected = text if isinstance(text, str) and _UUID.fullmatch(text) else None
            need(outcome[name] == expected, f"{where}: {name} {outcome[name]}, not {expected}")
        kind = known.get("kind")
        expected_kind = kind if isinstance(kind, str) and kind in CAUSES else None
        need(outcome["kind"] == expected_kind, f"{where}: kind {outcome['kind']}")
        if read is not None:
            need(outcome["command_digest"] == digest(equal_form(read)), f"{where}: digest")
        else:
            need(outcome["command_digest"] is None, f"{where}: digest of what cannot be read")
        if outcome["flow_id"] is not None:
            key = outcome["flow_id"].encode()
        need(record.key == key, f"{where}: key {record.key!r}")

    def _forwarded(self, where: str, outcome: Doc, source: Seen) -> None:
        assert source.key is not None
        right = partition_of(source.key, self.world.partitions)
        self.need(right != self.number, f"I12 {where}: it lies right")
        origin = f"{self.world.prefix}.{source.topic}/{self.number}/{source.offset}".encode()
        copies = [
            copy
            for copy in self.world.records[source.topic][right]
            if tuple(copy.headers[-1:]) == (("taskflow-forwarded-from", origin),)
        ]
        self.need(bool(copies), f"I9 {where}: there is no copy on partition {right}")
        # Any sender may say that its record is one.
        said = (source.key, source.value, tuple(source.headers))
        same = any((c.key, c.value, tuple(c.headers[:-1])) == said for c in copies)
        self.need(same, f"{where}: the copy differs")

    def _resends(
        self,
        where: str,
        outcome: Doc,
        source: Seen,
        ledger: dict[tuple[str, str], Doc],
        key: tuple[str, str],
    ) -> None:
        first = ledger.get(key)
        if first is not None:
            age_ms = source.timestamp - first["timestamp"]
            if age_ms > self.world.dedupe_window_ms:
                first = None
        verdict, code = outcome["verdict"], outcome["code"]
        if first is None:
            fresh = verdict != "duplicate" and code != "idempotency_conflict"
            self.need(fresh, f"I2 {where}: an answer to a resend, but it is the first")
        elif first["command_digest"] != outcome["command_digest"]:
            self.need(code == "idempotency_conflict", f"I2 {where}: {verdict} for another command")
        else:
            self.need(verdict == "duplicate", f"I2 {where}: sent again, and not a duplicate")
            for name in ANSWER if verdict == "duplicate" else ():
                self.need(
                    outcome[name] == first[name],
                    f"I2 {where}: {name} {outcome[name]}, at first {first[name]}",
                )
            if verdict == "duplicate":
                self.need(outcome["original"] == first["verdict"], f"I2 {where}: original")
        if first is None and not outcome["dry_run"] and code not in FORGOTTEN:
            ledger[key] = {**outcome, "timestamp": source.timestamp}

    def _accepted(
        self,
        where: str,
        command: Doc,
        outcome: Doc,
        source: Seen,
        before: Doc | None,
        events: Sequence[Doc],
    ) -> None:
        need, kind = self.need, command["kind"]
        need(
            source.topic == "control" or kind not in CONTROL_ONLY,
            f"I4 {where}: {kind} on the commands topic",
        )
        expected = command.get("expected_revision")
        actual = before["revision"] if before else None
        need(expected is None or expected == actual, f"I4 {where}: revision {actual}")
        expires_at = command.get("expires_at")
        need(
            expires_at is None or source.timestamp <= millis(expires_at),
            f"I4 {where}: accepted after {expires_at}",
        )
        if before is None:
            need(kind.startswith("create_"), f"I4 {where}: {kind} of an unknown flow")
        elif source.topic == "commands" and kind not in (
            "resume_external",
            "record_step_observation",
        ):
            owner = before["owner_session_key"]
            need(command["issued_by"] == owner, f"I4 {where}: the flow is {owner}'s")
        if outcome["dry_run"]:
            return
        kinds = [event.get("kind") for event in events]
        need(kinds in CAUSES[kind], f"I4 {where}: {kind} caused {kinds}")
        if kind == "request_cancel" and before is not None:
            idle = before["cancel_requested"] or before["status"] in TERMINAL
            need(bool(kinds) is not idle, f"I4 {where}: request_cancel caused {kinds}")

    def _apply(
        self, where: str, command: Doc, source: Seen, event: Doc, chain: bytes | None
    ) -> None:
        """Fold one event, and hold it against the command that caused it."""
        need, kind = self.need, event.get("kind", "")
        where = f"{where} event {event.get('id')} {kind}"
        at = instant(source.timestamp)
        named = {"topic": f"{self.world.prefix}.{source.topic}", "partition": self.number}
        for name, expected in (
            ("flow_id", command["flow_id"]),
            ("command_id", command["command_id"]),
            ("actor", command["issued_by"]),
            ("at", at),
            ("source", {**named, "offset": source.offset}),
            ("schema_version", 1),
        ):
            need(event.get(name) == expected, f"I9 {where}: {name} {event.get(name)!r}")
        if list(event) != EVENT_FIELDS:
            return
        flow_id, payload = event["flow_id"], event["payload_json"]
        flow = self.flows.get(flow_id)
        if flow is not None and flow["status"] == "waiting":
            if kind == "resumed" and payload["by"] in ("timer", "timeout"):
                over_ms = _over_ms(flow)
                need(
                    over_ms is not None and source.timestamp >= over_ms,
                    f"I13 {where}: woken at {at}, before {flow['wait_json']}",
                )
            elif kind == "cancel_requested":
                self.requests[event["id"]] = flow_id
        touched = self.touched.setdefault(event["id"], {(flow_id,)})
        expected = _payload(command, flow, kind, at)
        if kind != "step_observed":
            need(canonical(payload) == canonical(expected), f"I9 {where}: payload {payload}")
        if kind == "created":
            need(flow is None, f"I4 {where}: the flow is there already")
            flow = {
                "id": flow_id,
                **payload,
                "wait_json": None,
                "status": "created",
                "cancel_requested": False,
                "revision": 0,
                "created_at": at,
                "updated_at": at,
            }
        elif flow is None:
            need(False, f"I4 {where}: there is no such flow")
            return
        elif kind == "pruned":
            need(flow["status"] in TERMINAL, f"I4 {where}: it is {flow['status']}")
            self._told(where, event, flow)
            del self.flows[flow_id]
            self.chains.pop(flow_id, None)
            self.flow_past[flow_id].append((event["id"], None, b""))
            for key in [key for key in self.steps if key[0] == flow_id]:
                del self.steps[key]
                self.step_past[key].append((event["id"], None))
                touched.add(key)
            return
        elif kind == "step_observed":
            self._step(where, command, event, payload.get("step", {}), at)
            touched.add((flow_id, command["run_id"]))
        else:
            flow = self._changed(where, flow, event, at)
        self._told(where, event, flow)
        self.flows[flow_id] = flow
        self.flow_past[flow_id].append((event["id"], flow, chain or b""))

    def _told(self, where: str, event: Doc, flow: Doc) -> None:
        told, is_at = (event["revision"], event["status"]), (flow["revision"], flow["status"])
        self.need(told == is_at, f"I3 {where}: it says {told}, the fold {is_at}")

    def _changed(self, where: str, flow: Doc, event: Doc, at: str) -> Doc:
        kind, payload = event["kind"], event["payload_json"]
        allowed_from, to = CHANGES.get(kind, (set(), None))
        self.need(flow["status"] in allowed_from, f"I4 {where}: from {flow['status']}")
        self.need(
            not flow["cancel_requested"] or kind == "cancelled",
            f"I4 {where}: cancel was requested",
        )
        state, step = flow["state_json"], flow["current_step"]
        if kind == "resumed" and payload["state_patch"] is not None:
            state = merge(state, payload["state_patch"])
        elif kind == "finished" and payload["final_state"] is not None:
            state = merge(state, payload["final_state"])
        elif kind == "failed":
            state = merge(state, {"failure": {"reason": payload["reason"], "at": at}})
        elif kind == "state_updated":
            state = merge(state, payload["patch"])
            step = step if payload["next_step"] is None else payload["next_step"]
        status = to or flow["status"]
        wait = flow["wait_json"] if to is None else None
        return {
            **flow,
            "state_json": state,
            "current_step": step,
            "status": status,
            "wait_json": payload["wait"] if kind == "waiting" else wait,
            "cancel_requested": flow["cancel_requested"] or kind == "cancel_requested",
            "revision": flow["revision"] + 1,
            "updated_at": at,
        }

    def _step(self, where: str, command: Doc, event: Doc, step: Doc, at: str) -> None:
        key = (command["flow_id"], command["run_id"])
        old = self.steps.get(key)
        expected = {
            "id": str(uuid.uuid5(uuid.UUID(key[0]), key[1])),
            "flow_id": key[0],
            "runtime": "mirrored",
            "child_session_key": command.get(
                "child_session_key", old["child_session_key"] if old else None
            ),
            "run_id": key[1],
            "task": command["task"],
            "status": command["status"],
            "result_json": command.get("result_json"),
            "created_at": old["created_at"] if old else at,
            "updated_at": at,
        }
        self.need(canonical(step) == canonical(expected), f"I5 {where}: step {step}")
        self.steps[key] = step
        self.step_past[key].append((event["id"], step))

    def _flow_at(self, flow_id: str, next_event_id: int) -> tuple[int, Doc | None, bytes]:
        past = self.flow_past.get(flow_id, [])
        index = bisect_left(past, next_event_id, key=lambda entry: entry[0])
        return past[index - 1] if index else (0, None, b"")

    def _step_at(self, key: tuple[str, str], next_event_id: int) -> Doc | None:
        past = self.step_past.get(key, [])
        index = bisect_left(past, next_event_id, key=lambda entry: entry[0])
        return past[index - 1][1] if index else None

    # The state topic, transaction by transaction

    def _state(self) -> None:
        need = self.need
        position = {"commands": 0, "control": 0, "next_event_id": self.number * 2**40 + 1}
        written: dict[bytes, Seen] = {}
        for record in self.world.records["state"][self.number]:
            key = record.key or b""
            where = f"state offset {record.offset}"
            if not key.startswith(b"cursor/"):
                need(key not in written, f"I9 {where}: {key!r} twice in a transaction")
                written[key] = record
                continue
            need(key == f"cursor/{self.number}".encode(), f"I12 {where}: {key!r}")
            cursor = _json(record.value) or {}
            need(
                list(cursor) == [*position, "schema_version"] and cursor["schema_version"] == 1,
                f"I6 {where}: cursor {cursor}",
            )
            for name, old in position.items():
                need(cursor[name] >= old, f"I6 {where}: {name} goes back from {old}")
            self._transaction(where, written, position["next_event_id"], cursor["next_event_id"])
            self._requests(where, position, cursor["next_event_id"])
            position = {name: cursor[name] for name in position}
            written = {}
        need(not written or self.unfinished, f"I9 state: {len(written)} records behind the cursor")
        self._final_position(position)

    def _transaction(self, where: str, written: Mapping[bytes, Seen], first: int, end: int) -> None:
        """What one transaction put on `state` is what its events leave."""
        touched: set[tuple[str, ...]] = set()
        for event_id in range(first, end):
            touched |= self.touched.get(event_id, set())
        flows = {key[0] for key in touched}
        expected: dict[bytes, Doc | None] = {}
        for flow_id in flows:
            last_event_id, flow, chain = self._flow_at(flow_id, end)
            expected[flow_id.encode()] = flow and {
                "flow": flow,
                "last_event_id": last_event_id,
                "chain": chain.hex(),
            }
        for key in touched:
            if len(key) == 2:
                step = self._step_at(key, end)
                expected["/".join(key).encode()] = step and {"step": step}
        for name, value in expected.items():
            if name not in written:
                self.need(False, f"I9 {where}: {name!r} is missing in the transaction")
                continue
            found = written[name].value
            same = (found is None) if value is None else _same(found, value)
            self.need(same, f"I5 {where}: {name!r} is {found!r}, the fold {value}")
        for name in written.keys() - expected.keys():
            self.need(False, f"I9 {where}: {name!r} without an event")

    def _requests(self, where: str, before: Mapping[str, int], end: int) -> None:
        """A flow that a transaction leaves waiting and to be cancelled has a wake to come."""
        for event_id in range(before["next_event_id"], end):
            flow_id = self.requests.get(event_id)
            flow = flow_id and self._flow_at(flow_id, end)[1]
            if flow_id is None or not flow or flow["status"] != "waiting":
                continue
            woken = any(
                record.offset >= before["control"]
                and record.key == flow_id.encode()
                and (_json(record.value) or {}).get("kind") == "wake"
                for record in self.world.records["control"][self.number]
            )
            self.need(woken, f"I13 {where}: {flow_id} is to be cancelled and is not woken")

    def _waits(self) -> None:
        """At rest, nobody waits for what is over."""
        if self.punctual_ms is None:
            return
        records = [r for some in self.world.records.values() for r in some[self.number]]
        now_ms = max((record.timestamp for record in records), default=0)
        for flow_id, flow in self.flows.items():
            over_ms = _over_ms(flow)
            late = over_ms is not None and over_ms < now_ms - self.punctual_ms
            self.need(not late, f"I13 {flow_id} still waits at {instant(now_ms)}: {flow}")

    def _final_position(self, position: Mapping[str, int]) -> None:
        after = self.number * 2**40 + 1 + len(self.events)
        if position["next_event_id"] != after and not self.unfinished:
            self.need(False, f"I6 the cursor's next event is {position['next_event_id']}")
        answered: dict[str, int] = dict.fromkeys(SOURCES, 0)
        for record in self.world.records["outcomes"][self.number]:
            source = (_json(record.value) or {}).get("source")
            if source:
                name = source["topic"].rpartition(".")[2]
                answered[name] = max(answered.get(name, 0), source["offset"] + 1)
        for name in SOURCES:
            lower, at = answered[name], position[name]
            stable = self.world.ends.get((name, self.number), (at, at))[0]
            self.need(lower <= at <= max(stable, lower), f"I6 {name}: cursor {at}, not {lower}")
            undecided = [r.offset for r in self.world.records[name][self.number] if r.offset < at]
            self.need(
                not undecided or undecided[-1] < lower or self.unfinished,
                f"I1 {name}: the cursor {at} has passed {undecided[-1:]} without outcome",
            )

    # Tables

    def _tables(self) -> None:
        tables = [table for table in self.world.tables if table.partition == self.number]
        cursor = newest_cursor(self.world, self.number)
        if tables and cursor is not None and not self.unfinished:
            at_end = any(is_at(table, cursor) for table in tables)
            self.need(at_end, f"I5 no table is where the topics are, at {cursor}")
        for table in tables:
            if not table.filled:
                continue
            end, name = table.next_event_id, table.path
            if cursor is not None:
                self.need(end <= cursor["next_event_id"], f"I5 {name} is ahead of the topics")
            flows = {
                flow_id: past
                for flow_id in self.flow_past
                if (past := self._flow_at(flow_id, end))[1] is not None
            }
            self.need(flows.keys() == table.flows.keys(), f"I5 {name}: other flows")
            for flow_id, (last_event_id, flow, chain) in flows.items():
                row = table.flows.get(flow_id)
                if row is None or flow is None:
                    continue
                self.need(_same(row[0], flow), f"I5 {name}: {row[0]}, the fold {flow}")
                self.need(
                    row[1:] == (last_event_id, chain), f"I7 {name}: {flow_id} has another tail"
                )
            steps = {
                key: step for key in self.step_past if (step := self._step_at(key, end)) is not None
            }
            self.need(steps.keys() == table.steps.keys(), f"I5 {name}: other steps")
            for key, step in steps.items():
                doc = table.steps.get(key)
                self.need(doc is None or _same(doc, step), f"I5 {name}: step {doc}, not {step}")

    # Dead letters

    def _dead_letters(self) -> None:
        quarantined: Counter[tuple[str, int]] = Counter()
        told: dict[tuple[str, int], tuple[str, str]] = {}
        for record in self.world.records["outcomes"][self.number]:
            outcome = _json(record.value) or {}
            if outcome.get("verdict") == "quarantined":
                at = (outcome["source"]["topic"], outcome["source"]["offset"])
                quarantined[at] += 1
                told[at] = (outcome["code"], outcome["message"])
        buried: Counter[tuple[str, int]] = Counter()
        for letter in self.world.records["deadletters"][self.number]:
            added = {
                name: (value or b"").decode()
                for name, value in letter.headers[-8:]
                if name.startswith("taskflow-")
            }
            at = (
                added.get("taskflow-source-topic", ""),
                int(added.get("taskflow-source-offset", -1)),
            )
            buried[at] += 1
            source = self.sources.get(at)
            if source is None:
                self.need(False, f"dead letter offset {letter.offset}: of no command, {at}")
                continue
            self._dead_letter(letter, source, added, told.get(at))
        self.need(
            buried == quarantined,
            f"I9 dead letters without outcome {buried - quarantined}, "
            f"outcomes without dead letter {quarantined - buried}",
        )

    def _dead_letter(
        self, letter: Seen, source: Seen, added: Doc, told: tuple[str, str] | None
    ) -> None:
        where = f"dead letter offset {letter.offset}"
        value = source.value
        expected = [
            ("taskflow-code", told[0] if told else ""),
            ("taskflow-message", told[1] if told else ""),
            ("taskflow-source-topic", f"{self.world.prefix}.{source.topic}"),
            ("taskflow-source-partition", str(self.number)),
            ("taskflow-source-offset", str(source.offset)),
            ("taskflow-source-timestamp", instant(source.timestamp)),
        ]
        if value is not None and len(value) > 512 * 1024:
            expected.append(("taskflow-truncated", str(len(value))))
            whole = blake2b(value, digest_size=16).hexdigest()
            expected.append(("taskflow-digest", whole))
            value = value[: 512 * 1024]
        headers = (*source.headers, *((name, text.encode()) for name, text in expected))
        self.need(letter.key == source.key, f"{where}: another key")
        self.need(letter.value == value, f"{where}: another value")
        self.need(letter.headers == headers, f"{where}: headers {letter.headers}")


def _misplaced_copies(world: World) -> list[str]:
    """I12: on audit and state, a flow is to be found on one partition only."""
    found = []
    for topic in ("audit", "state"):
        for partition, records in enumerate(world.records[topic]):
            for record in records:
                flow_id = (record.key or b"").partition(b"/")[0]
                if flow_id == b"cursor":
                    continue
                if partition_of(flow_id, world.partitions) != partition:
                    found.append(f"I12 {topic}/{partition}/{record.offset}: {record.key!r}")
    return found


def _over_ms(flow: Doc) -> int | None:
    """When a flow's wait ends by itself, by what it waits for; None: never, or it does not wait."""
    wait = flow["wait_json"]
    if flow["status"] != "waiting" or wait is None:
        return None
    if flow["cancel_requested"]:
        return 0
    until = wait.get("at" if wait["kind"] == "timer" else "timeout_at")
    return None if until is None else millis(until)


def _allowed(flow: Doc, topic: str) -> list[str]:
    kinds = ALLOWED[flow["status"]] | ALWAYS
    if flow["cancel_requested"] and flow["status"] in LIVE:
        kinds = kinds & (ALWAYS | {"cancel", "wake"})
    return sorted(kinds - (set() if topic == "control" else CONTROL_ONLY))


def _payload(command: Doc, flow: Doc | None, kind: str, at: str) -> Doc:
    """What an event of this kind must hold if `command` caused it."""
    match kind:
        case "created":
            given = ("controller_id", "goal", "requester_origin")
            return {
                **{name: command.get(name) for name in given},
                "owner_session_key": command.get("owner_session_key", command["issued_by"]),
                "current_step": command.get("current_step", "init"),
                "state_json": command.get("state_json", {}),
            }
        case "waiting":
            wait = dict(command.get("wait", {}))
            for name in {"at", "timeout_at"} & wait.keys():
                wait[name] = instant(millis(wait[name]))
            return {"wait": wait}
        case "resumed":
            if command["kind"] == "resume":
                return {"by": "command", "state_patch": command.get("state_patch")}
            if command["kind"] == "resume_external":
                patch = {"resume_event": command["payload"]} if "payload" in command else None
                return {"by": "external_event", "state_patch": patch}
            timer = bool(flow) and (flow or {})["wait_json"]["kind"] == "timer"
            return {"by": "timer" if timer else "timeout", "state_patch": None}
        case "finished":
            return {"final_state": command.get("final_state")}
        case "failed":
            return {"reason": command.get("reason")}
        case "state_updated":
            return {"patch": command.get("patch"), "next_step": command.get("next_step")}
        case _:
            return {}


def merge(state: Any, patch: Any) -> Any:
    both = isinstance(state, dict) and isinstance(patch, dict)
    return {**state, **patch} if both else patch


# Made once: json.dumps would make one for each value.
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def canonical(value: Any) -> str:
    return _CANONICAL.encode(value)


def digest(command: Doc) -> str:
    return blake2b(canonical(command).encode(), digest_size=16).hexdigest()


def _same(text: str | bytes | None, value: Any) -> bool:
    parsed = _json(text)
    return parsed is not None and canonical(parsed) == canonical(value)


def _json(text: str | bytes | None) -> Any:
    try:
        return json.loads(text or b"")
    except (ValueError, RecursionError):
        return None


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def instant(at_ms: int) -> str:
    whole = _EPOCH + timedelta(milliseconds=at_ms)
    return whole.isoformat(timespec="milliseconds").replace("+00:00", "Z")


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Kafka's default: murmur2 of the key, without its sign, modulo the partitions."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    h = 0x9747B28C ^ len(key)
    whole = len(key) & ~3
    for start in range(0, whole, 4):
        k = int.from_bytes(key[start : start + 4], "little") * m & mask
        k = (k ^ k >> 24) * m & mask
        h = (h * m & mask) ^ k
    if rest := key[whole:]:
        h = (h ^ int.from_bytes(rest, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    h ^= h >> 15
    return (h & 0x7FFFFFFF) % partitions
