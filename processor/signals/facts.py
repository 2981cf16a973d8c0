"""The records of `signals.log`: what the matcher decides on, in the order of one partition."""

from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import orjson


class WaitKey(NamedTuple):
    """What a wait for an external event and a signal have in common."""

    topic: str
    correlation_id: str

    def encoded(self) -> bytes:
        """The key of a record on `signals.log`, by whose hash its partition is chosen."""
        return orjson.dumps([*self])


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """A signal came. `at_ms`: when the broker appended it to `signals`, at this place."""

    id: str
    at_ms: int
    partition: int
    offset: int
    payload: Any = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class WaitOpened:
    """A flow began to wait. `wait`: the id of its `waiting` event, which `revision` is after;
    `at_ms`: when the broker appended that event to `audit`."""

    flow_id: str
    wait: int
    revision: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class WaitMoved:
    """The flow's revision has grown while it waits."""

    flow_id: str
    wait: int
    revision: int


@dataclass(frozen=True, slots=True)
class WaitClosed:
    """The wait has ended, by this command; `revision` is after it."""

    flow_id: str
    wait: int
    revision: int
    command_id: str


@dataclass(frozen=True, slots=True)
class AuditRead:
    """All events that were appended to this partition of `audit` before `at_ms` are read, and what
    they say of waits stands before this record."""

    partition: int
    at_ms: int


SignalFact = SignalReceived | WaitOpened | WaitMoved | WaitClosed | AuditRead

_NAMES: Final[dict[type[SignalFact], str]] = {
    SignalReceived: "received",
    WaitOpened: "opened",
    WaitMoved: "moved",
    WaitClosed: "closed",
    AuditRead: "audit_read",
}
_KINDS: Final = {name: kind for kind, name in _NAMES.items()}


def encode_fact(fact: SignalFact) -> bytes:
    """The value of its record."""
    fields = {name: value for name, value in asdict(fact).items() if value is not None}
    return orjson.dumps({"fact": _NAMES[type(fact)], **fields})


def decode_fact(key: bytes | None, value: bytes | None) -> tuple[WaitKey | None, SignalFact]:
    """Read a record of `signals.log`; the key is None where the fact is about no wait."""
    fields = orjson.loads(value or b"")
    kind = _KINDS[fields.pop("fact")]
    return WaitKey(*orjson.loads(key)) if key else None, kind(**fields)
