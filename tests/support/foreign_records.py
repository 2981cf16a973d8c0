"""Records as any sender may write them: headers that are named like the processor's own, keys and
values of any bytes. Each record is drawn by a number: the same one gives the same record."""

from collections.abc import Iterator
from random import Random
from typing import Any, NamedTuple
from uuid import UUID, uuid5

import orjson

from processor.contract import dead_letters
from processor.contract.events import CHAIN_HEADER, TRACEPARENT_HEADER
from processor.contract.headers import MOVED_FROM, PROGRESS
from processor.ops.replay.selection import REPLAY_HEADER
from tests.support.builders import FLOW_ID, MORNING, OWNER, TIMER
from tests.support.recorded_deployment import Recorded

FLOW_IDS = [str(uuid5(UUID(FLOW_ID), f"flow {n}")) for n in range(4)]
OWN_NAMES = (
    *(dead_letters.CODE, dead_letters.MESSAGE, dead_letters.SOURCE_TOPIC),
    *(dead_letters.SOURCE_PARTITION, dead_letters.SOURCE_OFFSET, dead_letters.SOURCE_TIMESTAMP),
    *(dead_letters.TRUNCATED, dead_letters.DIGEST),
    *(dead_letters.FORWARDED_FROM, dead_letters.REDRIVEN_FROM),
    *(CHAIN_HEADER, TRACEPARENT_HEADER, MOVED_FROM, PROGRESS, REPLAY_HEADER),
)
NUMBERS = (
    *("0", "7", "-1", "+1", " 1", "1_0", "007", "1.5", "1e3", "0x1f", ""),
    *(str(2**31), str(2**53), str(2**63 - 1), str(2**63), "9" * 20, "9" * 5_000),
    *("١٢", "१२", "１２", "²", "Ⅷ"),  # digits to Python, and none of the processor's
)
TOPICS = ("taskflow.commands", "taskflow.control", "taskflow.deadletters", "", "/", "a/b", "\x9b")


class Foreign(NamedTuple):
    """A record to be appended to the topic `name`."""

    name: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


TEXTS = (
    *("\x1b[31m", "\x9b31m", "\u202e", "ü", "2026-06-01T00:00:00Z", "9999-12-31T23:59:59-01:00"),
)
VALUES = (
    *(None, b"", b"\xff", b"\xd9", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01", b"x" * 5_000),
)
RAW = (
    *(None, b"", b"{bad", b"[]", b"null", b"\xff", b"\xef\xbb\xbf{}", b"{}{}", b'{"a":NaN}'),
    *(b'{"a":1e400}', b'{"a":' + b"9" * 5_000 + b"}", b'{"a":"\\ud800"}', b'{"\\udc00":1}'),
    *(b"[" * 200_000, b'{"a":' * 70 + b"1" + b"}" * 70, b'{"a":' * 300 + b"1" + b"}" * 300),
    *(b'{"kind":"create"}', b'{"kind":[]}', b'{"kind":"create_managed","flow_id":"order-17"}'),
    *(b'{"schema_version":2}', b'{"kind":"cancel","\\u202e":1}', b" " * (512 * 1024 + 1)),
)
KINDS = (
    *("create_managed", "create_mirrored", "start_running", "set_waiting", "wake"),
    *("update_state", "record_step_observation", "request_cancel", "cancel", "prune"),
    *("schedule_step", "start_step", "fail_step"),
)


class ForeignSender(Random):
    """Draws what a sender may write."""

    def foreign(self) -> Foreign:
        """A record: a command more often than not, with headers of any kind."""
        key, value = self._command() if self.random() < 0.6 else (self._key(), self._value())
        name = self.choice(("commands", "commands", "control"))
        return Foreign(name, self.randrange(2), key, value, tuple(self._headers()))

    def _headers(self) -> Iterator[tuple[str, bytes | None]]:
        for _ in range(self.choice((0, 0, 1, 2, 5))):
            yield self._name(), self._header_value()
        if self.random() < 0.3:  # all that a dead letter adds, in its order
            for name in OWN_NAMES[: self.choice((6, 8))]:
                yield name, self._header_value()
        for _ in range(self.choice((0, 0, 0, 1, 2))):
            yield self.choice(OWN_NAMES), self._header_value()

        if self.random() < 0.15:  # that it is a copy of a record that there may be
            topic = self.choice(TOPICS[:2])
            origin = f"{topic}/{self.randrange(2)}/{self.randrange(12)}"
            yield dead_letters.FORWARDED_FROM, origin.encode()

    def _name(self) -> str:
        return self.choice((*OWN_NAMES, "", "mine", "\x9b", "ü" * 3))

    def _header_value(self) -> bytes | None:
        match self.randrange(5):
            case 0:
                return self.choice(VALUES)
            case 1:
                return self.randbytes(self.randrange(6))
            case 2:
                return self.choice(TEXTS).encode()
            case 3:
                return self.choice(NUMBERS).encode()
        parts = (self.choice(TOPICS), self.choice(NUMBERS), self.choice(NUMBERS))
        return "/".join(parts).encode()

    def _key(self) -> bytes | None:
        if self.random() < 0.5:
            return self.choice(FLOW_IDS).encode()
        return self.choice((None, b"", b"k" * 65, b"\xff", "\u202e".encode(), self.randbytes(3)))

    def _value(self) -> bytes | None:
        return self.choice((*RAW, self.randbytes(8), self._command()[1]))

    def _command(self) -> tuple[bytes, bytes]:
        """Key and value of a command."""
        flow_id, kind = self.choice(FLOW_IDS), self.choice(KINDS)
        command = {
            "kind": kind,
            "command_id": str(UUID(int=self.randrange(50))),
            "flow_id": flow_id,
            "issued_by": self.choice((OWNER, OWNER, TIMER)),
            **_own_fields(kind),
        }
        if self.random() < 0.1:
            command["dry_run"] = self.choice((True, None))
        return flow_id.encode(), orjson.dumps(command)


def _own_fields(kind: str) -> dict[str, Any]:
    match kind:
        case "create_managed" | "create_mirrored":
            return {"controller_id": "c", "goal": "\x9b\u202e", "requester_origin": "r"}
        case "set_waiting":
            return {"wait": {"kind": "manual"}}
        case "update_state":
            return {"patch": {"\x1b[2J": "\x85"}}
        case "record_step_observation":
            return {"run_id": "\u061c", "task": "t", "status": "running"}
        case "schedule_step":
            return {"run_id": "\u202e", "task": "\x9b", "input_json": {"\x1b": None}}
        case "start_step":
            return {"run_id": "\u202e"}
        case "fail_step":
            return {"run_id": "\u202e", "attempt": 1, "reason": "\x85"}
    return {}


def recorded(numbers: list[int]) -> Recorded:
    """What a deployment of two partitions leaves of them, each decided by itself."""
    made = Recorded(partitions=2, now=MORNING)
    for number in numbers:
        one = ForeignSender(number).foreign()
        made.now += 1_000
        record = made.append(one.name, one.partition, one.key, one.value, one.headers)
        written = made.decide(one.partition, [record])
        for flow_id, _ in written.wakes:
            body = {"kind": "wake", "command_id": str(uuid5(UUID(flow_id), str(made.now)))}
            made.send(("control", {**body, "flow_id": flow_id, "issued_by": TIMER}))
    made.keep_tables()
    return made
