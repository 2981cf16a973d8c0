"""A partition's errands against a naive model: whatever comes in between, each wait is ended once,
none early, none forgotten, and what is kept in memory stays within its bound.

Commands are decided by the real handler on a partition in memory; the machine is the broker, the
table and the owner's loop.
"""

import json
import random
from itertools import count
from typing import Any, cast
from uuid import UUID

import pytest

from processor.contract.values import parse_timestamp
from processor.engine import ports
from processor.engine.batch import LoadedState
from processor.engine.ports import Written
from processor.engine.rows import Deadline, FlowRow
from processor.partition.scheduling.scheduler import Scheduler
from processor.partition.scheduling.step_timers import Commands
from processor.telemetry.metrics import Metrics
from processor.testing.memory.record import Appended
from tests.support.builders import NOON, document, timer
from tests.support.checked_deployment import without_a_loop
from tests.support.partition import Partition
from tests.unit.commands import flow_id

NEAR_MAX = 4
AT_ONCE_MAX = 2
UNDECIDED_MAX = 3
STEP_MAX = 2
TERMINAL = {"cancelled", "finished", "failed"}
RETAIN_MS = 20_000
FLOWS = 12
AHEAD_MS = (1, 1_000, 1_000, 31_000)
OTHER_KINDS = ("resume", "finish", "cancel", "request_cancel", "start_running")
PAST_MS = (0, 0, 1, 1_000, 1_000, 31_000)
ROUNDS = 150


def over_ms(flow: Any) -> int | None:
    """When a flow's wait is over, read off its document; None: not by itself."""
    if flow is None or flow["status"] != "waiting":
        return None
    if flow["cancel_requested"]:
        return 0
    until = flow["wait_json"].get("at") or flow["wait_json"].get("timeout_at")
    return until and parse_timestamp(until)


class Table:
    """As the local table finds flows by time; the rest of a table is not asked for."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition

    def flow(self, flow_id: str) -> Any:
        return self._partition.flow(flow_id)

    def waits(self) -> list[Deadline]:
        found = ((over_ms(self.flow(one)), one) for one in self._partition.flows)
        return sorted(Deadline(at_ms, one) for at_ms, one in found if at_ms is not None)

    def ends(self) -> list[Deadline]:
        flows = map(self.flow, self._partition.flows)
        return sorted(
            Deadline(parse_timestamp(flow["updated_at"]), flow["id"])
            for flow in flows
            if flow["status"] in TERMINAL
        )

    async def flows(self, ids: list[str]) -> dict[str, FlowRow]:
        known = self._partition.flows
        return {one: known[one] for one in ids if one in known}

    async def armed(self) -> int:
        return len(self.waits())

    async def count_live(self) -> tuple[int, int]:
        return 0, 0

    async def due(self, after: Deadline | None, until_ms: int, limit: int) -> list[Deadline]:
        return [one for one in self.waits() if (after or ()) < one and one.at_ms <= until_ms][
            :limit
        ]

    async def ended(self, after: Deadline | None, before_ms: int, limit: int) -> list[Deadline]:
        return [one for one in self.ends() if (after or ()) < one and one.at_ms < before_ms][:limit]


class Sequence:
    """Everybody's part; what is done next is by chance."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.partition = Partition()
        self.table = Table(self.partition)
        self.table_port = cast(ports.Table, self.table)
        self.undecided: list[Appended] = []
        self.ends = {"commands": 0, "control": 0}
        self.broker_ms = NOON
        self.stepped_back = False
        self.at_s = 1_000.0
        self.commands = Commands(decided=lambda: 0, pending=lambda: False, end=self.commands_end)
        numbers = count(1)
        self.metrics = Metrics()
        self.scheduler = Scheduler(
            0,
            commands_topic="taskflow.commands",
            retain_ms=RETAIN_MS,
            metrics=self.metrics,
            new_id=lambda: str(UUID(int=next(numbers))),
        )
        without_a_loop(self.scheduler.begin(self.table_port, 0))

    # What others do

    def append(self, topic: str, key: bytes, value: bytes, headers: Any = ()) -> None:
        record = Appended(
            f"taskflow.{topic}", 0, self.ends[topic], self.broker_ms, key, value, tuple(headers)
        )
        self.ends[topic] += 1
        self.undecided.append(record)

    def send(self, topic: str, kind: str, number: int, **fields: Any) -> None:
        one = flow_id(number)
        body = document(kind, flow_id=one, **fields)
        self.append(topic, one.encode(), json.dumps(body).encode())

    def create(self, n: int) -> None:
        about = {"controller_id": "c", "goal": "g", "requester_origin": "r"}
        self.send("commands", "create_mirrored", n, **about)

    def flows_wait(self, some: list[int], ahead_ms: int) -> None:
        for n in some:
            self.create(n)
            self.send("commands", "set_waiting", n, wait=timer(self.broker_ms + ahead_ms))

    def they_wait_for_something_else(self, some: list[int], ahead_ms: int) -> None:
        for n in some:
            self.send("commands", "resume", n)
            self.send("commands", "set_waiting", n, wait=timer(self.broker_ms + ahead_ms))

    def it_waits_without_a_time(self, n: int) -> None:
        self.send("commands", "resume", n)
        self.send("commands", "set_waiting", n, wait={"kind": "manual"})

    def it_is_pruned_and_lives_again(self, n: int) -> None:
        self.send("control", "prune", n, issued_by="operator:ana")
        self.create(n)
        self.send("commands", "cancel", n)

    def something_happens(self, n: int, kind: str) -> None:
        self.send("commands", kind, n)

    def steps_are_observed(self, some: list[int]) -> None:
        step = {"run_id": "r", "task": "t", "status": "running"}
        for n in some:
            self.send("commands", "record_step_observation", n, **step)

    def some_end(self, some: list[int]) -> None:
        for n in some:
            self.send("commands", "cancel", n)

    def an_operator_does_it(self, n: int, kind: str) -> None:
        self.send("control", kind, n, issued_by="operator:ana")

    def time_passes(self, ms: int) -> None:
        self.broker_ms += ms
        self.at_s += ms / 1000

    def the_brokers_clock_steps_back(self, ms: int) -> None:
        self.broker_ms -= ms
        self.stepped_back = True

    # What the owner does

    def ours(self, kind: str) -> list[str]:
        """Flows that have a command of ours on `control`, undecided."""
        bodies = (json.loads(record.value or b"") for record in self.undecided)
        return [
            body["flow_id"]
            for body in bodies
            if body["kind"] == kind and body["issued_by"].startswith("taskflow:")
        ]

    async def commands_end(self) -> int:
        raise AssertionError("no lease is due")

    def control_done(self) -> int:
        left = (r.offset for r in self.undecided if r.topic == "taskflow.control")
        return next(left, self.ends["control"])

    def decide(self, count: int) -> bool:
        """One round of the owner's loop; whether anything was done."""
        errands, records = self.scheduler, self.undecided[:count]
        for topic in self.ends:
            if some := [r for r in records if r.topic == f"taskflow.{topic}"]:
                errands.observe(some[-1].timestamp, self.at_s)
        due = without_a_loop(
            errands.due(self.table_port, self.control_done, self.commands, self.at_s)
        )
        if not records and not due:
            if errands.asks_the_time(self.at_s):
                errands.observe(self.broker_ms, self.at_s)
            return False
        before = LoadedState(flows=dict(self.partition.flows))
        batch = self.partition.handle(records)
        assert batch.handled == len(records)
        sent = errands.send(batch, due)
        del self.undecided[:count]
        self.check(sent.records, {one for one, _ in batch.wakes})
        for record in sent.records:
            assert record.key
            assert record.value
            self.append("control", record.key, record.value, record.headers)
        written = Written({}, self.broker_ms, 0.0)
        errands.written(batch, sent, written, before, self.at_s)
        return True

    def check(self, sent: Any, asked_to_cancel: set[str]) -> None:
        """`sent` is what goes out, after a batch that was decided."""
        under_way = {kind: self.ours(kind) for kind in ("wake", "prune")}
        wakes = 0
        for record in sent:
            body = json.loads(record.value)
            one, kind = body["flow_id"], body["kind"]
            flow = self.partition.flow(one)
            if one in asked_to_cancel:
                assert over_ms(flow) == 0
                continue
            wakes += kind == "wake"
            assert one not in under_way[kind], f"a second {kind} is sent"
            under_way[kind].append(one)
            if kind == "wake":
                ends_ms = over_ms(flow)
                assert ends_ms is not None, "it does not wait any more"
                assert self.stepped_back or ends_ms <= self.broker_ms, "it is early"
            else:
                assert flow is not None, "it is gone"
                assert flow["status"] in TERMINAL
                age_ms = self.broker_ms - parse_timestamp(flow["updated_at"])
                assert self.stepped_back or age_ms > RETAIN_MS, "it ended not long ago"
        assert wakes <= AT_ONCE_MAX
        assert len(under_way["prune"]) <= STEP_MAX or not sent

    def another_takes_over(self) -> None:
        without_a_loop(self.scheduler.begin(self.table_port, self.ends["control"]))

    def until_nothing_is_left(self) -> None:
        for _ in range(400):
            if not self.decide(30) and not self.undecided:
                return
        raise AssertionError("the owner comes to no end")

    def memory_is_bounded_and_the_armed_are_counted(self) -> None:
        timers = self.scheduler._timers
        assert len(timers._near) <= NEAR_MAX + len(timers._refusals)
        assert len(timers._queue) <= 2 * NEAR_MAX + len(timers._refusals) + UNDECIDED_MAX
        assert timers.armed == len(self.table.waits())

    # All together

    def a_round(self) -> None:
        chance = self.random
        for _ in range(chance.randrange(4)):
            some = chance.sample(range(FLOWS), chance.choice((1, 2, 8)))
            ahead_ms = chance.choice(AHEAD_MS)
            turn = chance.randrange(20)
            if turn < 6:
                self.flows_wait(some, ahead_ms)
            elif turn < 8:
                self.they_wait_for_something_else(some, ahead_ms)
            elif turn < 12:
                self.steps_are_observed(some)
            elif turn < 13:
                self.some_end(some)
            elif turn < 14:
                self.it_waits_without_a_time(some[0])
            elif turn < 15:
                self.it_is_pruned_and_lives_again(some[0])
            elif turn < 16:
                self.an_operator_does_it(some[0], chance.choice(("wake", "prune")))
            else:
                self.something_happens(some[0], chance.choice(OTHER_KINDS))
        self.time_passes(chance.choice(PAST_MS))
        if chance.random() < 0.05:
            self.the_brokers_clock_steps_back(chance.choice((500, 2_000, 40_000)))
        if chance.random() < 0.03:
            self.another_takes_over()
        for _ in range(chance.randrange(4)):
            self.decide(chance.choice((0, 1, 3, 12, 40)))
            self.memory_is_bounded_and_the_armed_are_counted()

    def come_to_rest(self) -> None:
        """Nobody does anything any more, for an hour."""
        for _ in range(60):
            self.time_passes(61_000)
            self.until_nothing_is_left()
        assert [one for one in self.table.waits() if one.at_ms <= self.broker_ms] == []
        old_ms = self.broker_ms - RETAIN_MS - 130_000
        assert [one for one in self.table.ends() if one.at_ms < old_ms] == []


@pytest.mark.parametrize(
    "seed", [*range(15), *(pytest.param(n, marks=pytest.mark.soak) for n in range(15, 40))]
)
def test_whatever_happens_each_wait_is_ended_once(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.partition.scheduling.timers.NEAR_MAX", NEAR_MAX)
    monkeypatch.setattr("processor.partition.scheduling.timers.AT_ONCE_MAX", AT_ONCE_MAX)
    monkeypatch.setattr("processor.partition.scheduling.timers.UNDECIDED_MAX", UNDECIDED_MAX)
    monkeypatch.setattr("processor.partition.scheduling.retention.STEP_MAX", STEP_MAX)
    sequence = Sequence(seed)

    for _ in range(ROUNDS):
        sequence.a_round()

    sequence.come_to_rest()
