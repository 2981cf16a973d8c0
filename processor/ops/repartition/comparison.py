"""Compare both sides of a repartition: flows, steps, histories and outcomes."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import orjson

from processor.contract.headers import MOVED_FROM
from processor.contract.outcomes import Verdict
from processor.contract.state import CURSOR_PREFIX
from processor.contract.values import parse_timestamp
from processor.engine.codec import canonical
from processor.engine.partitioner import partition_of
from processor.ops.verify.ports import LogRecord

_MOVED = ("id", "source")
"""What an event has another of on the other side."""


class Counts(NamedTuple):
    flows: int
    steps: int
    events: int
    outcomes: int


class ComparedSide:
    """What one side holds, as 16 bytes for each flow, step and history.

    `copy`: the new side, on which only what was copied counts: a flow that went on there since is
    compared as far as it was copied.
    """

    def __init__(self, partitions: int, *, copy: bool) -> None:
        self._partitions = partitions
        self._copy = copy
        self.present: dict[str, bytes] = {}
        self.history: dict[str, bytes] = {}
        self.outcomes: dict[bytes, int] = {}
        self._events = 0
        self.went_on: set[str] = set()
        self.misplaced: str | None = None

    @property
    def counts(self) -> Counts:
        steps = sum("/" in key for key in self.present)
        return Counts(len(self.present) - steps, steps, self._events, len(self.outcomes))

    def event(self, record: LogRecord) -> None:
        event = orjson.loads(record.value or b"")
        flow_id = event["flow_id"]
        self._placed(flow_id, record)
        if self._copy and MOVED_FROM not in dict(record.headers):
            self.went_on.add(flow_id)
            return
        self._events += 1
        before = self.history.get(flow_id, b"")
        kept = {name: value for name, value in event.items() if name not in _MOVED}
        self.history[flow_id] = _hash(before + canonical(kept))

    def snapshot(self, record: LogRecord) -> None:
        key = (record.key or b"").decode()
        if key.startswith(CURSOR_PREFIX):
            return
        self._placed(key.partition("/")[0], record)
        if record.value is None:
            self.present.pop(key, None)
            return
        value = orjson.loads(record.value)
        self.present[key] = _hash(canonical(value.get("flow", value.get("step"))))

    def outcome(self, record: LogRecord) -> None:
        """The last outcome of each command, which is what a resend gets."""
        doc = orjson.loads(record.value or b"")
        if doc["verdict"] in (Verdict.ACCEPTED, Verdict.REJECTED) and not doc["dry_run"]:
            names = ("flow_id", "command_id", "verdict", "code", "revision", "command_digest", "at")
            key = _hash(canonical({name: doc[name] for name in names}))
            self.outcomes[key] = parse_timestamp(doc["at"])

    def forget(self, before_ms: int) -> None:
        """Outcomes of what was appended earlier do not count."""
        self.outcomes = {key: at for key, at in self.outcomes.items() if at >= before_ms}

    def newest_ms(self) -> int:
        return max(self.outcomes.values(), default=0)

    def differences(self, other: "ComparedSide") -> Iterator[str]:
        """From the old side to the new one, a sentence each."""
        if other.misplaced is not None:
            yield other.misplaced
        for flow_id in self.history.keys() | other.history.keys():
            if self.history.get(flow_id) != other.history.get(flow_id):
                yield f"The history of flow {flow_id} is not the same."
        for key in self.present.keys() | other.present.keys():
            went_on = key.partition("/")[0] in other.went_on
            if not went_on and self.present.get(key) != other.present.get(key):
                yield f"{'Step' if '/' in key else 'Flow'} {key} is not the same."
        if missing := len(self.outcomes.keys() - other.outcomes.keys()):
            yield f"{missing} outcomes that a resend would get are missing."

    def _placed(self, flow_id: str, record: LogRecord) -> None:
        home = partition_of(flow_id.encode(), self._partitions)
        if record.partition != home:
            self.misplaced = f"Flow {flow_id} lies on partition {record.partition}, not {home}."


def _hash(raw: bytes) -> bytes:
    return blake2b(raw, digest_size=16).digest()
