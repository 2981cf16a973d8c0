"""Signals and waits in any order, through the audit, with restarts anywhere.

A model of flows writes audit events; what the folds make of them goes through logs in memory. Facts
of different partitions of `audit`, and signals, meet in any order that keeps each partition's own.
"""

import random
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from processor.signals.facts import (
    AuditRead,
    SignalFact,
    SignalReceived,
    WaitKey,
    decode_fact,
    encode_fact,
)
from processor.signals.matcher import Delivery, Matcher, UnclaimedSignal
from processor.signals.wait_index import WaitIndex

AUDIT_PARTITIONS = 2
TTL_MS = 100_000
"""Longer than what is drawn takes."""
SHORT_TTL_MS = 150
KEYS = [WaitKey("paid", "a"), WaitKey("paid", "b"), WaitKey("sent", "a")]


@dataclass
class ModelFlow:
    """What the processor knows of a flow."""

    id: str
    partition: int
    revision: int = 0
    key: WaitKey | None = None
    dead: bool = False


@dataclass
class World:
    """Flows, the audit of each partition, the log, and the service that may be restarted."""

    draw: random.Random
    ttl_ms: int = TTL_MS
    now_ms: int = 1
    flows: list[ModelFlow] = field(default_factory=list)
    audits: list[list[tuple[dict[str, Any], int]]] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    log: list[tuple[bytes | None, bytes]] = field(default_factory=list)
    folded: int = 0
    sent: dict[str, Delivery] = field(default_factory=dict)
    ended_by: dict[tuple[str, int], str] = field(default_factory=dict)
    """The signal that ended a wait, by flow and revision after it."""
    times_delivered: dict[tuple[WaitKey, str], int] = field(default_factory=dict)
    dead_letters: list[UnclaimedSignal] = field(default_factory=list)
    signals: dict[tuple[WaitKey, str], int] = field(default_factory=dict)
    decided: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.audits = [[] for _ in range(AUDIT_PARTITIONS)]
        self.read = [0] * AUDIT_PARTITIONS
        self.flows = [
            ModelFlow(str(UUID(int=n)), n % AUDIT_PARTITIONS, revision=1) for n in range(6)
        ]
        self.indexes = [WaitIndex() for _ in range(AUDIT_PARTITIONS)]
        self.matcher = Matcher(AUDIT_PARTITIONS, self.ttl_ms)
        self.matcher_state: dict[bytes, bytes] = {}
        self.index_states: list[dict[bytes, bytes]] = [{} for _ in range(AUDIT_PARTITIONS)]

    # The processor

    def event(self, flow: ModelFlow, kind: str, status: str, command: str, **payload: Any) -> None:
        self.now_ms += self.draw.choice((0, 1, 50))
        audit = self.audits[flow.partition]
        event = {
            **{"id": flow.partition * 2**40 + len(audit) + 1, "flow_id": flow.id, "kind": kind},
            **{"payload_json": payload, "revision": flow.revision, "status": status},
            "command_id": command,
        }
        audit.append((event, self.now_ms))

    def wait(self, flow: ModelFlow) -> None:
        if flow.key is None:
            flow.key = self.draw.choice(KEYS)
            flow.revision += 1
            wait = {
                **{"kind": "external_event", "topic": flow.key.topic},
                "correlation_id": flow.key.correlation_id,
            }
            self.event(flow, "waiting", "waiting", "set_waiting", wait=wait)

    def update(self, flow: ModelFlow) -> None:
        if flow.key is not None:
            flow.revision += 1
            self.event(flow, "state_updated", "waiting", "update_state")

    def observe_step(self, flow: ModelFlow) -> None:
        self.event(
            flow, "step_observed", "running" if flow.key is None else "waiting", "observe", step={}
        )

    def end_otherwise(self, flow: ModelFlow) -> None:
        if flow.key is not None:
            flow.key = None
            flow.revision += 1
            self.event(flow, "resumed", "running", "wake")

    def decide(self, delivery: Delivery) -> None:
        """As `resume_external` with an expected revision is decided."""
        flow = next(one for one in self.flows if one.id == delivery.flow_id)
        if flow.key != delivery.key or flow.revision != delivery.revision:
            return
        flow.key = None
        flow.revision += 1
        what = (delivery.key, delivery.signal.id)
        self.times_delivered[what] = self.times_delivered.get(what, 0) + 1
        self.ended_by[flow.id, flow.revision] = delivery.signal.id
        self.event(flow, "resumed", "running", delivery.command_id)

    # The service

    def read_audit(self, partition: int, count: int) -> None:
        events = self.audits[partition][self.read[partition] :][:count]
        self.read[partition] += len(events)
        for key, fact in self.indexes[partition].apply(events):
            self.append(key, fact)
        for entry, value in self.indexes[partition].take_changes().items():
            _keep(self.index_states[partition], entry, value)

    def signal(self, key: WaitKey, name: str) -> None:
        self.now_ms += 1
        self.signals.setdefault((key, name), self.now_ms)
        self.append(key, SignalReceived(name, self.now_ms, 0, len(self.signals), {"n": name}))

    def append(self, key: WaitKey | None, fact: SignalFact) -> None:
        self.log.append((None if key is None else key.encoded(), encode_fact(fact)))

    def fold_log(self, count: int) -> None:
        for record in self.log[self.folded :][:count]:
            self.matcher.apply(*decode_fact(*record))
            self.folded += 1
        state, dead = self.matcher.take_changes()
        self.dead_letters += dead
        for entry, value in state.items():
            _keep(self.matcher_state, entry, value)
        for delivery in self.matcher.deliveries():
            self.sent.setdefault(delivery.command_id, delivery)

    def tick(self, partition: int) -> None:
        """All of the partition's audit is read up to now."""
        self.read_audit(partition, len(self.audits[partition]))
        self.append(None, AuditRead(partition, self.now_ms))

    def restart(self) -> None:
        self.matcher = Matcher(AUDIT_PARTITIONS, self.ttl_ms)
        for entry, value in self.matcher_state.items():
            self.matcher.load(entry, value)
        self.matcher.loaded()
        for partition, state in enumerate(self.index_states):
            self.indexes[partition] = WaitIndex()
            for entry, value in state.items():
                self.indexes[partition].load(entry, value)

    def settle(self) -> None:
        """Read, fold and decide until nothing changes any more."""
        while True:
            for partition in range(AUDIT_PARTITIONS):
                self.tick(partition)
            self.fold_log(len(self.log))
            if not (new := self.sent.keys() - self.decided):
                return
            for command in sorted(new):
                self.decided.add(command)
                self.decide(self.sent[command])

    def step(self) -> None:
        flow = self.draw.choice(self.flows)
        match self.draw.randrange(11):
            case 0 | 1 | 2:
                self.wait(flow)
            case 3:
                self.update(flow)
            case 4:
                self.observe_step(flow)
            case 5:
                self.end_otherwise(flow)
            case 6 | 7:
                self.signal(self.draw.choice(KEYS), f"s{self.draw.randrange(12)}")
            case 8:
                self.read_audit(self.draw.randrange(AUDIT_PARTITIONS), self.draw.randrange(1, 4))
                self.fold_log(self.draw.randrange(4))
            case 9:
                if self.sent:
                    # Any that was ever sent, also once more: clients and restarts repeat commands.
                    self.decide(self.sent[self.draw.choice(sorted(self.sent))])
            case _:
                self.draw.choice((self.restart, lambda: self.tick(self.draw.randrange(2))))()


def _keep(state: dict[bytes, bytes], entry: bytes, value: bytes | None) -> None:
    if value is None:
        state.pop(entry, None)
    else:
        state[entry] = value


@given(st.integers(0, 2**32))
def test_each_signal_ends_one_wait_or_becomes_a_dead_letter(seed: int) -> None:
    world = World(random.Random(seed))
    for _ in range(80):
        world.step()
    world.settle()

    assert all(times == 1 for times in world.times_delivered.values())
    dead = [(one.key, one.signal.id) for one in world.dead_letters]
    early = {
        (key, name)
        for key, name in world.signals
        if (key, name) not in world.times_delivered and (key, name) not in dead
    }
    waits_left = {flow.key for flow in world.flows if flow.key is not None}
    assert not {key for key, _ in early} & waits_left, "a wait and a signal of its key are left"
    assert world.matcher.early == len(early)

    world.now_ms += 2 * TTL_MS
    world.settle()
    ended = [(one.key, one.signal.id) for one in world.dead_letters]
    assert early <= set(ended)
    assert world.matcher_state.keys() == {
        entry for entry in world.matcher_state if entry.startswith(b"open/")
    }, "nothing is kept of signals whose time is over"


@given(st.integers(0, 2**32))
def test_a_restart_at_any_moment_changes_nothing(seed: int) -> None:
    once, often = World(random.Random(seed)), World(random.Random(seed))
    for _ in range(60):
        once.step()
        often.step()
        often.restart()
    once.settle()
    often.settle()

    assert once.ended_by == often.ended_by
    assert once.matcher_state == often.matcher_state


@given(st.integers(0, 2**32))
def test_no_signal_is_lost_where_time_runs_out(seed: int) -> None:
    world = World(random.Random(seed), ttl_ms=SHORT_TTL_MS)
    for n in range(80):
        world.step()
        if n % 4 == 0:
            key, name = world.draw.choice(KEYS), f"once-{n}"
            world.signal(key, name)
            world.signal(key, name)
    world.settle()
    world.now_ms += 2 * SHORT_TTL_MS
    world.settle()

    dead = [(one.key, one.signal.id) for one in world.dead_letters]
    for key, name in world.signals:
        if name.startswith("once-"):
            ends = world.times_delivered.get((key, name), 0) + dead.count((key, name))
            assert ends == 1, (key, name)
