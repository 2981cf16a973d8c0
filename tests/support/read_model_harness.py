"""A view of what was recorded, in a real file, without Kafka; and what must stand in it."""

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from processor.contract.events import EventKind
from processor.contract.values import parse_timestamp
from processor.domain.evolve import STEP_KINDS, evolve, evolve_step
from processor.domain.facts import Fact
from processor.domain.flow import Flow
from processor.domain.step import read_step
from processor.engine.codec import fact_of
from processor.engine.encoding import step_doc
from processor.testing.memory.deployment import Deployment
from processor.views.faust import app
from processor.views.metrics import ViewMetrics
from processor.views.model.database import open_database
from processor.views.model.read_model import ReadModel
from tests.support.recorded_deployment import TOPICS, Recorded

LIVE = ("created", "running", "waiting")
ENDS = ("finished", "failed", "cancelled")


def messages(recorded: Deployment, name: str = "audit") -> list[Any]:
    """All of a topic, one partition after the other."""
    return [record for p in range(recorded.partitions) for record in recorded.of(name, p)]


class Reseeks(list[int]):
    """The partitions that the view wanted to read again."""

    async def __call__(self, partition: int) -> None:
        self.append(partition)


@asynccontextmanager
async def opened_view(
    folder: Path, partitions: int, *, assigned: bool = True
) -> AsyncIterator[ReadModel]:
    """The view in `folder`, as its file has it; `owned`: with all of its partitions."""
    async with open_database(folder) as database:
        view = ReadModel(
            database,
            TOPICS,
            minutes=app.minutes,
            totals=app.totals,
            metrics=ViewMetrics(),
            reseek=Reseeks(),
        )
        await view.load()
        if assigned:
            view.assign(range(partitions))
        yield view


@asynccontextmanager
async def view_of(folder: Path, recorded: Recorded) -> AsyncIterator[ReadModel]:
    """With all that was recorded in it."""
    async with opened_view(folder, recorded.partitions) as view:
        await view.project(messages(recorded))
        await view.project_dead_letters(messages(recorded, "deadletters"))
        yield view


@dataclass(slots=True)
class Expected:
    """What a view must say, by folding all events of the flows one by one."""

    flows: dict[int, Flow] = field(default_factory=dict)
    """Those that are there, by the event that created them."""
    steps: dict[tuple[int, str], dict[str, Any]] = field(default_factory=dict)
    lives: dict[int, list[tuple[int, str]]] = field(default_factory=dict)
    """Of all that ever were: when they came to which status."""
    events: dict[int, dict[str, Any]] = field(default_factory=dict)

    def totals(self, partition: int) -> dict[str, Any]:
        here = [flow for number, flow in self.flows.items() if number >> 40 == partition]
        kinds = Counter(e["kind"] for at, e in self.events.items() if at >> 40 == partition)
        return {
            "flows": dict(sorted(Counter(str(flow.status) for flow in here).items())),
            "kinds": dict(sorted(kinds.items())),
            "cancel_requested": sum(f.cancel_requested and f.status in LIVE for f in here),
        }

    def minutes(self) -> dict[tuple[int, int], tuple[Counter[str], dict[str, list[int]]]]:
        """(partition, minute) → how much happened, and how long flows had stayed, in order of
        length, in which status."""
        counts: defaultdict[tuple[int, int], Counter[str]] = defaultdict(Counter)
        stays: defaultdict[tuple[int, int], dict[str, list[int]]] = defaultdict(dict)
        for event_id, event in self.events.items():
            counts[event_id >> 40, parse_timestamp(event["at"]) // 60_000]["events"] += 1
        for number, life in self.lives.items():
            counts[number >> 40, life[0][0] // 60_000]["created"] += 1
            for (since, left), (now, status) in pairwise(life):
                minute = number >> 40, now // 60_000
                stays[minute].setdefault(left, []).append(now - since)
                if status in ENDS:
                    counts[minute][status] += 1
        return {
            at: (found, {status: sorted(some) for status, some in stays[at].items()})
            for at, found in counts.items()
        }


def expected(docs: Iterable[bytes]) -> Expected:
    """From all events, each partition's in order."""
    found = Expected()
    numbers: dict[str, int] = {}
    for event in map(json.loads, docs):
        fact: Fact = fact_of(event)
        found.events[event["id"]] = event
        if fact.kind is EventKind.CREATED:
            numbers[fact.flow_id] = event["id"]
        number = numbers[fact.flow_id]
        flow = evolve(found.flows.get(number), fact)
        if flow is None:
            del found.flows[number]
            found.steps = {at: step for at, step in found.steps.items() if at[0] != number}
            continue
        found.flows[number] = flow
        life = found.lives.setdefault(number, [])
        if not life or life[-1][1] != flow.status.value:
            life.append((parse_timestamp(fact.at), flow.status.value))
        if fact.kind in STEP_KINDS:
            run_id = fact.payload.get("run_id") or fact.payload["step"]["run_id"]
            doc = found.steps.get((number, run_id))
            before = None if doc is None else read_step(doc)
            found.steps[number, run_id] = json.loads(step_doc(evolve_step(before, fact)))
    return found


def docs_of(some: Sequence[Any]) -> list[bytes]:
    return [one.value for one in some]
