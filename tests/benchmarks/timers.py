"""What waits cost, and how late they end: a million of them at rest, a hundred that end every
second, and a herd that ends in one.

Whether a wake came early or twice is read from the audit afterwards, not asked of the worker.
"""

import asyncio
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.sqlite.integrity_check import BACKGROUND_AFTER_S
from processor.client import AuditStream, FlowClient
from processor.contract import FlowEvent
from processor.contract.events import Resumed
from processor.contract.values import instant, parse_timestamp
from processor.embedded.broker import embedded_broker
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from tests.benchmarks import latency
from tests.benchmarks.running import cpu_s, free_address, percentile, publish, running_worker

PARTITIONS = 4
OWNER = "agent:bench:session:1"
DAY_MS = 86_400_000
PATIENCE_S = 900
POLL_S = 0.2
READY_POLL_S = 0.01

NEAR = 1_000
NEAR_SPREAD_MS = 10_000
IDLE_S = 20
SETTLE_S = 5
BUSY = 0.25
"""More of a core than this is no idling: the worker still checks its tables."""

LAG_TIMERS_PER_S = 100
LAG_LEAD_S = 15

HERD_ORDINARY_PER_S = 200
HERD_LEAD_S = 15
HERD_PLAIN_S = 8
"""For how long ordinary commands are counted before the herd comes, at least."""

STEPS = ("set-up", "rest", "fill", "lag", "herd")
AT_REST = frozenset(STEPS[:3])

Commands = Iterator[tuple[int, str, bytes]]


# What is sent


def flow_ids(count: int, *, first: int = 1) -> list[str]:
    """Spread like random ids: an index on them is met in no order."""
    return [_uuid(number) for number in range(first, first + count)]


def _uuid(number: int) -> str:
    return str(uuid.UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128))


def _command(flow_id: str, kind: str, **fields: object) -> tuple[int, str, bytes]:
    own = uuid.uuid5(uuid.UUID(flow_id), kind)
    body = {"kind": kind, "command_id": str(own), "flow_id": flow_id, "issued_by": OWNER, **fields}
    place = partition_of(flow_id.encode(), PARTITIONS)
    return place, flow_id, json.dumps(body, separators=(",", ":")).encode()


def creating(flow_ids: Iterable[str]) -> Commands:
    for flow_id in flow_ids:
        yield _command(
            flow_id,
            "create_mirrored",
            controller_id="bench/inbox",
            goal="triage the inbox",
            requester_origin="user-1",
            state_json={"messages": 10, "processed": 0},
        )


def waiting(due: Mapping[str, int]) -> Commands:
    for flow_id, at_ms in due.items():
        wait = {"kind": "timer", "at": instant(at_ms)}
        yield _command(flow_id, "set_waiting", wait=wait)


def both(due: Mapping[str, int]) -> Commands:
    """Each flow's two commands one after the other."""
    for pair in zip(creating(due), waiting(due), strict=True):
        yield from pair


# Who is watched


class Watched:
    """A worker from its start, seen through its process and over HTTP."""

    def __init__(self, process: psutil.Process, url: str, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.peak_bytes = 0
        self._url = url
        self._session = session
        self._started_s = time.monotonic()

    async def taken_over(self) -> tuple[float, float]:
        """Seconds to where all partitions run: from its start, and from their assignment."""
        assigned_s: float | None = None
        while True:
            report = await self._report()
            now_s = time.monotonic()
            if report is not None and report["joined"]:
                assigned_s = now_s if assigned_s is None else assigned_s
                if report["ready"] and len(report["partitions"]) == PARTITIONS:
                    return now_s - self._started_s, now_s - assigned_s
            assert now_s - self._started_s < PATIENCE_S, report
            await asyncio.sleep(READY_POLL_S)

    async def until(self, value: float, metric: str, *labels: str) -> None:
        """Wait until `metric` says `value`."""
        deadline_s = time.monotonic() + PATIENCE_S
        while (said := await self.says(metric, *labels)) < value:
            assert time.monotonic() < deadline_s, f"{metric} {labels} is {said}, not {value}"
            await asyncio.sleep(POLL_S)
        assert said == value, f"{metric} {labels} is {said}, not {value}"

    async def until_idle(self) -> None:
        """Wait until a large table is checked, which begins a while after it was taken over."""
        await asyncio.sleep(BACKGROUND_AFTER_S + 1)
        while await self.busy(2.0) > BUSY:
            pass

    async def busy(self, seconds: float) -> float:
        """How much of a core it takes, over `seconds`."""
        spent, began = cpu_s(self.process), time.monotonic()
        await asyncio.sleep(seconds)
        return (cpu_s(self.process) - spent) / (time.monotonic() - began)

    async def says(self, metric: str, *labels: str) -> float:
        """The sum of a metric over all label values among which are `labels`."""
        self.peak_bytes = max(self.peak_bytes, self.rss_bytes)
        async with self._session.get(f"{self._url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(
            float(line.rpartition(" ")[2])
            for line in lines
            if line.startswith((f"{metric}{{", f"{metric} "))
            and all(f'"{label}"' in line for label in labels)
        )

    @property
    def rss_bytes(self) -> int:
        return int(self.process.memory_info().rss)

    async def _report(self) -> dict[str, Any] | None:
        self.peak_bytes = max(self.peak_bytes, self.rss_bytes)
        try:
            async with self._session.get(f"{self._url}/ready") as response:
                report: dict[str, Any] = await response.json()
                return report
        except aiohttp.ClientConnectionError:
            return None


@asynccontextmanager
async def watched_worker(settings: Settings, state_dir: Path) -> AsyncIterator[Watched]:
    await create_topics(settings)
    address = free_address()
    async with (
        aiohttp.ClientSession() as session,
        running_worker(settings, state_dir, http=address) as process,
    ):
        yield Watched(process, f"http://{address}", session)


class Ended(NamedTuple):
    """How the waits of some flows ended, by the audit."""

    lags_ms: list[int]
    """From the end of each wait to the append time of its wake."""
    early: int
    twice: int


async def ended(settings: Settings, due: Mapping[str, int]) -> Ended:
    """Raises AssertionError if one has not ended."""
    since = datetime.fromtimestamp(min(due.values()) / 1000 - 60, UTC)
    lags: dict[str, int] = {}
    twice = 0
    async with AuditStream(settings, start=since, follow=False) as events:
        async for event in events:
            if isinstance(event, Resumed) and event.flow_id in due:
                twice += event.flow_id in lags
                lags[event.flow_id] = _lag_ms(event, due)
    assert lags.keys() == due.keys(), f"{len(due) - len(lags)} waits have not ended"
    return Ended(list(lags.values()), sum(lag < 0 for lag in lags.values()), twice)


def _lag_ms(event: FlowEvent, due: Mapping[str, int]) -> int:
    return parse_timestamp(event.at) - due[event.flow_id]


def _now_ms() -> int:
    """As the broker's clock: it runs on the same machine."""
    return time.time_ns() // 1_000_000


def _settings(bootstrap: str, prefix: str) -> Settings:
    return Settings(bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS)


# At rest


async def set_up(settings: Settings, state_dir: Path, count: int) -> dict[str, float]:
    """`count` flows that wait for a day; begun again, it goes on."""
    at_ms, began_s = _now_ms() + DAY_MS, time.monotonic()
    if not _is_there(state_dir):
        await create_topics(settings)
        await publish(settings, both(dict.fromkeys(flow_ids(count), at_ms)))
    async with watched_worker(settings, state_dir) as worker:
        await worker.taken_over()
        await worker.until(count, "taskflow_timers_armed")
        took_s = time.monotonic() - began_s
    return {"set_up_s": took_s, "set_up_peak_mib": worker.peak_bytes / 2**20}


def _is_there(path: Path) -> bool:
    return path.exists()


async def rest(
    settings: Settings, state_dir: Path, count: int, first_near: int
) -> dict[str, float]:
    """What they cost at a restart and at rest; and how late 1,000 near ones among them end."""
    async with watched_worker(settings, state_dir) as worker:
        from_start_s, from_assignment_s = await worker.taken_over()
        await worker.until(count, "taskflow_timers_armed")
        table_bytes = await worker.says("taskflow_table_bytes")
        await worker.until_idle()
        first_ms = _now_ms() + 1000 * (2 * SETTLE_S + IDLE_S)
        near = {
            flow_id: first_ms + number * NEAR_SPREAD_MS // NEAR
            for number, flow_id in enumerate(flow_ids(NEAR, first=first_near))
        }
        await publish(settings, both(near))
        await worker.until(count + NEAR, "taskflow_timers_armed")
        await asyncio.sleep(SETTLE_S)
        idle = await worker.busy(IDLE_S)
        steady_bytes = worker.rss_bytes
        assert await worker.says("taskflow_timers_fired_total") == 0, "idleness was not idle"
        await worker.until(NEAR, "taskflow_timers_fired_total")
    how = await ended(settings, near)
    assert not how.early, how
    assert not how.twice, how
    return {
        "table_mib": table_bytes / 2**20,
        "from_start_s": from_start_s,
        "from_assignment_s": from_assignment_s,
        "rest_peak_mib": worker.peak_bytes / 2**20,
        "steady_mib": steady_bytes / 2**20,
        "idle_percent": 100 * idle,
        "near_p99_ms": percentile(how.lags_ms, 99),
    }


async def schedule_all(settings: Settings, state_dir: Path, count: int) -> dict[str, float]:
    """What they cost at a start without a table."""
    shutil.rmtree(state_dir)
    async with watched_worker(settings, state_dir) as worker:
        restored_s, _ = await worker.taken_over()
        await worker.until(count, "taskflow_timers_armed")
    return {"filled_s": restored_s, "fill_peak_mib": worker.peak_bytes / 2**20}


async def measure_rest(home: Path, count: int, steps: Collection[str]) -> dict[str, float]:
    """The figures of `steps`, beside those that are kept in `home` of earlier ones."""
    state_dir, kept = home / "rest", home / "figures.json"
    figures: dict[str, float] = json.loads(kept.read_text()) if kept.exists() else {"rests": 0}
    async with embedded_broker(data_dir=home / "broker") as broker:
        settings = _settings(broker.bootstrap, "rest")
        if "set-up" in steps:
            figures |= await set_up(settings, state_dir, count)
            kept.write_text(json.dumps(figures))
        if "rest" in steps:
            first_near = count + 1 + int(figures["rests"]) * NEAR
            figures["rests"] += 1
            figures |= await rest(settings, state_dir, count, first_near)
            kept.write_text(json.dumps(figures))
        if "fill" in steps:
            figures |= await schedule_all(settings, state_dir, count)
            kept.write_text(json.dumps(figures))
    return figures


# Lag


async def measure_lag(home: Path, bootstrap: str, seconds: int) -> dict[str, list[float]]:
    """Milliseconds by what was measured: 100 waits a second that end for `seconds`, while 1,000
    ordinary commands a second come."""
    settings = _settings(bootstrap, "lag")
    async with (
        watched_worker(settings, home / "lag") as worker,
        FlowClient(settings) as client,
    ):
        flows = await latency.created(client)
        done = asyncio.Event()
        ordinary = asyncio.create_task(
            latency.steadily(client, flows, rate_per_s=latency.RATE_PER_S, done=done)
        )
        await asyncio.sleep(latency.WARM_UP_S)
        first_ms, count = _now_ms() + LAG_LEAD_S * 1000, seconds * LAG_TIMERS_PER_S
        due = {
            flow_id: first_ms + number * 1000 // LAG_TIMERS_PER_S
            for number, flow_id in enumerate(flow_ids(count))
        }
        await publish(settings, both(due))
        await worker.until(count, "taskflow_timers_armed")
        seen_ms: dict[str, float] = {}
        async with (
            asyncio.timeout(LAG_LEAD_S + seconds + PATIENCE_S),
            AuditStream(settings, start="end") as events,
        ):
            assert _now_ms() < first_ms, "setting the waits took too long"
            async for event in events:
                if isinstance(event, Resumed):
                    seen_ms[event.flow_id] = time.time() * 1000 - due[event.flow_id]
                    if len(seen_ms) == count:
                        break
        last_s = time.time()
        done.set()
        took = await ordinary
    how = await ended(settings, due)
    assert not how.early, how
    assert not how.twice, how
    return {
        "from `wait.at` to the append of the wake (`at` of `resumed`)": [*how.lags_ms],
        "from `wait.at` to `resumed` in an AuditStream": [*seen_ms.values()],
        "ordinary commands meanwhile, from send to outcome": [
            one.ms for one in took if first_ms / 1000 <= one.sent_s <= last_s
        ],
    }


# The herd


@dataclass(frozen=True, slots=True)
class Herd:
    """How `count` waits ended that were over in the same second, and the ordinary commands
    before and during that, in milliseconds."""

    count: int
    took_s: float
    """From the beginning of that second until the last has ended."""
    ended: Ended
    plain_ms: list[float]
    during_ms: list[float]


async def measure_herd(home: Path, bootstrap: str, count: int) -> Herd:
    settings = _settings(bootstrap, "herd")
    async with (
        watched_worker(settings, home / "herd") as worker,
        FlowClient(settings) as client,
    ):
        flows, ids = await latency.created(client), flow_ids(count)
        began_s = time.monotonic()
        await publish(settings, creating(ids))
        await worker.until(count + len(flows), "taskflow_commands_total", "create_mirrored")
        # To set the waits takes as long again; time is left for a slower turn, too.
        lead_s = HERD_LEAD_S + 1.5 * (time.monotonic() - began_s)
        first_ms = _now_ms() + int(lead_s * 1000)
        due = {flow_id: first_ms + number % 1000 for number, flow_id in enumerate(ids)}
        await publish(settings, waiting(due))
        await worker.until(count, "taskflow_timers_armed")
        plain_s = time.time()
        assert plain_s + HERD_PLAIN_S < first_ms / 1000, "setting the waits took too long"
        done = asyncio.Event()
        ordinary = asyncio.create_task(
            latency.steadily(client, flows, rate_per_s=HERD_ORDINARY_PER_S, done=done)
        )
        await worker.until(count, "taskflow_timers_fired_total")
        last_s = time.time()
        done.set()
        took = await ordinary
    first_s = first_ms / 1000
    return Herd(
        count,
        last_s - first_s,
        await ended(settings, due),
        [one.ms for one in took if plain_s + 2 <= one.sent_s < first_s - 0.5],
        [one.ms for one in took if first_s <= one.sent_s <= last_s],
    )


# What is printed


async def report(
    waits: int, herd: int, seconds: int, *, steps: Collection[str] = STEPS, keep: Path | None = None
) -> AsyncIterator[str]:
    """Lines of Markdown, as they become known; each measurement with a broker of its own. What is
    at rest lies in `keep`, so that its steps can be measured one by one."""
    if not AT_REST.isdisjoint(steps):
        async for line in _report_rest(waits, steps, keep):
            yield line
    if "lag" in steps:
        async for line in _report_lag(seconds):
            yield line
    if "herd" in steps:
        async for line in _report_herd(herd):
            yield line


async def _report_rest(waits: int, steps: Collection[str], keep: Path | None) -> AsyncIterator[str]:
    yield f"Flows that wait for a day, one worker, {PARTITIONS} partitions; MiB are the worker's:\n"
    yield (
        "| flows that wait | set-up s | tables MiB | start to ready s | assignment to ready s | "
        "without tables, start to ready s | peak MiB: set-up | with tables | without | "
        f"at rest MiB | CPU at rest, % of a core | p99 lag of {NEAR:,} near ones, ms |"
    )
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    columns = {
        "set_up_s": ".0f", "table_mib": ",.0f", "from_start_s": ".1f", "from_assignment_s": ".1f",
        "filled_s": ".1f", "set_up_peak_mib": ".0f", "rest_peak_mib": ".0f",
        "fill_peak_mib": ".0f", "steady_mib": ".0f", "idle_percent": ".1f", "near_p99_ms": ".0f",
    }  # fmt: skip
    for count in (0, waits) if keep is None else (waits,):
        with tempfile.TemporaryDirectory() if keep is None else nullcontext(str(keep)) as home:
            r = await measure_rest(Path(home), count, steps)
        cells = [format(r[name], how) if name in r else "" for name, how in columns.items()]
        yield f"| {count:,.0f} | {' | '.join(cells)} |"


async def _report_lag(seconds: int) -> AsyncIterator[str]:
    yield (
        f"\n{LAG_TIMERS_PER_S} timers a second over {seconds} s, under {latency.RATE_PER_S:,} "
        "ordinary commands a second, ms:\n"
    )
    yield "| | p50 | p99 | max |\n| --- | ---: | ---: | ---: |"
    async with _fresh() as (home, bootstrap):
        lags = await measure_lag(home, bootstrap, seconds)
    for name, values in lags.items():
        yield f"| {name} | {_percentiles(values)} |"


async def _report_herd(herd: int) -> AsyncIterator[str]:
    yield (
        f"\nTimers that are due in the same second, and {HERD_ORDINARY_PER_S} ordinary commands a "
        "second, ms from send to outcome before and during the herd:\n"
    )
    yield (
        "| timers | last has ended after s | early | twice | "
        "before: p50 | p99 | max | during: p50 | p99 | max |"
    )
    yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    async with _fresh() as (home, bootstrap):
        h = await measure_herd(home, bootstrap, herd)
    yield (
        f"| {h.count:,} | {h.took_s:.1f} | {h.ended.early} | {h.ended.twice} | "
        f"{_percentiles(h.plain_ms)} | {_percentiles(h.during_ms)} |"
    )


def _percentiles(values: list[float]) -> str:
    return " | ".join(f"{percentile(values, p):.1f}" for p in (50, 99, 100))


@asynccontextmanager
async def _fresh() -> AsyncIterator[tuple[Path, str]]:
    """A directory and a broker."""
    with tempfile.TemporaryDirectory() as home:
        async with embedded_broker() as broker:
            yield Path(home), broker.bootstrap
