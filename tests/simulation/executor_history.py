"""Histories with managed steps: executors among the clients, and what can become of them."""

import asyncio
import traceback
from random import Random
from typing import Any, Final

import orjson

from processor.ops.verify.contract import home_of
from processor.testing.memory.deployment import Deployment
from tests.simulation.executors import Executor, ExecutorGroup
from tests.simulation.faults import Dice
from tests.simulation.history import TOPICS, Parts, Simulation, life_of_tasks
from tests.simulation.step_traffic import StepTraffic
from tests.support.builders import DAY_MS
from tests.support.checked_deployment import items_left
from tests.support.moments import Fault
from tests.support.reference_assertions import read_partition
from tests.support.reference_model import Contract

STEPS_MAX: Final = 5
"""Partitions of `steps`."""
ITEMS_LIVE_MS: Final = 30 * DAY_MS
HORIZON_MS: Final = 30 * DAY_MS
BY_ITS_CLOCK: Final = ("decided_after_lease", "step_overdue")
"""Kinds of violations that append times do not show any more once the broker's clock was set back:
nothing tells what came first, and the newest time lies ahead."""
PAUSES_S: Final = (0.0, 0.1, 0.5, 1.0, 2.0, 4.0, 12.0)
"""Between what happens to executors: within a lease, or longer than most."""


class ExecutorSimulation(Simulation):
    """The history of one seed, with executors. Both kinds of dice are drawn from the seed; this
    history has nothing in common with the one without executors."""

    with_executors = True
    rounds = (4, 24)

    def __init__(self, seed: int, parts: Parts | None = None) -> None:
        super().__init__(seed, parts)
        self._dice_of_steps = rng = Random(f"{seed}/executors")
        self._rate = rng.choice((0.02, 0.1, 0.3))
        self._executors: list[Executor | None] = [None] * rng.choice((1, 2, 2, 3))
        self._group = ExecutorGroup(self.kafka)
        self._begun = 0
        self.kafka.steps_partitions = self.partitions + rng.choice((0, 0, 1))

    def _new_dice(self) -> Dice:
        return Dice(self.rng, executors=True)

    def _new_traffic(self) -> StepTraffic:
        return StepTraffic(self.rng, TOPICS, self.partitions)

    # Executors

    def _start(self, index: int) -> None:
        self._begun += 1
        name = f"executor:{index}:{self._begun}"
        self.note(name, "starts")
        rng = Random(f"{self.seed}/{name}")
        self._executors[index] = Executor(name, self._group, rng, self.count, life_of_tasks)

    async def _meanwhile(self) -> None:
        rng = self._dice_of_steps
        for index, executor in enumerate(self._executors):
            if executor is None and rng.random() < 0.6:
                self._start(index)
            elif executor is not None and rng.random() < self._rate:
                if rng.random() < 0.5:
                    self.count(Fault.EXECUTOR_KILLED)
                    executor.kill()
                    self._executors[index] = None
                else:
                    self.count(Fault.EXECUTOR_STOPPED)
                    executor.pause(rng.choice((0.5, 2.0, 8.0, 20.0)))
        if rng.random() < 0.05 and self.kafka.steps_partitions < STEPS_MAX:
            self.kafka.steps_partitions += 1
            self.count(Fault.STEPS_GROW)
        await asyncio.sleep(rng.choice(PAUSES_S))

    def _expire(self) -> int:
        kafka = self.kafka
        if any(kafka.undecided(number) for number in range(self.partitions)):
            return 0  # Kafka would take these before the outcomes of others
        gone = super()._expire()
        for number in range(kafka.steps_partitions):
            end = kafka.log(TOPICS.steps, number).end
            gone += kafka.expire_before((TOPICS.steps, number), kafka.now_ms - ITEMS_LIVE_MS, end)
        return gone

    # Peace

    def _heal(self) -> None:
        super()._heal()
        self._group.calm = True
        self._group.hurry.set()
        for index, executor in enumerate(self._executors):
            if executor is None:
                self._start(index)

    def _left(self) -> str | None:
        if (left := super()._left()) is not None:
            return left
        for number in range(self.partitions):
            cursor = self._newest_cursor(number)
            if cursor is not None and items_left(number, cursor):
                return f"work items of partition {number} are not written: {cursor}"
        return self._group.left()

    def _bill(self) -> list[str]:
        found = super()._bill()
        if self.dice.met[Fault.CLOCK_BACK]:
            found = [one for one in found if not any(kind in one for kind in BY_ITS_CLOCK)]
        left = self.kafka.deployment(self.dedupe_window_ms)
        return found + self._unlike_the_contract(left) + self._forgotten(left)

    def _unlike_the_contract(self, left: Deployment) -> list[str]:
        found = []
        for number in range(self.partitions):
            contract = Contract(
                number,
                lambda key: home_of(key, self.partitions),
                self.dedupe_window_ms,
                HORIZON_MS,
            )
            try:
                read_partition(left, number, contract)
            except Exception as error:
                where = traceback.extract_tb(error.__traceback__)[-1].line
                found.append(f"partition {number} is not what the contract says: {error!r} {where}")
        return found

    def _forgotten(self, left: Deployment) -> list[str]:
        """Steps that wait for somebody to start them, although all items were seen by an executor
        that does everything."""
        if any(self.kafka.log(TOPICS.steps, n).start for n in range(self.kafka.steps_partitions)):
            return []
        found = []
        for number in range(self.partitions):
            state: dict[str, Any] = {}
            for record in left.of("state", number):
                state[(record.key or b"").decode()] = record.value
            present = {key: orjson.loads(value) for key, value in state.items() if value}
            for doc in present.values():
                step = doc.get("step")
                if step is None or step["status"] != "pending" or "execution" not in step:
                    continue
                flow = present[step["flow_id"]]["flow"]
                if step["execution"]["offers"] and not flow["cancel_requested"]:
                    found.append(f"nobody starts {step}")
        return found
