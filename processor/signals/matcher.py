"""Match signals with waits: a pure state machine of one partition of `signals.log`.

A signal ends one wait, and a wait is ended by one signal, in the order of the log. A signal is
delivered when the audit shows that its command closed the wait. If anything else closed the wait (a
time-out, a cancel, the owner), the signal is early again.
"""

import heapq
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

import orjson

from processor.contract.signals import UNCLAIMED, UNDELIVERABLE
from processor.contract.values import instant
from processor.signals.facts import (
    AuditRead,
    SignalFact,
    SignalReceived,
    WaitClosed,
    WaitKey,
    WaitMoved,
    WaitOpened,
)

SIGNAL_ENTRY: Final = b"signal/"
WAIT_ENTRY: Final = b"open/"
_NAMESPACE: Final = UUID("5d0b3c0e-8a0e-5c0f-9d3c-3f8f0c9b6a11")


@dataclass(frozen=True, slots=True)
class HeldSignal:
    """A signal that is early, assigned to the wait of `flow_id`, or delivered and kept to recognize
    its id."""

    received: SignalReceived
    flow_id: str | None = None
    delivered: bool = False

    @property
    def id(self) -> str:
        return self.received.id


@dataclass(frozen=True, slots=True)
class OpenWait:
    """A flow's wait; `signal` is the id of the signal that is assigned to it."""

    opened: WaitOpened
    revision: int
    signal: str | None = None


DeliveryKey = tuple[WaitKey, str, int, int]
"""Key, signal, wait and revision, which identify the command."""


class Delivery(NamedTuple):
    """A signal assigned to a wait: a `resume_external` to be sent while the matcher has it."""

    key: WaitKey
    signal: SignalReceived
    flow_id: str
    wait: int
    revision: int
    since_ms: int
    """Since when signal and wait are both there, by the broker's time."""

    @property
    def identity(self) -> DeliveryKey:
        return self.key, self.signal.id, self.wait, self.revision

    @property
    def command_id(self) -> str:
        """The same for the same signal, wait and revision."""
        return command_id(*self.identity)


class UnclaimedSignal(NamedTuple):
    """A signal that becomes a dead letter, with a code and a sentence for people."""

    key: WaitKey
    signal: SignalReceived
    code: str
    message: str


def command_id(key: WaitKey, signal: str, wait: int, revision: int) -> str:
    """The id of the command by which a signal ends a wait at one revision of its flow."""
    return str(uuid5(_NAMESPACE, orjson.dumps([*key, signal, wait, revision]).decode()))


@dataclass(slots=True)
class _Entry:
    """The signals and waits of one key. `early` (signals) and `free` (waits) have no match yet, in
    the order of the log."""

    signals: dict[str, HeldSignal] = field(default_factory=dict)
    waits: dict[str, OpenWait] = field(default_factory=dict)
    early: dict[str, None] = field(default_factory=dict)
    free: dict[str, None] = field(default_factory=dict)


class Matcher:
    """The waits, signals and deliveries of one partition.

    Time is the append time up to which all partitions of `audit` are read. A signal expires only
    once all events before its end are known.
    """

    def __init__(self, audit_partitions: int, ttl_ms: int) -> None:
        self._audit_partitions = audit_partitions
        self._ttl_ms = ttl_ms
        self._entries: dict[WaitKey, _Entry] = {}
        self._ends: list[tuple[int, WaitKey, str]] = []
        """A heap of the times at which signals expire, ms."""
        self._read_to: dict[int, int] = {}
        self._changed: dict[tuple[bytes, WaitKey, str], None] = {}
        self._unclaimed: list[UnclaimedSignal] = []
        self._assigned: dict[tuple[WaitKey, str], None] = {}
        self.early = self.open = 0
        """The number of early signals, and of open waits."""

    # Records of the log

    def apply(self, key: WaitKey | None, fact: SignalFact) -> bool:
        """Apply the next record. False for a signal with a known id, which is dropped."""
        if isinstance(fact, AuditRead):
            if fact.at_ms > self._read_to.get(fact.partition, -1):
                self._read_to[fact.partition] = fact.at_ms
                self._end_signals()
            return True
        assert key is not None, "a fact about a wait has its key"
        entry = self._entries.setdefault(key, _Entry())
        new = True
        match fact:
            case SignalReceived():
                new = self._receive(key, entry, fact)
            case WaitOpened():
                self._open(key, entry, fact)
            case WaitMoved():
                self._move(key, entry, fact)
            case WaitClosed():
                self._close(key, entry, fact)
        self._match(key, entry)
        self._end_signals()
        self._tidy(key)
        return new

    def refuse(self, delivery: Delivery, why: str) -> None:
        """Make a signal that its flow refuses for good a dead letter; the wait goes on."""
        key = delivery.key
        entry = self._entries.get(key)
        wait = None if entry is None else entry.waits.get(delivery.flow_id)
        if (
            entry is None
            or wait is None
            or (wait.opened.wait, wait.signal) != (delivery.wait, delivery.signal.id)
        ):
            return
        self._unclaimed.append(UnclaimedSignal(key, delivery.signal, UNDELIVERABLE, why))
        self._forget(key, entry, delivery.signal.id)
        self._set_wait(key, entry, replace(wait, signal=None))
        entry.free = {delivery.flow_id: None, **entry.free}
        self._match(key, entry)
        self._tidy(key)

    def deliveries(self) -> Iterator[Delivery]:
        """All deliveries whose command the audit does not show yet."""
        for key, signal in self._assigned:
            entry = self._entries[key]
            held = entry.signals[signal]
            assert held.flow_id is not None, "an assigned signal names its flow"
            wait = entry.waits[held.flow_id]
            since_ms = max(held.received.at_ms, wait.opened.at_ms)
            yield Delivery(
                *(key, held.received, held.flow_id),
                *(wait.opened.wait, wait.revision, since_ms),
            )

    # State

    def take_changes(self) -> tuple[dict[bytes, bytes | None], list[UnclaimedSignal]]:
        """The entries changed since the last call (None: removed), and the new dead letters."""
        changed, self._changed = self._changed, {}
        unclaimed, self._unclaimed = self._unclaimed, []
        return {
            prefix + orjson.dumps([*key, name]): self._value_of(prefix, key, name)
            for prefix, key, name in changed
        }, unclaimed

    def load(self, entry_key: bytes, value: bytes) -> None:
        """Load an entry of `take_changes`. Call `loaded` after the last one."""
        prefix = SIGNAL_ENTRY if entry_key.startswith(SIGNAL_ENTRY) else WAIT_ENTRY
        topic, correlation_id, name = orjson.loads(entry_key.removeprefix(prefix))
        entry = self._entries.setdefault(WaitKey(topic, correlation_id), _Entry())
        fields = orjson.loads(value)
        if prefix == SIGNAL_ENTRY:
            entry.signals[name] = HeldSignal(SignalReceived(**fields.pop("received")), **fields)
        else:
            entry.waits[name] = OpenWait(WaitOpened(**fields.pop("opened")), **fields)

    def loaded(self) -> None:
        """Derive the other fields from the loaded entries, in the order of their times."""
        for key, entry in self._entries.items():
            for signal in sorted(entry.signals.values(), key=lambda one: one.received.at_ms):
                self._note_end(key, signal.received)
                if signal.flow_id is None and not signal.delivered:
                    entry.early[signal.id] = None
                    self.early += 1
                elif not signal.delivered:
                    self._assigned[key, signal.id] = None
            for wait in sorted(entry.waits.values(), key=lambda one: one.opened.at_ms):
                self.open += 1
                if wait.signal is None:
                    entry.free[wait.opened.flow_id] = None

    def _value_of(self, prefix: bytes, key: WaitKey, name: str) -> bytes | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        kept: Any = (entry.signals if prefix == SIGNAL_ENTRY else entry.waits).get(name)
        return None if kept is None else orjson.dumps(asdict(kept))

    # Steps

    def _receive(self, key: WaitKey, entry: _Entry, received: SignalReceived) -> bool:
        if received.id in entry.signals:
            return False
        self._set_signal(key, entry, HeldSignal(received))
        self._note_end(key, received)
        entry.early[received.id] = None
        self.early += 1
        return True

    def _open(self, key: WaitKey, entry: _Entry, opened: WaitOpened) -> None:
        if opened.flow_id in entry.waits:
            return
        self._set_wait(key, entry, OpenWait(opened, opened.revision))
        entry.free[opened.flow_id] = None
        self.open += 1

    def _move(self, key: WaitKey, entry: _Entry, moved: WaitMoved) -> None:
        wait = entry.waits.get(moved.flow_id)
        if wait is not None and wait.opened.wait == moved.wait:
            self._set_wait(key, entry, replace(wait, revision=moved.revision))

    def _close(self, key: WaitKey, entry: _Entry, closed: WaitClosed) -> None:
        wait = entry.waits.get(closed.flow_id)
        if wait is None or wait.opened.wait != closed.wait:
            return
        del entry.waits[closed.flow_id]
        entry.free.pop(closed.flow_id, None)
        self.open -= 1
        self._changed[WAIT_ENTRY, key, closed.flow_id] = None
        if wait.signal is None:
            return
        held = entry.signals[wait.signal]
        del self._assigned[key, held.id]
        ours = command_id(key, held.id, closed.wait, closed.revision - 1)
        if closed.command_id == ours:
            received = replace(held.received, payload=None, traceparent=None)
            self._set_signal(key, entry, HeldSignal(received, delivered=True))
        else:
            self._set_signal(key, entry, HeldSignal(held.received))
            entry.early = {held.id: None, **entry.early}
            self.early += 1
        self._note_end(key, held.received)

    def _match(self, key: WaitKey, entry: _Entry) -> None:
        while entry.free and entry.early:
            pair = next(
                (
                    (flow_id, signal)
                    for flow_id in entry.free
                    for signal in entry.early
                    if entry.waits[flow_id].opened.at_ms < self._end_of(entry.signals[signal])
                ),
                None,
            )
            if pair is None:
                return
            flow_id, signal = pair
            del entry.free[flow_id], entry.early[signal]
            self.early -= 1
            self._set_signal(key, entry, replace(entry.signals[signal], flow_id=flow_id))
            self._set_wait(key, entry, replace(entry.waits[flow_id], signal=signal))
            self._assigned[key, signal] = None

    def _end_signals(self) -> None:
        """Make expired early signals dead letters, and drop expired delivered ones."""
        if len(self._read_to) < self._audit_partitions:
            return
        now_ms = min(self._read_to.values())
        while self._ends and self._ends[0][0] <= now_ms:
            end_ms, key, name = heapq.heappop(self._ends)
            entry = self._entries.get(key)
            held = None if entry is None else entry.signals.get(name)
            if entry is None or held is None or self._end_of(held) != end_ms:
                continue
            if held.flow_id is not None:
                continue  # checked again when its wait is closed
            if not held.delivered:
                self._unclaimed.append(
                    UnclaimedSignal(
                        key,
                        held.received,
                        UNCLAIMED,
                        f"No flow waited for it from {instant(held.received.at_ms)} "
                        f"to {instant(end_ms)}.",
                    )
                )
                del entry.early[name]
                self.early -= 1
            self._forget(key, entry, name)
            self._tidy(key)

    def _forget(self, key: WaitKey, entry: _Entry, name: str) -> None:
        del entry.signals[name]
        self._assigned.pop((key, name), None)
        self._changed[SIGNAL_ENTRY, key, name] = None

    def _set_signal(self, key: WaitKey, entry: _Entry, held: HeldSignal) -> None:
        entry.signals[held.id] = held
        self._changed[SIGNAL_ENTRY, key, held.id] = None

    def _set_wait(self, key: WaitKey, entry: _Entry, wait: OpenWait) -> None:
        entry.waits[wait.opened.flow_id] = wait
        self._changed[WAIT_ENTRY, key, wait.opened.flow_id] = None

    def _note_end(self, key: WaitKey, received: SignalReceived) -> None:
        heapq.heappush(self._ends, (received.at_ms + self._ttl_ms, key, received.id))

    def _end_of(self, held: HeldSignal) -> int:
        return held.received.at_ms + self._ttl_ms

    def _tidy(self, key: WaitKey) -> None:
        entry = self._entries.get(key)
        if entry is not None and not entry.signals and not entry.waits:
            del self._entries[key]
