"""What the read side can: how soon an outcome is in a view, how fast a view worker catches up, and
how long questions take that are asked over HTTP among a million flows.

Run it: .venv/bin/python -m tests.benchmarks.views
"""

import argparse
import asyncio
import itertools
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import orjson
import psutil
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.topics import Topics
from processor.embedded.broker import embedded_broker
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from tests.benchmarks import audited
from tests.benchmarks.running import (
    cpu_s,
    free_address,
    machine,
    memory_bytes,
    percentile,
    running_views,
    running_worker,
)
from tests.benchmarks.timers import creating, flow_ids

PARTITIONS = 4
FLOWS = 1_000_000
MORE = 200_000
"""Flows that a view of FLOWS catches up with afterwards."""
ASKED = 500
"""Times that each question is asked."""
PATIENCE_S = 1800
POLL_S = 0.1
STEPS = ("lag", "fill", "more", "ask")

RATE_PER_S = 1_000
WARM_UP_S = 20
TICK_S = 0.005
WATCHED = 20
"""One outcome of so many is looked for in the view."""


class Views:
    """A view worker, seen through its process and over HTTP."""

    def __init__(self, process: psutil.Process, session: aiohttp.ClientSession) -> None:
        self.process = process
        self._session = session

    async def get(self, path: str, **query: Any) -> Any:
        async with self._session.get(path, params=query) as response:
            body = await response.read()
            assert response.status == 200, (path, query, body)
        return orjson.loads(body)

    async def took_ms(self, path: str, query: Mapping[str, str]) -> float:
        """From the question until the whole answer is here."""
        began_s = time.perf_counter()
        async with self._session.get(path, params=query) as response:
            body = await response.read()
            took_ms = (time.perf_counter() - began_s) * 1000
            assert response.status == 200, (path, query, body)
        return took_ms

    async def counted(self) -> tuple[float, int]:
        """When it was asked, and how many events it has; it may not listen yet."""
        try:
            return time.monotonic(), (await self.get("/v1/statistics", minutes="1"))["events_total"]
        except aiohttp.ClientConnectionError:
            return time.monotonic(), 0

    async def ready(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    async with self._session.get("/ready") as response:
                        if response.status == 200:
                            return
                except aiohttp.ClientConnectionError:
                    pass
                await asyncio.sleep(POLL_S)


@asynccontextmanager
async def watched_views(settings: Settings, state_dir: Path) -> AsyncIterator[Views]:
    address = free_address()
    async with (
        aiohttp.ClientSession(f"http://{address}") as session,
        running_views(settings, state_dir, address=address) as process,
    ):
        yield Views(process, session)


# Catching up


class CaughtUp(NamedTuple):
    events: int
    took_s: float
    slowest_per_s: float
    """Over the worst tenth."""
    cpu_s: float
    peak_mib: float


async def caught_up(settings: Settings, state_dir: Path, before: int, events: int) -> CaughtUp:
    """How fast a view worker comes from `before` events to `events` more, from the last look at it
    that found none of them: it may have a small audit whole by the next one."""
    peak = 0
    async with watched_views(settings, state_dir) as views, asyncio.timeout(PATIENCE_S):
        points = [(time.monotonic(), before)]
        spent_s = cpu_s(views.process)
        while points[-1][1] < before + events:
            at_s, have = await views.counted()
            if have > before:
                points.append((at_s, have))
            else:
                points = [(at_s, before)]
                spent_s = cpu_s(views.process)
            peak = max(peak, memory_bytes(views.process))
            await asyncio.sleep(POLL_S)
        spent_s = cpu_s(views.process) - spent_s
    took_s = points[-1][0] - points[0][0]
    return CaughtUp(events, took_s, slowest_per_s(points), spent_s, peak / 2**20)


def slowest_per_s(points: Sequence[tuple[float, int]]) -> float:
    """The rate over the worst tenth of what came, as far as looks at it tell tenths apart.
    `points`: seconds, and how many were there by then."""
    first, last = points[0][1], points[-1][1]
    tenths = [
        next(point for point in points if point[1] - first >= n * (last - first) / 10)
        for n in range(11)
    ]
    return min((b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(tenths) if b[0] > a[0])


# Asking


Ask = Callable[[], tuple[str, dict[str, str]]]


def questions(flows: int) -> dict[str, Ask]:
    """What is asked, and how; each time of another flow or owner."""
    rng = random.Random(11)
    ids = flow_ids(flows)

    def owner() -> str:
        return f"agent:{rng.choice(range(1, 20)) + 20 * rng.randrange(500)}:session:1"

    def ago(minutes: float) -> str:
        return (datetime.now(UTC) - timedelta(minutes=minutes)).isoformat()

    def flows_by(**query: str) -> Ask:
        return lambda: ("/v1/flows", {"limit": "50", **query})

    large = audited.LARGE_OWNER
    return {
        "flows of one owner": lambda: ("/v1/flows", {"owner": owner()}),
        "of one owner, running": lambda: ("/v1/flows", {"owner": owner(), "status": "running"}),
        "of an owner who has 5 %": flows_by(owner=large),
        "of that owner, failed (there are none)": flows_by(owner=large, status="failed"),
        "of one owner, goal has a word": lambda: ("/v1/flows", {"owner": owner(), "q": "invoice"}),
        "the page: newest flows": flows_by(),
        "the page: counts and rates": lambda: ("/v1/statistics", {"minutes": "60"}),
        "the page: a flow": lambda: (f"/v1/flows/{rng.choice(ids)}", {}),
        "the page: its timeline": lambda: (
            f"/v1/flows/{rng.choice(ids)}/history", {"order": "desc", "limit": "100"},
        ),
        "the page: newest events": lambda: ("/v1/events", {"limit": "50"}),
        "the page: wait is over": lambda: (
            "/v1/flows", {"waiting": "any", "wait_ends_before": ago(0.1), "sort": "wait"},
        ),
        "the page: wait ends soon": flows_by(sort="wait"),
        "the page: running, quiet": lambda: (
            "/v1/flows", {"status": "running", "updated_before": ago(0)},
        ),
        "the page: cancel asked for (none is)": flows_by(
            cancel_requested="true", status="created,running,waiting"
        ),
        "the page: failed in the last hour": lambda: (
            "/v1/flows", {"status": "failed", "updated_after": ago(60)},
        ),
        "the page: goal has a word and a number": lambda: (
            "/v1/flows", {"q": f"invoice {rng.randrange(flows)}"},
        ),
    }  # fmt: skip


async def asked(
    settings: Settings, state_dir: Path, flows: int, times: int
) -> AsyncIterator[tuple[str, list[float]]]:
    """Each question, and the milliseconds that its answers took."""
    async with watched_views(settings, state_dir) as views:
        await views.ready()
        for name, ask in questions(flows).items():
            yield name, [await views.took_ms(*ask()) for _ in range(times)]


# A million flows


async def with_a_million(
    home: Path, flows: int, more: int, times: int, steps: Collection[str]
) -> AsyncIterator[str]:
    """What `home` keeps of an earlier run is gone on with."""
    kept = home / "figures.json"
    figures: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    state_dir = home / "views"
    async with embedded_broker(data_dir=home / "broker") as broker:
        settings = Settings(
            bootstrap_servers=broker.bootstrap, topic_prefix="million", partitions=PARTITIONS
        )
        author = audited.Author(PARTITIONS, settings.topic_prefix, figures.get("next_ids", []))

        async def grown(count: int) -> CaughtUp:
            before, first = figures.get("events", 0), figures.get("flows", 0) + 1
            written = await audited.write(settings, author.flows(first, count))
            figures.update(
                flows=first - 1 + count, events=before + written, next_ids=author.next_ids
            )
            kept.write_text(json.dumps(figures))
            return await caught_up(settings, state_dir, before, written)

        if {"fill", "more"} & set(steps):
            yield (
                "One view worker catching up with an audit that was there before it:\n\n"
                "| view of | events | wall s | events/s | slowest tenth | CPU s | peak MiB |\n"
                "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
            )
        if "fill" in steps:
            await create_topics(settings)
            yield _caught("nothing yet", await grown(flows))
        if "more" in steps:
            there = figures["flows"]
            yield _caught(f"{there:,} flows", await grown(more))
        if "ask" in steps:
            size = sum(path.stat().st_size for path in (state_dir / "views").glob("*.sqlite"))
            yield (
                f"\nQuestions over HTTP among {figures['flows']:,} flows and {figures['events']:,} "
                f"events ({size / 2**20:,.0f} MiB), one after the other, ms:\n\n"
                "| question | p50 | p99 | max |\n| --- | ---: | ---: | ---: |"
            )
            async for name, took in asked(settings, state_dir, figures["flows"], times):
                yield f"| {name} | {_percentiles(took)} |"


def _caught(what: str, c: CaughtUp) -> str:
    return (
        f"| {what} | {c.events:,} | {c.took_s:.1f} | {c.events / c.took_s:,.0f} | "
        f"{c.slowest_per_s:,.0f} | {c.cpu_s:.1f} | {c.peak_mib:.0f} |"
    )


# Lag


async def lag(home: Path, bootstrap: str, seconds: int, rate_per_s: int) -> list[float]:
    """Milliseconds from the broker's append of an outcome until an answer includes its event, by
    the clock of this machine, on which the broker runs, too. An outcome is first read from its
    topic, so that some of them were in the view before anybody asked."""
    settings = Settings(bootstrap_servers=bootstrap, topic_prefix="lag", partitions=PARTITIONS)
    ids = flow_ids(500)
    lags: list[float] = []
    warm_ms = (time.time() + WARM_UP_S) * 1000
    async with (
        running_worker(settings, home / "worker"),
        watched_views(settings, home / "views") as views,
        AIOKafkaProducer(bootstrap_servers=bootstrap) as producer,
        AIOKafkaConsumer(
            Topics(settings.topic_prefix).outcomes,
            bootstrap_servers=bootstrap,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        ) as outcomes,
        asyncio.TaskGroup() as group,
    ):
        await views.ready()

        async def looked_for(flow_id: str, event_id: int, at_ms: int) -> None:
            await views.get(f"/v1/flows/{flow_id}", after=str(event_id), wait="30000")
            if at_ms >= warm_ms:
                lags.append(time.time() * 1000 - at_ms)

        async def look() -> None:
            async for number, record in _numbered(outcomes):
                if number % WATCHED == 0:
                    outcome = orjson.loads(record.value)
                    (event_id, *_) = outcome["event_ids"]
                    group.create_task(looked_for(outcome["flow_id"], event_id, record.timestamp))

        looking = group.create_task(look())
        commands = Topics(settings.topic_prefix).commands
        for place, key, value in creating(ids):
            await producer.send(commands, value, key.encode(), partition=place)
        await _steadily(producer, commands, ids, WARM_UP_S + seconds, rate_per_s)
        await asyncio.sleep(2)
        looking.cancel()
    return lags


async def _numbered(consumer: AIOKafkaConsumer) -> AsyncIterator[tuple[int, Any]]:
    number = 0
    async for record in consumer:
        yield number, record
        number += 1


async def _steadily(
    producer: AIOKafkaProducer, topic: str, ids: Sequence[str], seconds: int, rate_per_s: int
) -> None:
    began_s, sent = time.perf_counter(), 0
    while (passed_s := time.perf_counter() - began_s) < seconds:
        while sent < passed_s * rate_per_s:
            flow_id = ids[sent % len(ids)]
            command = {
                "kind": "update_state",
                "command_id": f"00000000-0000-4000-8000-{sent:012x}",
                "flow_id": flow_id,
                "issued_by": "agent:bench:session:1",
                "patch": {"processed": sent},
            }
            key = flow_id.encode()
            await producer.send(
                topic, orjson.dumps(command), key, partition=partition_of(key, PARTITIONS)
            )
            sent += 1
        await asyncio.sleep(TICK_S)


# What is printed


async def report(
    flows: int = FLOWS,
    *,
    more: int = MORE,
    times: int = ASKED,
    seconds: int = 30,
    rate_per_s: int = RATE_PER_S,
    steps: Collection[str] = STEPS,
    keep: Path | None = None,
) -> AsyncIterator[str]:
    """Lines of Markdown, as they become known. The large view lies in `keep`, so that its steps can
    be measured one by one."""
    if "lag" in steps:
        with tempfile.TemporaryDirectory() as home:
            async with embedded_broker() as broker:
                lags = await lag(Path(home), broker.bootstrap, seconds, rate_per_s)
        yield (
            f"From an outcome's append until an answer of a view includes it, {rate_per_s:,} "
            f"commands a second over {seconds} s, one worker and one view worker, ms:\n\n"
            "| looked for | p50 | p99 | max |\n| ---: | ---: | ---: | ---: |\n"
            f"| {len(lags):,} | {_percentiles(lags)} |\n"
        )
    large = [step for step in steps if step != "lag"]
    if large:
        with nullcontext(keep) if keep else tempfile.TemporaryDirectory() as home:
            async for line in with_a_million(Path(home), flows, more, times, large):
                yield line


def _percentiles(values: Sequence[float]) -> str:
    return " | ".join(f"{percentile(values, p):.1f}" for p in (50, 99, 100))


async def _main(chosen: argparse.Namespace) -> None:
    print(machine())
    print(f"load average before: {os.getloadavg()[0]:.2f}\n", flush=True)
    async for line in report(**vars(chosen)):
        print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flows", type=int, default=FLOWS)
    parser.add_argument("--more", type=int, default=MORE, help="flows that come afterwards")
    parser.add_argument("--times", type=int, default=ASKED, help="each question is asked")
    parser.add_argument("--seconds", type=int, default=30, help="for which lag is measured")
    parser.add_argument("--rate-per-s", type=int, default=RATE_PER_S, help="commands, for lag")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--keep", type=Path, help="where the large view stays, for more steps")
    uvloop.run(_main(parser.parse_args()))
