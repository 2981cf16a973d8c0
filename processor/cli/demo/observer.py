"""Follow outcomes, FlowEvents and dead letters for the demo."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from processor.adapters.kafka.reader.topic_reader import read
from processor.cli.tail import as_text
from processor.contract.topics import Topics
from processor.errors import TaskflowError
from processor.ops.deadletters import dead_letter_of
from processor.runtime import end_tasks
from processor.settings import Settings

ALL_IN_TIMEOUT_S = 30.0
EVENT_TIMEOUT_S = 20.0
WAKES = 3
"""How often the processor ends a wait by itself."""


class DemoFailed(TaskflowError):
    """The demo did not come to its end; nothing of it is left running."""


@dataclass(slots=True)
class Observer:
    """The outcomes and the FlowEvents as they stand on their topics, but for those of the flow
    `apart`."""

    apart: str = ""
    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wakes: int = 0
    """Outcomes of the processor's own commands."""
    settled: set[str] = field(default_factory=set)
    """Ids of commands that got their last word."""
    events: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)
    """By flow and the revision that they gave it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def count_outcome(self, outcome: dict[str, Any]) -> None:
        if outcome["flow_id"] == self.apart:
            return
        self.verdicts[outcome["verdict"], outcome["code"] or ""] += 1
        self.wakes += outcome["kind"] == "wake"
        if outcome["verdict"] != "forwarded" and outcome["command_id"] is not None:
            self.settled.add(outcome["command_id"])
        self.changed.set()

    def see(self, event: dict[str, Any]) -> None:
        self.events.setdefault((event["flow_id"], event["revision"]), event)
        self.changed.set()

    @property
    def outcomes(self) -> int:
        """Outcomes of commands that others have sent."""
        return self.verdicts.total() - self.wakes

    async def reach(self, count: int) -> None:
        """Once that many are answered, and the processor's own, too."""
        await self._until(lambda: self.outcomes >= count and self.wakes >= WAKES)

    async def settles(self, command_id: str) -> None:
        await self._until(lambda: command_id in self.settled)

    async def event(self, flow_id: str, revision: int) -> dict[str, Any]:
        """The first FlowEvent with that revision of a flow. Raises DemoFailed."""
        try:
            async with asyncio.timeout(EVENT_TIMEOUT_S):
                await self._until(lambda: (flow_id, revision) in self.events)
        except TimeoutError:
            raise DemoFailed(
                f"Flow {flow_id} did not come to revision {revision} within "
                f"{EVENT_TIMEOUT_S:.0f} s: its wait does not end."
            ) from None
        return self.events[flow_id, revision]

    async def in_time(self, work: Awaitable[None], expected: int) -> None:
        """Raises DemoFailed, with how many of `expected` outcomes came."""
        try:
            async with asyncio.timeout(ALL_IN_TIMEOUT_S):
                await work
        except TimeoutError:
            raise DemoFailed(
                f"{self.outcomes} of {expected} outcomes came within {ALL_IN_TIMEOUT_S:.0f} s."
            ) from None

    async def _until(self, true: Callable[[], bool]) -> None:
        while not true():
            self.changed.clear()
            await self.changed.wait()


@asynccontextmanager
async def observing(
    settings: Settings, show: Callable[[dict[str, Any]], None], *, apart: str
) -> AsyncIterator[Observer]:
    """Follows the topics until the block ends; `show` gets each FlowEvent."""
    observer = Observer(apart)
    listening = [
        asyncio.ensure_future(_show_events(settings, show, observer)),
        asyncio.ensure_future(_count_outcomes(settings, observer)),
    ]
    try:
        yield observer
    finally:
        await end_tasks(*listening)


async def _show_events(
    settings: Settings, show: Callable[[dict[str, Any]], None], observer: Observer
) -> None:
    topic = Topics(settings.topic_prefix).audit
    async with aclosing(read(settings, topic, follow=True)) as records:
        async for record in records:
            event = orjson.loads(record.value)
            show(event)
            observer.see(event)


async def _count_outcomes(settings: Settings, observer: Observer) -> None:
    topic = Topics(settings.topic_prefix).outcomes
    async with aclosing(read(settings, topic, follow=True)) as records:
        async for record in records:
            observer.count_outcome(orjson.loads(record.value))


async def dead_letters(settings: Settings) -> AsyncIterator[dict[str, Any]]:
    topic = Topics(settings.topic_prefix).dead_letters
    async for record in read(settings, topic):
        one = dead_letter_of(record)
        yield {
            "value": as_text(record.value),
            "code": one.facts.code,
            "message": one.facts.message,
        }
