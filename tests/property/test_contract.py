"""Whatever is sent: outcomes, events, state, dead letters and copies are what the contract, read
once more by itself (tests/support/contract.py), says that they are."""

import json
from random import Random
from typing import Any
from uuid import UUID, uuid5

from hypothesis import given, settings
from hypothesis import strategies as st

from processor.batch import Batch, Place, first_event_id
from processor.domain.decide import Limits
from processor.rows import Position
from schemas import Topics
from tests.support.checker import EVENT_FIELDS, OUTCOME_FIELDS, partition_of
from tests.support.contract import (
    CONTROL_ONLY,
    MOVES,
    OWN,
    REQUIRED,
    Answer,
    Contract,
    compact,
    digest,
    milliseconds,
    sorted_compact,
    written,
)
from tests.support.given import FLOW_ID, MORNING, OWNER, STRANGER
from tests.support.partition import Appended, Partition

WINDOW_MS, HORIZON_MS = 3_000, 20_000
PLACE = Place(
    partition=1,
    partitions=3,
    topics=Topics("t"),
    dedupe_window_ms=WINDOW_MS,
    limits=Limits(timer_max_horizon_ms=HORIZON_MS),
)
FLOW_IDS = [str(uuid5(UUID(FLOW_ID), f"flow {n}")) for n in range(40)]
AT_HOME = [one for one in FLOW_IDS if partition_of(one.encode(), 3) == 1][:3]
ASTRAY = [one for one in FLOW_IDS if partition_of(one.encode(), 3) != 1][:1]
ANY_JSON = {"state_json", "patch", "state_patch", "final_state", "payload", "result_json"}
OFTEN = {"set_waiting": 8, "resume_external": 6, "wake": 6, "start_running": 6, "request_cancel": 1}
"""What leads further; a flow that is asked to cancel goes nowhere any more."""
FORWARDED = ("taskflow-forwarded-from", b"t.commands/0/7")
HUGE = "ü" * (128 * 1024)
LARGE = "x" * (64 * 1024)

VALUES: list[Any] = [
    None, 0, 1, 1.0, -0.0, 1e-7, True, "", "ü\u0000\U0001f600", [], {}, [{"b": None}], {"a": 1},
    {"a": {"b": 2}}, {"a": None, "c": 0.1}, {"failure": 1, "resume_event": 2}, 2**53 - 1,
]  # fmt: skip
BIG_VALUES: list[Any] = [
    HUGE[:-1], HUGE, LARGE[:-2], LARGE[:-1], {"a": LARGE[:-8]}, {"z": HUGE[:-4]},
]  # fmt: skip
TEXTS = ["a", "b", "a", "b", "\U0001f600" * 256]
BAD_TEXTS: list[Any] = ["", "\U0001f600" * 257, None, 7, ["a"], "x" * 4097]
SHIFTS_MS = [0, 1, 1_500, 1_500, WINDOW_MS, WINDOW_MS, HORIZON_MS, HORIZON_MS + 1]
STRANGE_TIMES = [
    "2026-06-01t00:00:00.9999z", "1999-12-31T24:00:00Z", "2026-06-01 00:00:00Z",
    "2026-06-01T00:00:00", "0001-01-01T00:00:00Z", "2026-06-31T00:00:00Z", 7,
]  # fmt: skip
RAW = [
    None, b"", b"[]", b"null", b'{"kind":"\xff"}', b"{", b'{"a":NaN}', b"\xef\xbb\xbf{}", b"{}{}",
    b'{"a":1e400}', b'{"a":9007199254740992}', b'{"\\ud800":1}', b"\x00\x01",
    b'{"a":' * 64 + b"1" + b"}" * 64, b'{"a":' * 65 + b"1" + b"}" * 65,
    b'{"flow_id":"' + AT_HOME[0].encode() + b'","schema_version":2}',
    b" " * (512 * 1024), b" " * (512 * 1024 + 1),
]  # fmt: skip


class Sender(Random):
    """Sends to one partition what its flows take, mostly; and resends, and mistakes."""

    def seldom(self) -> bool:
        return self.random() < 0.1

    def coin(self) -> bool:
        return self.random() < 0.5

    def record(self, life: "Life") -> Appended:
        """The next record of a life, appended some time after the last one."""
        at_ms = life.at_ms + self.choice([0, 1, 500, 1_500, WINDOW_MS, -1])
        headers: list[tuple[str, bytes]] = []
        if self.seldom():
            headers = [("traceparent", b"00-%d" % len(life.records)), ("h", b"")]
        topic = self.choice(["t.commands", "t.commands", "t.control"])
        key: bytes | None
        value: bytes | None
        if self.seldom():
            key = self.choice([None, b"", b"k" * 64, b"k" * 65, AT_HOME[0].encode()])
            value = self.choice(RAW)
        else:
            command = self.resend(life) if self.seldom() else self.command(life, at_ms)
            key = str(command.get("flow_id")).encode()
            if command.get("kind") in CONTROL_ONLY and not self.seldom():
                topic = "t.control"
            if self.seldom():
                self.spoil(command)
            if self.seldom() and self.coin():
                key = self.choice([None, b"", b"k" * 65, ASTRAY[0].encode()])
            if command.get("flow_id") in ASTRAY and self.coin():
                headers.append(FORWARDED)
            value = compact(command)
        return Appended(topic, 1, life.offsets[topic], at_ms, key, value, tuple(headers))

    def resend(self, life: "Life") -> dict[str, Any]:
        if not life.sent:
            return self.command(life, life.at_ms)
        command = dict(self.choice(life.sent))
        if self.coin():  # the same, in other words
            return {"dry_run": None} | dict(reversed(command.items()))
        if self.coin():  # and not the same
            command[self.choice(["issued_by", "task", "reason"])] = "somebody"
        return command

    def command(self, life: "Life", at_ms: int) -> dict[str, Any]:
        flow_id = self.choice(ASTRAY if self.seldom() else AT_HOME)
        known = life.contract.flows.get(flow_id)
        if self.seldom():
            kinds = [*OWN, "dance"]
        elif known is None:
            kinds = ["create_mirrored", "create_managed"]
        else:
            status = known.flow["status"]
            kinds = [kind for kind, (origins, _) in MOVES.items() if status in origins]
        (kind,) = self.choices(kinds, [OFTEN.get(kind, 2) for kind in kinds])
        command = {
            "kind": kind,
            "command_id": str(uuid5(UUID(FLOW_ID), f"{len(life.records)}")),
            "flow_id": flow_id,
            "issued_by": STRANGER if self.seldom() else OWNER,
        }
        command |= self.own_fields(kind, at_ms)
        if kind == "resume_external" and known and known.flow["wait_json"] and not self.seldom():
            wait = known.flow["wait_json"]
            command |= {name: wait.get(name, "a") for name in ("topic", "correlation_id")}
        if self.seldom():
            command["dry_run"] = self.choice([True, False, None])
        if self.seldom():
            actual = known.flow["revision"] if known else 0
            command["expected_revision"] = self.choice([actual, None, actual + 1])
        if self.seldom():
            command["expires_at"] = self.choice([None, self.time(at_ms)])
        life.sent.append(command)
        return command

    def own_fields(self, kind: str, at_ms: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, (_, default) in OWN.get(kind, {}).items():
            if default is not REQUIRED and self.coin():
                continue
            if name == "wait":
                fields[name] = self.wait(at_ms)
            elif name == "status":
                fields[name] = self.choice(["pending", "succeeded", "failed"])
            elif name == "owner_session_key":
                fields[name] = self.choice([OWNER, None, STRANGER])
            elif name in ANY_JSON:
                fields[name] = self.choice(BIG_VALUES if self.seldom() else VALUES)
            elif default is not REQUIRED and self.coin():
                fields[name] = None
            else:
                fields[name] = self.choice(TEXTS)
        return fields

    def wait(self, at_ms: int) -> Any:
        kind = self.choice(["timer", "external_event", "manual", "timer", "other", None])
        wait: dict[str, Any] = {"kind": kind}
        if kind == "timer":
            wait["at"] = self.time(at_ms)
        elif self.coin():
            wait["timeout_at"] = self.choice([None, self.time(at_ms)])
        if kind == "external_event":
            wait |= {"topic": self.choice(TEXTS), "correlation_id": self.choice(TEXTS)}
        if self.seldom():
            name = self.choice(["at", "timeout_at", "kind", "manual", "topic"])
            wait[name] = self.choice([None, "a", "manual", "2026-06-01T00:00:00Z"])
        return wait

    def time(self, at_ms: int) -> Any:
        if self.seldom() and self.coin():
            return self.choice(STRANGE_TIMES)
        text = written(at_ms + self.choice(SHIFTS_MS))
        if self.seldom():
            return text.lower().replace("z", "9999z")
        if self.seldom():
            return written(milliseconds(text) + 19_800_000).replace("Z", "+05:30")
        return text

    def spoil(self, command: dict[str, Any]) -> None:
        """One mistake, of those that a sender makes."""
        name = self.choice(sorted(command))
        match self.randrange(7):
            case 0:
                del command[name]
            case 1:
                new = self.choice(["x", "patch", "status", "wait", "", "create_managed"])
                command[new] = self.choice(VALUES)
            case 2:
                command[name] = self.choice(BAD_TEXTS)
            case 3:
                command["schema_version"] = self.choice([1, None, 2, "1", True, 1.0, 0])
            case 4:
                command["expected_revision"] = self.choice([-1, 1.0, "1", True, 0, 2**53 - 1])
            case 5:
                command["dry_run"] = self.choice([None, False, 0, "true", []])
            case _:
                name = self.choice([one for one in ("command_id", "flow_id") if one in command])
                command[name] = str(command[name]).upper()


class Life:
    """What is sent to one partition, with what the contract makes of it."""

    def __init__(self) -> None:
        self.contract = new_contract()
        self.records: list[Appended] = []
        self.sent: list[dict[str, Any]] = []
        self.offsets = {"t.commands": 0, "t.control": 0}
        self.at_ms = MORNING

    def go_on(self, seed: int) -> None:
        record = Sender(seed).record(self)
        self.records.append(record)
        self.at_ms = record.timestamp
        self.offsets[record.topic] += 1
        self.contract.take(record)


def batches_of(seeds: list[int]) -> list[list[Appended]]:
    """A record of each seed, in batches as polls may bring them."""
    life, batches = Life(), [[]]
    for seed in seeds:
        life.go_on(seed)
        batches[-1].append(life.records[-1])
        if seed % 5 == 0:
            batches.append([])
    return [batch for batch in batches if batch]


class Reader:
    """Compares what batches write with what the contract says, one batch after the other."""

    def __init__(self) -> None:
        self.contract = new_contract()
        self.chains: dict[str, bytes] = {}
        self.details: dict[str, Any] = {}
        self.state: dict[bytes, bytes | None] = {}
        self.position = {"t.commands": 0, "t.control": 0}

    def read(self, records: list[Appended], batch: Batch) -> None:
        asked = {i for i, known in self.contract.flows.items() if is_cancelled_waiting(known.flow)}
        answers = [self.contract.take(record) for record in records]
        self._read_outcomes(records, answers, batch)
        self._read_audit(records, answers, batch)
        self._read_state(records, answers, batch)
        read_dead_letters(records, answers, batch)
        read_copies(records, answers, batch)
        waiting = {
            i for i, known in self.contract.flows.items() if is_cancelled_waiting(known.flow)
        }
        assert {flow_id for flow_id, _ in batch.wakes} == waiting - asked

    def _read_outcomes(self, records: list[Appended], answers: list[Answer], batch: Batch) -> None:
        assert len(batch.outcomes) == len(records)
        for record, answer, (key, value, headers) in zip(
            records, answers, batch.outcomes, strict=True
        ):
            told, expected = compact_json(value), answer.outcome
            assert list(told) == OUTCOME_FIELDS + ["original"] * ("original" in expected)
            assert len(told.pop("message")) > 10
            details = self.details[place_of(told)] = told["details"]
            if answer.original is not None:
                assert details == self.details[place_of(answer.original)]
            elif answer.wrong_fields is not None:
                check_errors(details, answer.wrong_fields)
            elif expected["details"] is not None:
                assert details == expected["details"]
            assert sorted_compact(told | {"details": 0}) == sorted_compact(
                expected | {"details": 0}
            )
            known_key = expected["flow_id"] and expected["flow_id"].encode()
            assert key == (known_key or record.key)
            assert list(headers) == traces(record)

    def _read_audit(self, records: list[Appended], answers: list[Answer], batch: Batch) -> None:
        expected = [
            (event, record)
            for record, answer in zip(records, answers, strict=True)
            for event in answer.events
        ]
        assert len(batch.audit) == len(expected)
        for (event, record), (key, value, headers) in zip(expected, batch.audit, strict=True):
            told = compact_json(value)
            assert list(told) == EVENT_FIELDS
            assert sorted_compact(told) == sorted_compact(event)
            flow_id = event["flow_id"]
            assert key == flow_id.encode()
            chain = digest(self.chains.get(flow_id, bytes(16)), value or b"")
            assert list(headers) == [("taskflow-chain", chain), *traces(record)]
            self.chains[flow_id] = chain
            if event["kind"] == "pruned":
                del self.chains[flow_id]

    def _read_state(self, records: list[Appended], answers: list[Answer], batch: Batch) -> None:
        touched = {event["flow_id"].encode() for answer in answers for event in answer.events}
        steps = {
            f"{event['flow_id']}/{event['payload_json']['step']['run_id']}".encode()
            for answer in answers
            for event in answer.events
            if event["kind"] == "step_observed"
        }
        written_now = {key: value for key, value, _ in batch.state if key is not None}
        assert len(written_now) == len(batch.state), "each key once"
        gone = {
            key
            for key in self.state
            if b"/" in key and not key.startswith(b"cursor/") and key[:36] in touched
        } & written_now.keys()
        assert written_now.keys() == touched | steps | gone | {b"cursor/1"}
        self.state |= written_now
        expected: dict[bytes, Any] = {}
        for flow_id, known in self.contract.flows.items():
            expected[flow_id.encode()] = {
                "flow": known.flow,
                "last_event_id": known.last_event_id,
                "chain": self.chains[flow_id].hex(),
            }
            for run_id, step in known.steps.items():
                expected[f"{flow_id}/{run_id}".encode()] = {"step": step}
        for record in records:
            self.position[record.topic] = record.offset + 1
        expected[b"cursor/1"] = {
            "commands": self.position["t.commands"],
            "control": self.position["t.control"],
            "next_event_id": 2**40 + self.contract.events + 1,
            "schema_version": 1,
        }
        present = {key: json.loads(value) for key, value in self.state.items() if value is not None}
        assert sorted_compact(as_text(present)) == sorted_compact(as_text(expected))


def new_contract() -> Contract:
    return Contract(1, lambda key: partition_of(key, 3), WINDOW_MS, HORIZON_MS)


def compact_json(value: bytes | None) -> Any:
    """What `value` holds, which must be compact and escape nothing without need."""
    told = json.loads(value or b"")
    assert value == compact(told).replace(b"1e-07", b"1e-7")  # there are two ways to write it
    return told


def as_text(by_key: dict[bytes, Any]) -> dict[str, Any]:
    return {key.decode(): value for key, value in by_key.items()}


def is_cancelled_waiting(flow: dict[str, Any]) -> bool:
    return bool(flow["status"] == "waiting" and flow["cancel_requested"])


def place_of(outcome: dict[str, Any]) -> str:
    return json.dumps(outcome["source"])


def traces(record: Appended) -> list[tuple[str, bytes]]:
    return [header for header in record.headers if header[0] == "traceparent"]


def check_errors(details: dict[str, Any], wrong: set[str]) -> None:
    assert list(details) == ["errors"]
    errors = details["errors"]
    assert all(list(error) == ["field", "problem"] for error in errors)
    assert 1 <= len(errors) <= 20
    assert {error["field"] for error in errors} == wrong


def read_dead_letters(records: list[Appended], answers: list[Answer], batch: Batch) -> None:
    bad = [
        (record, answer.outcome)
        for record, answer in zip(records, answers, strict=True)
        if answer.outcome["verdict"] == "quarantined"
    ]
    assert len(batch.dead_letters) == len(bad)
    for (record, outcome), letter in zip(bad, batch.dead_letters, strict=True):
        size = len(record.value or b"")
        kept = record.value and record.value[: 512 * 1024]
        assert (letter.key, letter.value) == (record.key, kept)
        count = len(record.headers)
        assert tuple(letter.headers[:count]) == record.headers
        added = {name: (value or b"").decode() for name, value in letter.headers[count:]}
        assert len(added.pop("taskflow-message")) > 10
        assert added == {
            "taskflow-code": outcome["code"],
            "taskflow-source-topic": record.topic,
            "taskflow-source-partition": "1",
            "taskflow-source-offset": str(record.offset),
            "taskflow-source-timestamp": outcome["at"],
        } | (
            {
                "taskflow-truncated": str(size),
                "taskflow-digest": digest(record.value or b"").hex(),
            }
            if size > 512 * 1024
            else {}
        )


def read_copies(records: list[Appended], answers: list[Answer], batch: Batch) -> None:
    expected = [
        (record, answer.forwarded_to)
        for record, answer in zip(records, answers, strict=True)
        if answer.forwarded_to is not None
    ]
    assert len(batch.forwards) == len(expected)
    for (record, partition), copy in zip(expected, batch.forwards, strict=True):
        origin = f"{record.topic}/1/{record.offset}".encode()
        assert (copy.topic, copy.partition) == (record.topic, partition)
        assert (copy.record.key, copy.record.value) == (record.key, record.value)
        headers = [*record.headers, ("taskflow-forwarded-from", origin)]
        assert list(copy.record.headers) == headers


# One number for each record, so that hypothesis looks for the fewest records that show a fault.
@settings(max_examples=300)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=60))
def test_what_is_written_is_what_the_contract_says(seeds):
    partition, reader = Partition(PLACE, Position(0, 0, first_event_id(1))), Reader()
    for records in batches_of(seeds):
        batch = partition.handle(records)
        assert batch.faults == []
        reader.read(records, batch)
