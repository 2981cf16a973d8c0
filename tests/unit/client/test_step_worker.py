"""An executor starts what is offered, keeps its lease, and records how it ended."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from processor.client import (
    GiveUp,
    OutcomeTimeout,
    RetryAfter,
    Step,
    StepWorker,
    step_attempt,
    step_commands,
)
from processor.client.kafka import connection
from processor.client.ports import Place, ReceivedItem
from processor.client.preparation import prepare
from processor.contract import Outcome, instant
from processor.contract.steps import WorkItem
from processor.settings import Settings
from processor.testing.fake.internals import LoopClock

NOON_MS = 1_767_268_800_000
FLOW = "0d9f5f2e-7d2b-4c8b-9a51-1c8a8a3f0d11"
HOUR_MS = 3_600_000


class Broker:
    """Answers commands as a worker would: by `refused` (kind → codes), or accepts them."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.refused: dict[str, deque[str | Exception]] = {}
        self.lease_ms = HOUR_MS
        self.attempt = 1
        self.cancel_requested = False
        self.arrived = asyncio.Event()

    def prepare(self, command: Mapping[str, Any]) -> Any:
        return prepare(command, now_ms=NOON_MS, expires_after_ms=HOUR_MS).command

    async def send(self, command: Any, *, timeout_s: float, traceparent: str | None) -> Outcome:
        doc = command.model_dump(mode="json", exclude_unset=True) | {"kind": str(command.kind)}
        self.sent.append(doc)
        self.arrived.set()
        waiting = self.refused.get(doc["kind"])
        code = waiting.popleft() if waiting else None
        if isinstance(code, Exception):
            raise code
        details = {
            "attempt": self.attempt,
            "due_at": instant(NOON_MS + self.lease_ms),
            "cancel_requested": self.cancel_requested,
        }
        return Outcome.model_validate_json(
            orjson.dumps(
                {
                    "command_id": doc["command_id"],
                    "flow_id": FLOW,
                    "kind": doc["kind"],
                    "verdict": "accepted" if code is None else "rejected",
                    "code": code,
                    "message": "",
                    "revision": 1,
                    "status": "running",
                    "event_ids": [7] if code is None else [],
                    "allowed": [],
                    "details": details if code is None else {},
                    "dry_run": False,
                    "command_digest": "0" * 32,
                    "source": {
                        "topic": "taskflow.commands",
                        "partition": 0,
                        "offset": len(self.sent),
                    },
                    "at": instant(NOON_MS),
                }
            )
        )

    @property
    def kinds(self) -> list[str]:
        return [doc["kind"] for doc in self.sent]

    async def __aenter__(self) -> "Broker":
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


class Items:
    """Gives the items that were put, and remembers which were answered."""

    def __init__(self) -> None:
        self.waiting: asyncio.Queue[ReceivedItem] = asyncio.Queue()
        self.finished: list[int] = []
        self.closed = False

    def put(self, run_id: str = "one", task: str = "classify", lease_ms: int = HOUR_MS) -> None:
        item = WorkItem(
            flow_id=FLOW,
            run_id=run_id,
            task=task,
            attempt=1,
            max_attempts=3,
            input_json={"mail": 7},
            lease_ms=lease_ms,
            event_id=3,
            at=instant(NOON_MS),
        )
        place = Place(0, self.waiting.qsize(), 1)
        self.waiting.put_nowait(ReceivedItem(item, place, NOON_MS, None))

    async def poll(self, *, max_records: int, wait_s: float) -> list[ReceivedItem]:
        assert max_records > 0
        return [await self.waiting.get()]

    def done(self, place: Place) -> None:
        self.finished.append(place.offset)

    async def close(self) -> None:
        self.closed = True


Handler = Callable[[Step], Awaitable[Any]]


@pytest.fixture(autouse=True)
def every_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker is asked for the executor's rights."""

    async def none_missing(*_: Any) -> list[Any]:
        return []

    monkeypatch.setattr(connection, "missing_rights", none_missing)


@asynccontextmanager
async def working(
    handler: Handler, broker: Broker, items: Items, **options: Any
) -> AsyncIterator[Any]:
    worker = StepWorker({"classify": handler}, group="inbox", settings=Settings(), **options)
    worker._client = broker  # type: ignore[assignment]
    worker._reader = items
    async with worker:
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            await running


async def until(condition: Callable[[], bool], broker: Broker) -> None:
    while not condition():
        broker.arrived.clear()
        await broker.arrived.wait()


async def once(handler: Handler, broker: Broker, last: str, **options: Any) -> dict[str, Any]:
    """Offer one step and wait for the command of kind `last`; return that."""
    items = Items()
    items.put()
    async with working(handler, broker, items, **options):
        await until(lambda: last in broker.kinds, broker)
    assert items.closed
    return next(doc for doc in broker.sent if doc["kind"] == last)


async def test_a_result_is_recorded_with_the_attempt_that_was_started() -> None:
    broker = Broker()
    broker.attempt = 1
    seen: list[Step] = []

    async def classify(step: Step) -> Any:
        seen.append(step)
        return {"kind": "invoice"}

    done = await once(classify, broker, "complete_step")

    assert broker.kinds == ["start_step", "complete_step"]
    assert (done["attempt"], done["result_json"]) == (1, {"kind": "invoice"})
    assert {doc["issued_by"] for doc in broker.sent} == {broker.sent[0]["issued_by"]}
    (step,) = seen
    assert (step.input, step.idempotency_key) == ({"mail": 7}, f"{FLOW}/one/1")
    assert instant(round(step.deadline.timestamp() * 1000)) == instant(NOON_MS + HOUR_MS)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no subject"), {"reason": "ValueError: no subject"}),
        (ValueError(), {"reason": "ValueError:"}),
        (GiveUp("not ours"), {"reason": "not ours", "retry": False}),
        (RetryAfter(2.5, "busy"), {"reason": "busy", "retry_after_ms": 2500}),
        # As of a file's name that is not UTF-8, which no JSON can hold.
        (ValueError("caf\udce9"), {"reason": "ValueError: caf\\udce9"}),
    ],
)
async def test_what_a_handler_raises_fails_the_attempt(error: Any, expected: Any) -> None:
    async def fails(step: Step) -> Any:
        raise error

    done = await once(fails, Broker(), "fail_step")

    assert {name: done[name] for name in expected} == expected
    assert ("retry" in done) == ("retry" in expected)


async def test_a_result_that_is_no_json_fails_for_good() -> None:
    async def odd(step: Step) -> Any:
        return object()

    done = await once(odd, Broker(), "fail_step")
    assert done["retry"] is False
    assert "JSON" in done["reason"]


async def test_a_result_that_is_too_large_fails_for_good() -> None:
    broker = Broker()
    broker.refused["complete_step"] = deque(["state_too_large"])

    async def large(step: Step) -> Any:
        return "x"

    done = await once(large, broker, "fail_step")
    assert done["retry"] is False


@pytest.mark.parametrize(
    "code",
    [
        *("not_found", "already_terminal", "cancel_pending"),
        *("step_not_found", "illegal_transition", "not_due"),
    ],
)
async def test_a_step_that_is_not_to_be_started_is_answered_and_left(code: Any) -> None:
    broker, items = Broker(), Items()
    broker.refused["start_step"] = deque([code])
    items.put("first")
    items.put("second")

    async def classify(step: Step) -> Any:
        assert step.run_id == "second"

    async with working(classify, broker, items, concurrency=1):
        await until(lambda: "complete_step" in broker.kinds, broker)
    assert items.finished == [0, 1]


async def test_a_start_without_an_answer_is_sent_again_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in (step_attempt, step_commands):
        monkeypatch.setattr(module, "RETRY_PAUSE_MIN_S", 0)
    broker = Broker()
    timeout = OutcomeTimeout(
        broker.prepare({"kind": "cancel", "flow_id": FLOW, "issued_by": "x"}), None, "late"
    )
    broker.refused["start_step"] = deque([timeout, "expired"])

    async def classify(step: Step) -> Any:
        return None

    await once(classify, broker, "complete_step")

    first, repeated, renewed, _ = broker.sent
    assert first == repeated, "it may have been applied already"
    assert renewed["command_id"] != first["command_id"], "an expired one will never be"


async def test_a_refused_extension_cancels_the_handler_and_nothing_is_recorded() -> None:
    broker, items, ended = Broker(), Items(), asyncio.Event()
    broker.refused["extend_step"] = deque(["not_holder"])
    items.put()

    async def classify(step: Step) -> Any:
        try:
            await step.progress({"mails": 3})
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with working(classify, broker, items):
        await ended.wait()
    assert broker.kinds == ["start_step", "extend_step"]


async def test_a_lease_that_is_over_cancels_the_handler_and_nothing_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = LoopClock.of(asyncio.get_running_loop())
    monkeypatch.setattr(connection.KafkaConnection, "monotonic", lambda self: clock.time())
    broker, items, ended = Broker(), Items(), asyncio.Event()
    broker.lease_ms = HOUR_MS * 6 // 10
    items.put(lease_ms=HOUR_MS)
    silent = asyncio.Event()
    sent = broker.send

    async def send(command: Any, **how: Any) -> Outcome:
        if command.kind == "extend_step":
            await silent.wait()
        return await sent(command, **how)

    broker.send = send  # type: ignore[method-assign]

    async def classify(step: Step) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with working(classify, broker, items):
        with clock.jumping():
            await ended.wait()
    assert broker.kinds == ["start_step"]


async def test_the_handler_learns_of_a_cancel_that_is_asked_for() -> None:
    broker = Broker()
    broker.cancel_requested = True

    async def classify(step: Step) -> Any:
        await step.progress(1)
        await step.wait_for_cancel()
        return step.cancel_requested

    done = await once(classify, broker, "complete_step")
    assert done["result_json"] is True


async def test_what_is_not_done_at_the_end_of_draining_is_released() -> None:
    broker, items, begun = Broker(), Items(), asyncio.Event()
    items.put()

    async def classify(step: Step) -> Any:
        begun.set()
        await asyncio.Event().wait()

    async with working(classify, broker, items, drain_timeout_s=0.01) as worker:
        await begun.wait()
        worker.stop()
    assert broker.kinds == ["start_step", "release_step"]


async def test_what_ends_while_draining_is_recorded() -> None:
    broker, items, begun = Broker(), Items(), asyncio.Event()
    go_on = asyncio.Event()
    items.put()

    async def classify(step: Step) -> Any:
        begun.set()
        await go_on.wait()

    async with working(classify, broker, items) as worker:
        await begun.wait()
        worker.stop()
        go_on.set()
    assert broker.kinds == ["start_step", "complete_step"]


async def test_no_more_is_in_hand_than_concurrency_allows() -> None:
    broker, items = Broker(), Items()
    for number in range(6):
        items.put(f"run {number}")
    running, most = 0, 0
    turn = asyncio.Semaphore(0)

    async def classify(step: Step) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await turn.acquire()
        running -= 1

    def has(kind: str, count: int) -> Callable[[], bool]:
        return lambda: broker.kinds.count(kind) >= count

    async with working(classify, broker, items, concurrency=2):
        for started in (2, 3, 4, 5, 6, 6):
            await until(has("start_step", started), broker)
            turn.release()
        await until(has("complete_step", 6), broker)
    assert most == 2


async def test_the_workers_own_group_is_refused() -> None:
    with pytest.raises(ValueError, match="group of the workers"):
        StepWorker({"a": None}, group="taskflow", settings=Settings())  # type: ignore[dict-item]
