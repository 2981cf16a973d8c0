"""Commands for what is matched: sent until there is an outcome, and refused for good or not."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from processor.client import CommandNotSent
from processor.contract.outcomes import Code, Verdict
from processor.signals import deliveries as module
from processor.signals.deliveries import Deliveries
from processor.signals.facts import SignalReceived, WaitKey
from processor.signals.matcher import Delivery
from processor.signals.metrics import SignalMetrics
from tests.support.machine import patience

KEY = WaitKey("payments", "order-17")
FLOW = "6f1f3a52-0000-4000-8000-000000000001"


def delivery(revision: int = 2) -> Delivery:
    return Delivery(KEY, SignalReceived("s1", 1, 0, 0, {"n": 1}), FLOW, 1, revision, 1)


def outcome(verdict: Verdict, code: Code | None = None, original: Verdict | None = None) -> Any:
    return SimpleNamespace(verdict=verdict, code=code, original=original, message="why")


class ScriptedClient:
    """Gives the outcomes one after another; an exception is raised."""

    def __init__(self, *outcomes: Any) -> None:
        self.commands: list[dict[str, Any]] = []
        self._outcomes = list(outcomes)
        self.idle = asyncio.Event()

    async def send(self, command: dict[str, Any], **_: Any) -> Any:
        self.commands.append(command)
        if not self._outcomes:
            self.idle.set()
            await asyncio.get_running_loop().create_future()
        given = self._outcomes.pop(0)
        if isinstance(given, Exception):
            raise given
        return given


class OpenClient:
    """Tells the revisions of the commands that it gets, each of which waits to be decided."""

    def __init__(self) -> None:
        self.revisions: asyncio.Queue[int] = asyncio.Queue()
        self._pending: dict[int, asyncio.Future[Any]] = {}

    async def send(self, command: dict[str, Any], **_: Any) -> Any:
        revision = command["expected_revision"]
        self._pending[revision] = asyncio.get_running_loop().create_future()
        self.revisions.put_nowait(revision)
        return await self._pending[revision]

    async def next(self) -> int:
        async with asyncio.timeout(patience(10)):
            return await self.revisions.get()

    def decide(self, revision: int) -> None:
        self._pending[revision].set_result(outcome(Verdict.ACCEPTED))


@pytest.fixture
def refused() -> list[tuple[Delivery, str]]:
    return []


@pytest.fixture
def sending(refused: list[tuple[Delivery, str]]) -> Callable[[ScriptedClient], Deliveries]:
    async def refuse(one: Delivery, why: str) -> None:
        refused.append((one, why))

    return lambda client: Deliveries(client, SignalMetrics(), refuse)  # type: ignore[arg-type]


async def done(some: Deliveries) -> None:
    await asyncio.gather(*some._tasks.values())


async def test_what_is_wanted_is_sent_once_with_the_revision_that_it_may_end(
    sending: Any, refused: Any
) -> None:
    client = ScriptedClient(outcome(Verdict.ACCEPTED))
    some = sending(client)
    some.update([delivery()])
    await done(some)
    some.update([delivery()])
    await done(some)

    (command,) = client.commands
    assert (command["kind"], command["expected_revision"]) == ("resume_external", 2)
    assert command["command_id"] == delivery().command_id
    assert refused == []


async def test_it_is_sent_again_until_there_is_an_outcome(
    sending: Any, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_PAUSE_MIN_S", 0)
    client = ScriptedClient(
        CommandNotSent("not allowed", retriable=False),
        RuntimeError("an unforeseen error"),
        outcome(Verdict.DUPLICATE),
    )
    some = sending(client)
    some.update([delivery()])
    await done(some)

    first, second, third = client.commands
    assert first == second == third
    assert refused == []


@pytest.mark.parametrize(
    ("given", "for_good"),
    [
        (outcome(Verdict.REJECTED, Code.STATE_TOO_LARGE), True),
        (outcome(Verdict.DUPLICATE, Code.STATE_TOO_LARGE, Verdict.REJECTED), True),
        (outcome(Verdict.QUARANTINED, Code.MALFORMED), True),
        (outcome(Verdict.REJECTED, Code.REVISION_MISMATCH), False),
        (outcome(Verdict.REJECTED, Code.ALREADY_TERMINAL), False),
        (outcome(Verdict.REJECTED, Code.CANCEL_PENDING), False),
        (outcome(Verdict.DUPLICATE, None, Verdict.ACCEPTED), False),
    ],
)
async def test_only_what_another_try_cannot_mend_is_refused_for_good(
    sending: Any, refused: Any, given: Any, for_good: bool
) -> None:
    some = sending(ScriptedClient(given))
    some.update([delivery()])
    await done(some)

    assert bool(refused) is for_good


async def test_no_more_than_the_limit_are_in_flight_and_the_others_follow_in_their_order(
    sending: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IN_FLIGHT_MAX", 2)
    client = OpenClient()
    some = sending(client)
    matches = [delivery(revision) for revision in range(6)]
    some.update(matches)
    assert await client.next() == 0
    assert await client.next() == 1
    assert (client.revisions.empty(), len(some._tasks), some.pending) == (True, 2, 6)

    client.decide(1)
    assert await client.next() == 2
    some.update([one for one in matches if one.revision not in (0, 3)])  # their waits have ended
    assert await client.next() == 4
    client.decide(2)
    client.decide(4)
    assert await client.next() == 5
    client.decide(5)
    await done(some)

    assert client.revisions.empty()
    assert some.pending == 0
    await some.close()


async def test_what_is_no_longer_wanted_is_let_go_of(sending: Any) -> None:
    client = ScriptedClient()
    some = sending(client)
    some.update([delivery(2)])
    await client.idle.wait()
    (task,) = some._tasks.values()
    client.idle.clear()
    some.update([delivery(3)])

    with pytest.raises(asyncio.CancelledError):
        await task
    await client.idle.wait()
    assert [one["expected_revision"] for one in client.commands] == [2, 3]
    await some.close()
