"""Commands as all kinds of clients send them, most of them well meant."""

from random import Random
from typing import Any, Final, NamedTuple
from uuid import UUID

import orjson

from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.ops.verify.contract import home_of
from tests.support.builders import DAY_MS
from tests.support.moments import Fault

OWNERS: Final = ("agent:kate", "agent:joe")
RUBBISH: Final = (
    b"\xff\xfe", b"", None, b"[]", b"{", b'{"kind":"dance"}', b'{"n":NaN}', b'{"schema_version":2}',
    b'{"n":1e999}', b"[" * 70, b'{"a":"\\ud800"}',
)  # fmt: skip
CREATES: Final = ("create_managed", "create_managed", "create_mirrored")
FITTING: Final = {
    None: CREATES,
    "created": ("start_running", "start_running", "update_state", "cancel", "request_cancel"),
    "running": (
        "set_waiting", "set_waiting", "set_waiting", "update_state", "update_state",
        "record_step_observation", "finish", "fail", "request_cancel", "cancel",
    ),
    "waiting": (
        "resume", "resume_external", "wake", "update_state", "fail", "request_cancel",
        "record_step_observation",
    ),
    "ended": ("prune", "prune", "record_step_observation", "update_state", "create_managed"),
}  # fmt: skip
ALL: Final = sorted({kind for kinds in FITTING.values() for kind in kinds})
LEADS_TO: Final = {
    "create_managed": "created", "create_mirrored": "running", "start_running": "running",
    "set_waiting": "waiting", "resume": "running", "resume_external": "running", "wake": "running",
    "finish": "ended", "fail": "ended", "cancel": "ended", "prune": None,
}  # fmt: skip
CONTROL_ONLY: Final = frozenset({"wake", "wake_step", "prune"})
HUGE: Final = b'{"x":"' + b"x" * (512 * 1024) + b'"}'


class Message(NamedTuple):
    """A record for the topic `name`, and what is worth counting about it."""

    name: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    fault: Fault | None


class Traffic:
    """The clients of one history: a few flows, and a guess at what became of each."""

    def __init__(self, rng: Random, topics: Topics, partitions: int) -> None:
        self._rng = rng
        self._partitions = partitions
        self._flows = [self._id() for _ in range(rng.randint(1, 6))]
        self._home = {
            flow: home_of(flow.encode(), partitions) if partitions > 1 else 0
            for flow in self._flows
        }
        self._guess: dict[str, str | None] = {}
        self._sent: list[Message] = []
        self._trouble = rng.choice((0.0, 0.1, 0.3))

    def _id(self) -> str:
        return str(UUID(int=self._rng.getrandbits(128), version=4))

    def next(self, now_ms: int) -> Message:
        """What is sent next, at `now_ms` by the broker's clock."""
        rng = self._rng
        if rng.random() < self._trouble:
            message = self._troublesome(now_ms)
        else:
            message = self._command(now_ms)
        self._sent.append(message)
        return message

    def _troublesome(self, now_ms: int) -> Message:
        rng, chance = self._rng, self._rng.random()
        if chance < 0.45 and self._sent:
            again = rng.choice(self._sent)._replace(fault=Fault.RESEND)
            if chance < 0.05 and again.value is not None:
                # The same id with another command.
                other = again.value.replace(b'"issued_by":"agent', b'"issued_by":"agentx')
                again = again._replace(value=other)
            return again
        if chance < 0.6:
            flow = rng.choice(self._flows)
            value = HUGE if rng.random() < 0.02 else rng.choice(RUBBISH)
            return Message("commands", self._home[flow], flow.encode(), value, (), Fault.RUBBISH)
        command = self._command(now_ms)
        if chance < 0.75 and self._partitions > 1:
            wrong = (command.partition + 1) % self._partitions
            return command._replace(partition=wrong, fault=Fault.WRONG_PARTITION)
        if chance < 0.8:
            return command._replace(key=rng.choice((None, b"", b"k" * 65)), fault=Fault.RUBBISH)
        return command

    def _command(self, now_ms: int) -> Message:
        rng = self._rng
        flow = rng.choice(self._flows)
        kind = self._kind(flow)
        control_only = kind in CONTROL_ONLY
        name = "control" if control_only or rng.random() < 0.15 else "commands"
        if control_only and rng.random() < 0.05:
            name = "commands"
        command: dict[str, Any] = {
            "kind": kind,
            "command_id": self._id(),
            "flow_id": flow,
            "issued_by": rng.choice(OWNERS) if rng.random() < 0.05 else OWNERS[0],
        }
        command.update(self._fields(kind, now_ms))
        headers: tuple[tuple[str, bytes], ...] = ()
        if rng.random() < 0.3:
            extra = rng.random()
            if extra < 0.3:
                command["dry_run"] = True
            elif extra < 0.5:
                command["expected_revision"] = rng.randrange(5)
            elif extra < 0.7:
                command["expires_at"] = instant(now_ms + rng.choice((-1, 0, 50, 5_000)))
            else:
                headers = (("traceparent", b"00-%032x-01" % rng.getrandbits(64)),)
        if not command.get("dry_run") and kind in LEADS_TO:
            self._guess[flow] = LEADS_TO[kind]
        value = orjson.dumps(command)
        return Message(name, self._home[flow], flow.encode(), value, headers, None)

    def _kind(self, flow: str) -> str:
        rng, guess = self._rng, self._guess.get(flow)
        return rng.choice(ALL) if rng.random() < 0.1 else rng.choice(FITTING[guess])

    def _fields(self, kind: str, now_ms: int) -> dict[str, Any]:
        rng = self._rng
        match kind:
            case "create_managed" | "create_mirrored":
                return {
                    "controller_id": "c",
                    "goal": "Endure",
                    "requester_origin": "simulation",
                    "state_json": {"é": rng.randrange(9)},
                }
            case "set_waiting":
                return {"wait": self._wait(now_ms)}
            case "resume":
                return {"state_patch": {"resumed": rng.randrange(9)}} if rng.random() < 0.5 else {}
            case "resume_external":
                ids = {"topic": "t", "correlation_id": rng.choice("ab")}
                return {**ids, "payload": [1, 2.5]} if rng.random() < 0.5 else ids
            case "finish":
                return {"final_state": {"end": True}} if rng.random() < 0.5 else {}
            case "fail":
                return {"reason": "why not"}
            case "update_state":
                patch = rng.choice(({"n": rng.randrange(99)}, {}, 7, None, "text"))
                return {"patch": patch, "next_step": rng.choice((None, "s1", "s2"))}
            case "record_step_observation":
                about = {"run_id": rng.choice("rs"), "task": "t", "status": "running"}
                return {**about, "result_json": {"n": 1}} if rng.random() < 0.5 else about
        return {}

    def _wait(self, now_ms: int) -> dict[str, Any]:
        rng = self._rng
        at = instant(now_ms + rng.choice((0, 20, 300, 2_000, 3_600_000, 29 * DAY_MS, 31 * DAY_MS)))
        match rng.randrange(4):
            case 0 | 1:
                return {"kind": "timer", "at": at}
            case 2:
                wait: dict[str, Any] = {
                    "kind": "external_event",
                    "topic": "t",
                    "correlation_id": rng.choice("ab"),
                }
            case _:
                wait = {"kind": "manual"}
        return {**wait, "timeout_at": at} if rng.random() < 0.6 else wait
