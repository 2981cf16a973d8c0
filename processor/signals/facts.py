"""Facts about signals and waits: the records of `signals.log`, which the matcher folds in order."""

from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import orjson


class WaitKey(NamedTuple):
    """Topic and correlation id, which a signal and a wait for an external event share."""

    topic: str
    correlation_id: str

    def encoded(self) -> bytes:
        """The key of a record on `signals.log`; its hash chooses the partition."""
        return orjson.dumps([*self])


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """A signal arrived. `at_ms`: when the broker appended it to `signals`, at this offset."""

    id: str
    at_ms: int
    partition: int
    offset: int
    payload: Any = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class WaitOpened:
    """A flow began to wait. `wait`: the id of its `waiting` event; `revision`: of the flow after
    it; `at_ms`: when the broker appended the event to `audit`."""

    flow_id: str
    wait: int
    revision: int
    at_ms: int


@dataclass(frozen=True, slots=True)
class WaitMoved:
    """The flow's revision has changed while it waits."""

    flow_id: str
    wait: int
    revision: int


@dataclass(frozen=True, slots=True)
class WaitClosed:
    """The command `command_id` ended the wait; `revision` is the flow's after it."""

    flow_id: str
    wait: int
    revision: int
    command_id: str


@dataclass(frozen=True, slots=True)
class AuditRead:
    """All events appended to this partition of `audit` before `at_ms` are read, and their facts
    precede this record."""

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
    """The value of the fact's record."""
    fields = {name: value for name, value in asdict(fact).items() if value is not None}
    return orjson.dumps({"fact": _NAMES[type(fact)], **fields})


def decode_fact(key: bytes | None, value: bytes | None) -> tuple[WaitKey | None, SignalFact]:
    """Read a record of `signals.log`; the key is None for a fact that is not about a wait."""
    fields = orjson.loads(value or b"")
    kind = _KINDS[fields.pop("fact")]
    return WaitKey(*orjson.loads(key)) if key else None, kind(**fields)
