"""What somebody may send: mostly what the flows take as they stand, and resends, and mistakes.

Each record is drawn by a number, given what was sent before it: the same numbers give the same
traffic, and any part of them another one that is as good.
"""

from random import Random
from typing import Any
from uuid import UUID, uuid5

from processor.ops.verify.contract import home_of
from processor.testing.memory.record import Appended
from tests.support.builders import FLOW_ID, MORNING, OWNER, STRANGER
from tests.support.reference_model import CONTROL_ONLY, LIVE, MOVES, OWN, Contract, Known
from tests.support.reference_steps import MOVES as STEP_MOVES
from tests.support.reference_values import REQUIRED, compact, written

PARTITION, PARTITIONS = 1, 3
WINDOW_MS, HORIZON_MS = 3_000, 20_000
_FLOW_IDS = [str(uuid5(UUID(FLOW_ID), f"flow {n}")) for n in range(40)]
AT_HOME = [one for one in _FLOW_IDS if home_of(one.encode(), PARTITIONS) == PARTITION][:3]
ASTRAY = [one for one in _FLOW_IDS if home_of(one.encode(), PARTITIONS) != PARTITION][:1]
ANY_JSON = {
    "state_json", "patch", "state_patch", "final_state", "payload", "result_json", "input_json",
    "progress_json",
}  # fmt: skip
OFTEN = {
    "set_waiting": 8, "resume_external": 6, "wake": 6, "start_running": 6, "request_cancel": 1,
    "schedule_step": 8, "start_step": 8, "wake_step": 6,
}  # fmt: skip
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
NUMBERS: dict[str, list[Any]] = {
    "attempt": [0, 1, 1, 2],
    "max_attempts": [1, 2, 2, None],
    "lease_ms": [1_000, 1_500, None],
    "backoff_ms": [0, 1, 1_500, None],
    "retry_after_ms": [0, 0, 1, 2_000, None],
    "attempts": [1, 2, None],
}
BAD_NUMBERS: list[Any] = [-1, 101, 999, 86_400_001, 1.0, "1", True]
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
            if str(command.get("kind")) in CONTROL_ONLY and not self.seldom():
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
            if status in LIVE and self.coin():
                kinds = ["schedule_step", *(kind for kind in STEP_MOVES if fitting(kind, known))]
        (kind,) = self.choices(kinds, [OFTEN.get(kind, 2) for kind in kinds])
        command: dict[str, Any] = {
            "kind": kind,
            "command_id": str(uuid5(UUID(FLOW_ID), f"{len(life.records)}")),
            "flow_id": flow_id,
            "issued_by": STRANGER if self.seldom() else OWNER,
        }
        command |= self.own_fields(kind, at_ms)
        if kind in STEP_MOVES and known and not self.seldom():
            self.aim(command, known)
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

    def aim(self, command: dict[str, Any], known: Known) -> None:
        """Name a step that takes the command, and its attempt and holder."""
        steps = fitting(command["kind"], known)
        if not steps:
            return
        step = self.choice(steps)
        command["run_id"] = step["run_id"]
        if "attempt" in command:
            command["attempt"] = step["execution"]["attempt"]
            if not self.seldom():
                command["issued_by"] = step["child_session_key"] or OWNER

    def own_fields(self, kind: str, at_ms: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name, (_, default) in OWN.get(kind, {}).items():
            if default is not REQUIRED and self.coin():
                continue
            if name == "wait":
                fields[name] = self.wait(at_ms)
            elif name == "status":
                fields[name] = self.choice(["pending", "succeeded", "failed"])
            elif name in NUMBERS:
                fields[name] = self.choice(BAD_NUMBERS if self.seldom() else NUMBERS[name])
            elif name in ("not_before", "timeout_at"):
                fields[name] = self.choice([None, self.time(at_ms), self.time(at_ms)])
            elif name == "retry":
                fields[name] = self.choice([True, False, None])
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
        kind = self.choice(["timer", "external_event", "manual", "steps", "steps", "other", None])
        wait: dict[str, Any] = {"kind": kind}
        if kind == "steps":
            if self.coin():
                wait["run_ids"] = self.choice([["a"], ["b", "a"], ["a", "b"], None, [], ["a", "a"]])
            if self.coin():
                wait["mode"] = self.choice(["all", "all_or_failure", "any", "none", None])
        elif self.seldom():
            wait["prompt"] = self.choice([None, 1, {"a": None}, "x" * 16382, "x" * 16383])
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
        due_ms = at_ms + self.choice(SHIFTS_MS)
        text = written(due_ms)
        if self.seldom():
            return text.lower().replace("z", "9999z")
        if self.seldom():
            return written(due_ms + 19_800_000).replace("Z", "+05:30")
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


def fitting(kind: str, known: Known) -> list[dict[str, Any]]:
    """The managed steps that take a command of this kind."""
    origins = STEP_MOVES[kind][0]
    managed = (step for step in known.steps.values() if step["runtime"] == "managed")
    return [step for step in managed if step["status"] in origins]


class Life:
    """What is sent to one partition, or to all as if they were one, with what the contract makes
    of it."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.records: list[Appended] = []
        self.sent: list[dict[str, Any]] = []
        self.offsets = {"t.commands": 0, "t.control": 0}
        self.at_ms = MORNING

    def go_on(self, seed: int) -> Appended:
        """The next record, with the time at which it is appended."""
        record = Sender(seed).record(self)
        self.records.append(record)
        self.at_ms = record.timestamp
        self.offsets[record.topic] += 1
        self.contract.take(record)
        return record
