"""Executors of managed steps: they read work items in a group, start what is offered, and answer,
too late, twice or never; they are killed, and stopped past their session and continued."""

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context, ContextVar, copy_context
from random import Random
from typing import Any, Final
from uuid import UUID

import orjson

from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.ops.verify.contract import home_of
from processor.testing.memory.record import Appended
from processor.testing.memory.timed_kafka import wake
from tests.simulation.group import SESSION_S
from tests.simulation.kafka import HistoryKafka
from tests.support.moments import Fault

PENDING_MAX: Final = 4
POLL_S: Final = 0.5
OUTCOME_S: Final = 2.0
"""How long an executor waits for an outcome, before it sends its command again."""
EXPIRES_MS: Final = 60_000
DONE_WITH: Final = frozenset(
    {
        "not_found",
        "already_terminal",
        "cancel_pending",
        "step_not_found",
        "illegal_transition",
        "not_due",
    }
)
"""Refusals of a start after which its work item is done with."""
ENDINGS: Final = (
    *("complete",) * 10,
    *("fail", "fail", "give up", "retry after", "release", "release", "lapse", "late", "late"),
)
FAILURES: Final[dict[str, dict[str, Any]]] = {
    "fail": {},
    "give up": {"retry": False},
    "retry after": {"retry_after_ms": 300},
}

Met = Callable[[Fault], None]


class Outcomes:
    """The outcomes of all partitions by command id, as far as they can be read."""

    def __init__(self, kafka: HistoryKafka) -> None:
        self._kafka = kafka
        self._next = [0] * kafka.partitions
        self._found: dict[str, dict[str, Any]] = {}

    def of(self, command_id: str) -> dict[str, Any] | None:
        """The final outcome of a command, if it is there."""
        for number, start in enumerate(self._next):
            log = self._kafka.log(self._kafka.topics.outcomes, number)
            stable = log.stable_end
            for record in log.committed(start, stable):
                outcome = orjson.loads(record.value or b"")
                if outcome["verdict"] != "forwarded":
                    self._found.setdefault(outcome["command_id"], outcome)
            self._next[number] = max(start, stable)
        return self._found.get(command_id)


class ExecutorGroup:
    """The consumer group of the executors: who has which partitions of `steps`, and the offsets
    that were committed."""

    def __init__(self, kafka: HistoryKafka) -> None:
        self.kafka = kafka
        self.outcomes = Outcomes(kafka)
        self.calm = False
        """Whether each step is to be done at once, and well."""
        self.hurry = asyncio.Event()
        self._committed: dict[int, int] = {}
        self._members: list[Executor] = []

    def join(self, executor: "Executor") -> None:
        if executor not in self._members:
            self._members.append(executor)

    def leave(self, executor: "Executor") -> None:
        if executor in self._members:
            self._members.remove(executor)

    def has(self, executor: "Executor") -> bool:
        return executor in self._members

    def assigned(self, executor: "Executor") -> Iterator[int]:
        for number in range(self.kafka.steps_partitions):
            if self._members and self._members[number % len(self._members)] is executor:
                yield number

    def committed(self, number: int) -> int:
        start = self.kafka.log(self.kafka.topics.steps, number).start
        return max(self._committed.get(number, 0), start)

    def commit(self, number: int, offset: int) -> None:
        self._committed[number] = offset

    def left(self) -> str | None:
        """What is still to be done in peace."""
        for number in range(self.kafka.steps_partitions):
            end = self.kafka.log(self.kafka.topics.steps, number).end
            if self.committed(number) < end:
                return f"work items of partition {number} are not done with"
        if any(member.pending for member in self._members):
            return "executors have steps in hand"
        return None


class Executor:
    """A process that does steps, from its start to its death."""

    def __init__(
        self, name: str, group: ExecutorGroup, rng: Random, met: Met, life: ContextVar[Any]
    ) -> None:
        self.issued_by = name
        self.rng = rng
        self.alive = True
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.pending: dict[tuple[int, int], None] = {}
        """Places of the items that are not answered, and of the steps that are being done."""
        self._group = group
        self._kafka = group.kafka
        self._met = met
        self._continued: asyncio.Event | None = None
        self._next: dict[int, int] = {}
        self._unanswered: dict[int, list[int]] = {}
        self._context: Context = copy_context()
        self._context.run(life.set, self)
        group.join(self)
        self._spawn(self._run())

    def _spawn(self, work: Any) -> asyncio.Task[Any]:
        return asyncio.get_running_loop().create_task(work, context=self._context)

    # What happens to it

    def kill(self) -> None:
        """kill -9: the group misses it after its session."""
        self.alive = False
        self.pending.clear()
        for task in list(self.tasks):
            task.cancel()
        asyncio.get_running_loop().call_later(SESSION_S, self._group.leave, self)

    def pause(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT after `seconds`."""
        if self._continued is None:
            self._continued = asyncio.Event()
            loop = asyncio.get_running_loop()
            loop.call_later(SESSION_S, self._end_session, self._continued)
            loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        if self._continued is not None:
            self._continued.set()
            self._continued = None

    def _end_session(self, continued: asyncio.Event) -> None:
        if self._continued is continued:
            self._group.leave(self)

    async def _there(self) -> None:
        """Wait until it may go on: it is not stopped, and the broker answers."""
        while self._continued is not None or self._kafka.away:
            if self._continued is not None:
                await self._continued.wait()
            else:
                await asyncio.sleep(0.5)

    # Its work

    async def _run(self) -> None:
        topic = self._kafka.topics.steps
        while True:
            await self._there()
            if not self._group.has(self):  # its session had ended
                self._next.clear()
                self._unanswered.clear()
                self._group.join(self)
            mine = list(self._group.assigned(self))
            self._next = {number: at for number, at in self._next.items() if number in mine}
            for number in mine:
                start = self._next.setdefault(number, self._group.committed(number))
                log = self._kafka.log(topic, number)
                for record in log.committed(start, log.end):
                    if len(self.pending) >= PENDING_MAX:
                        break
                    self._next[number] = record.offset + 1
                    self._unanswered.setdefault(number, []).append(record.offset)
                    self.pending[number, record.offset] = None
                    self._spawn(self._attempt(record))
            waiting = self._kafka.watch((topic, number) for number in mine)
            timer = asyncio.get_running_loop().call_later(POLL_S, wake, waiting)
            await waiting
            timer.cancel()

    def _outcomes(self, record: Appended) -> None:
        """Commit the offsets behind which everything is answered."""
        number, waiting = record.partition, self._unanswered.get(record.partition, [])
        if record.offset in waiting:
            waiting.remove(record.offset)
        if number in self._group.assigned(self) and number in self._next:
            self._group.commit(number, min(waiting, default=self._next[number]))

    async def _attempt(self, record: Appended) -> None:
        item = orjson.loads(record.value or b"")
        try:
            started = await self._start(item)
            await self._there()
            self._outcomes(record)
            if started is not None:
                await self._do(item, started)
        finally:
            self.pending.pop((record.partition, record.offset), None)

    async def _start(self, item: dict[str, Any]) -> dict[str, Any] | None:
        while True:
            expires_at = instant(self._kafka.now_ms + EXPIRES_MS)
            outcome = await self._outcome(item, "start_step", expires_at=expires_at)
            verdict = outcome.get("original", outcome["verdict"])
            if verdict == "accepted":
                details: dict[str, Any] = outcome["details"]
                return details
            if verdict == "quarantined" or outcome["code"] in DONE_WITH:
                return None
            await asyncio.sleep(0.5)

    async def _do(self, item: dict[str, Any], started: dict[str, Any]) -> None:
        rng, lease_s, attempt = self.rng, item["lease_ms"] / 1000, started["attempt"]
        for _ in range(0 if self._group.calm else rng.choice((0, 0, 1, 1, 3))):
            await self._nap(lease_s * rng.choice((0.01, 0.3, 0.6, 0.9)))
            progress = {"progress_json": {"n": rng.randrange(9)}} if rng.random() < 0.4 else {}
            extended = await self._outcome(item, "extend_step", attempt=attempt, **progress)
            if extended.get("original", extended["verdict"]) != "accepted":
                return
        ending = "complete" if self._group.calm else rng.choice(ENDINGS)
        if ending == "lapse":
            self._met(Fault.EXECUTOR_LAPSES)
            return
        if ending == "late":
            self._met(Fault.EXECUTOR_LATE)
            await self._nap(lease_s * rng.choice((1.1, 1.5, 3)))
            ending = rng.choice(("complete", "complete", "fail", "release"))
        elif not self._group.calm:
            await self._nap(lease_s * rng.choice((0.0, 0.01, 0.2, 0.5)))
        kind, fields = self._ending(ending)
        await self._outcome(item, kind, attempt=attempt, **fields)
        if not self._group.calm and rng.random() < 0.1:
            self._met(Fault.EXECUTOR_REPEATS)
            kind, fields = self._ending(rng.choice((ending, "complete")))
            await self._outcome(item, kind, attempt=attempt, **fields)

    def _ending(self, ending: str) -> tuple[str, dict[str, Any]]:
        if ending == "complete":
            return "complete_step", {"result_json": self.rng.choice((None, 1.5, {"é": [1]}))}
        if ending == "release":
            return "release_step", {}
        return "fail_step", {"reason": "downstream 503", **FAILURES[ending]}

    async def _nap(self, seconds: float) -> None:
        """Work for so long; in peace, no longer."""
        if seconds > 0 and not self._group.calm:
            hurry = asyncio.create_task(self._group.hurry.wait())
            await asyncio.wait({hurry}, timeout=seconds)
            hurry.cancel()
        await self._there()

    # Commands

    async def _outcome(self, item: dict[str, Any], kind: str, **fields: Any) -> dict[str, Any]:
        """Send one command until its outcome comes; some of what is sent is sent twice, and some
        to a wrong partition."""
        rng, kafka, flow_id = self.rng, self._kafka, str(item["flow_id"])
        command_id = str(UUID(int=rng.getrandbits(128), version=4))
        command = {
            "kind": kind,
            "command_id": command_id,
            "flow_id": flow_id,
            "issued_by": self.issued_by,
            "run_id": item["run_id"],
            **fields,
        }
        key, home = flow_id.encode(), home_of(flow_id.encode(), kafka.partitions)
        topics: Topics = kafka.topics
        while True:
            await self._there()
            wrong = kafka.partitions > 1 and rng.random() < 0.02
            number = (home + 1) % kafka.partitions if wrong else home
            lost = not self._group.calm and rng.random() < 0.02
            if not lost:
                kafka.append(topics.commands, number, key, orjson.dumps(command))
            ends_s = asyncio.get_running_loop().time() + OUTCOME_S
            while (left_s := ends_s - asyncio.get_running_loop().time()) > 0:
                await self._there()
                if (outcome := self._group.outcomes.of(command_id)) is not None:
                    return outcome
                watched = [(topics.outcomes, n) for n in range(kafka.partitions)]
                waiting = kafka.watch(watched)
                timer = asyncio.get_running_loop().call_later(left_s, wake, waiting)
                await waiting
                timer.cancel()
