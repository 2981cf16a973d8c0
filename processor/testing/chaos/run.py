"""Run load and one fault after the other, each once the last has healed, and give a verdict."""

import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from processor.adapters.kafka.admin.topic_admin import create_topics, open_admin
from processor.adapters.kafka.client_config import connection_options
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.embedded.errors import EmbeddedBrokerError
from processor.errors import TaskflowError
from processor.settings import PREFIX, Settings, load_settings
from processor.testing.chaos.faults import KILLS, MENU, Act, draw, healed
from processor.testing.chaos.load import LONGEST_WAIT_S, Load, under_load
from processor.testing.chaos.outcome_tracker import NotHealed, OutcomeTracker
from processor.testing.chaos.proxy import Proxy, proxied
from processor.testing.chaos.step_audit import Stop, read_steps
from processor.testing.chaos.worker_process import (
    READY,
    ExecutorProcess,
    WorkerEnded,
    WorkerProcess,
    WorkerSilent,
)

HEAL_TIMEOUT_S: Final = 120.0
START_TIMEOUT_S: Final = 90.0
BETWEEN_S: Final = (0.2, 2.0)
"""From one fault's healing to the next fault, drawn between these."""
BETWEEN_KILLS_S: Final = (0.0, 0.6)
REST_S: Final = 1.0 + LONGEST_WAIT_S
VERIFY_GRACE: Final = "30s"

Notify = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """What is to be done. `seconds` and `kills` end it, whichever comes first; with `kills`,
    nothing but kill -9 is drawn. `bootstrap` None: an embedded broker of our own."""

    seed: int
    seconds: float | None
    kills: int | None = None
    workers: int = 2
    executors: int = 2
    partitions: int = 4
    per_s: int = 200
    bootstrap: str | None = None


@dataclass(slots=True)
class ChaosResult:
    """`violations` are sentences, each with where to look; without any, everything held."""

    plan: ChaosPlan
    prefix: str
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    kills: Counter[str] = field(default_factory=Counter)
    requests: dict[str, int] = field(default_factory=dict)
    sent: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    """How often what happened to steps."""
    heal_s: list[float] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    verified: list[dict[str, Any]] = field(default_factory=list)
    kept: str | None = None
    """Where logs and tables are, if something was violated."""

    @property
    def ok(self) -> bool:
        return not self.violations

    def as_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "ok": self.ok,
            "seed": plan.seed,
            "prefix": self.prefix,
            "workers": plan.workers,
            "executors": plan.executors,
            "partitions": plan.partitions,
            "per_s": plan.per_s,
            "broker": "embedded" if plan.bootstrap is None else "given",
            "seconds": round(self.seconds, 1),
            "faults": dict(sorted(self.faults.items())),
            "kills": dict(sorted(self.kills.items())),
            "requests": dict(sorted(self.requests.items())),
            "commands": {
                "sent": dict(sorted(self.sent.items())),
                "acknowledged": self.acknowledged,
                "verdicts": dict(sorted(self.verdicts.items())),
            },
            "steps": dict(sorted(self.steps.items())),
            "heal_s": _spread(self.heal_s),
            "violations": self.violations,
            "verified": self.verified,
            "kept": self.kept,
        }


def _spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {
        "p50": round(statistics.median(ordered), 2),
        "p99": round(ordered[int(0.99 * (len(ordered) - 1))], 2),
        "max": round(ordered[-1], 2),
    }


async def torture(plan: ChaosPlan, *, environ: Mapping[str, str], notify: Notify) -> ChaosResult:
    """Carry it out. `environ`: as a worker's; who we are to a given cluster is taken from it.

    Raises BrokerUnreachable, TopicsWrong or AccessDenied if it cannot begin.
    """
    prefix = f"torture-{plan.seed}-{os.getpid()}"
    home = Path(tempfile.mkdtemp(prefix="taskflow-torture-"))
    result = ChaosResult(plan, prefix)
    began = time.monotonic()
    try:
        async with _stage(plan, prefix, home, environ, notify) as stage:
            try:
                await _carry_out(stage, plan, result, notify)
            except (NotHealed, WorkerEnded, WorkerSilent, EmbeddedBrokerError) as error:
                result.violations.append(str(error))
            except TimeoutError:
                result.violations.append("The load's last commands were never acknowledged.")
            await _verdict(stage, result, notify)
    finally:
        result.seconds = time.monotonic() - began
        if result.ok:
            shutil.rmtree(home, ignore_errors=True)
        else:
            result.kept = str(home)
    return result


class ChaosStage:
    """Broker, proxy and workers, as long as a trial lasts."""

    def __init__(
        self,
        settings: Settings,
        workers: list[WorkerProcess],
        executors: list[ExecutorProcess],
        broker: EmbeddedBroker | None,
        proxy: Proxy | None,
    ) -> None:
        self.settings = settings
        self.workers = workers
        self.executors = executors
        self.broker = broker
        self.proxy = proxy
        self.session_s = settings.session_timeout_ms / 1000
        self.kills: Counter[str] = Counter()
        self.stops: list[Stop] = []

    def killed(self, what: str) -> None:
        self.kills[what] += 1

    def stopped(self, holder: str, seconds: float) -> None:
        now_ms = time.time_ns() // 1_000_000
        if self.broker is not None:  # another's clock is not ours
            self.stops.append(Stop(holder, now_ms - int(seconds * 1000), now_ms))


@asynccontextmanager
async def _stage(
    plan: ChaosPlan, prefix: str, home: Path, environ: Mapping[str, str], notify: Notify
) -> AsyncIterator[ChaosStage]:
    async with AsyncExitStack() as stack:
        broker, proxy, address, through = None, None, plan.bootstrap, plan.bootstrap
        if address is None:
            notify("starting Apache Kafka ...")
            broker = await stack.enter_async_context(embedded_broker(data_dir=home / "broker"))
            proxy = await stack.enter_async_context(proxied(broker.bootstrap))
            address, through = broker.bootstrap, proxy.bootstrap
        base = _environment(plan, prefix, environ)
        settings = load_settings({**base, "TASKFLOW_BOOTSTRAP_SERVERS": address})
        await create_topics(settings)
        if broker is None:
            stack.push_async_callback(_delete_topics, settings)
        made = []
        for nth in range(plan.workers):
            own = {"TASKFLOW_BOOTSTRAP_SERVERS": through or address}
            if nth % 2 == 0:  # a static member is back at once, another is missed for a session
                own["TASKFLOW_INSTANCE_ID"] = f"w{nth}"
            else:
                own["TASKFLOW_STANDBY"] = "true"
            made.append(WorkerProcess(f"w{nth}", home, {**base, **own}))
        near = {**base, "TASKFLOW_BOOTSTRAP_SERVERS": address}
        executors = [ExecutorProcess(f"e{n}", home, near) for n in range(plan.executors)]
        stage = ChaosStage(settings, made, executors, broker, proxy)
        try:
            await asyncio.gather(*(process.start() for process in (*made, *executors)))
            for worker in made:
                await worker.until_printed(READY, timeout_s=START_TIMEOUT_S)
            yield stage
        finally:
            if proxy is not None:
                proxy.thaw()
            for process in (*made, *executors):
                if process.running:
                    process.resume()
                    await process.kill()


def _environment(plan: ChaosPlan, prefix: str, environ: Mapping[str, str]) -> dict[str, str]:
    """A worker's, with short times, so that much happens in a minute."""
    kept = {
        name: value
        for name, value in environ.items()
        if not name.startswith(PREFIX)
        or (plan.bootstrap and name.startswith(("TASKFLOW_S", "TASKFLOW_REPLICATION_FACTOR")))
        or name in ("TASKFLOW_CACHE_DIR", "TASKFLOW_BROKER_HEAP")
    }
    return {
        **kept,
        "TASKFLOW_TOPIC_PREFIX": prefix,
        "TASKFLOW_PARTITIONS": f"{plan.partitions}",
        "TASKFLOW_HTTP": "off",
        "TASKFLOW_LOG_FORMAT": "json",
        "TASKFLOW_LOG_LEVEL": "info",
        # A cluster takes no shorter one than 6 s by default.
        "TASKFLOW_SESSION_TIMEOUT": "2s" if plan.bootstrap is None else "6s",
        "TASKFLOW_COMMIT_TIMEOUT": "5s",
        "TASKFLOW_WATCHDOG_TIMEOUT": "10s",
        "TASKFLOW_DEDUPE_WINDOW": "2m",
        "TASKFLOW_RETAIN_TERMINAL": "20s",
    }


async def _delete_topics(settings: Settings) -> None:
    with suppress(TaskflowError, KafkaError):
        async with open_admin(settings) as admin:
            await admin.delete_topics([name for name, _ in Topics(settings.topic_prefix)])


async def _carry_out(
    stage: ChaosStage, plan: ChaosPlan, result: ChaosResult, notify: Notify
) -> None:
    settings = stage.settings
    topics, connection = Topics(settings.topic_prefix), connection_options(settings, "torture")
    outcomes = OutcomeTracker(connection, topics, plan.partitions)
    load = None
    try:
        async with under_load(
            connection, topics, plan.partitions, seed=plan.seed, per_s=plan.per_s
        ) as load:
            try:
                await _faults(stage, plan, result, outcomes, load, notify)
            finally:
                result.kills = stage.kills
        notify("the load is over; waiting for the last outcomes, and until nothing waits any more")
        await outcomes.until(load.marks, timeout_s=HEAL_TIMEOUT_S)
        await _come_to_rest(stage, outcomes, result)
    finally:
        if load is not None:
            result.sent, result.acknowledged = load.sent, load.acknowledged
        result.verdicts = outcomes.verdicts
        if stage.proxy is not None:
            result.requests = {
                f"{kind} {fate}": count for (kind, fate), count in stage.proxy.befallen.items()
            }
        await outcomes.close()


async def _faults(
    stage: ChaosStage,
    plan: ChaosPlan,
    result: ChaosResult,
    outcomes: OutcomeTracker,
    load: Load,
    notify: Notify,
) -> None:
    ends = time.monotonic() + (plan.seconds if plan.seconds is not None else float("inf"))
    began, nth = time.monotonic(), 0
    menu: tuple[Act, ...] = MENU if plan.kills is None else KILLS
    between = BETWEEN_S if plan.kills is None else BETWEEN_KILLS_S
    while time.monotonic() < ends and not _enough(stage.kills, plan.kills):
        # Each fault has dice of its own: what it does with them changes nothing for the next.
        dice = random.Random(f"{plan.seed}/{nth}")
        await asyncio.sleep(dice.uniform(*between))
        act = draw(menu, dice, with_broker=stage.broker is not None)
        how = await act.play(stage, dice)
        nth += 1
        result.faults[act.name] += 1
        over = time.monotonic()
        await healed(stage)
        await outcomes.until(dict(load.marks), timeout_s=HEAL_TIMEOUT_S)
        result.heal_s.append(time.monotonic() - over)
        notify(
            f"{_clock(time.monotonic() - began)}  {nth:>4} {act.name} {how}: healed in "
            f"{result.heal_s[-1]:.1f} s; {load.acknowledged:,} commands, "
            f"{stage.kills.total():,} kills"
        )


async def _come_to_rest(stage: ChaosStage, outcomes: OutcomeTracker, result: ChaosResult) -> None:
    """Each process ends once as it should, and goes on without retention, which would go on for as
    long as flows are kept; then the last waits end."""
    for worker in stage.workers:
        if (code := await worker.end()) != 0:
            result.violations.append(f"{worker.name} ended with code {code}, not 0.")
    await asyncio.gather(*(worker.start(RETAIN_TERMINAL="off") for worker in stage.workers))
    await healed(stage)
    topics = Topics(stage.settings.topic_prefix)
    sources = [
        TopicPartition(topic, partition)
        for topic in (topics.commands, topics.control)
        for partition in range(stage.settings.partitions)
    ]
    await outcomes.rest(sources, rest_s=REST_S, timeout_s=HEAL_TIMEOUT_S)
    for executor in stage.executors:
        if (code := await executor.end()) != 0:
            result.violations.append(f"{executor.name} ended with code {code}, not 0.")
    audit = await read_steps(stage.settings, stage.stops)
    result.steps = audit.counts
    result.violations += audit.violations


def _enough(kills: Counter[str], wanted: int | None) -> bool:
    return wanted is not None and kills.total() >= wanted


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


async def _verdict(stage: ChaosStage, result: ChaosResult, notify: Notify) -> None:
    """`taskflow verify` looks at the topics, and at the tables of each worker."""
    notify("verifying the topics and the tables of all workers ...")
    verified = await asyncio.gather(
        *(_verify(stage.settings, worker.state_dir) for worker in stage.workers)
    )
    for report, code in verified:
        result.verified.append(report)
        if code != 0:
            result.violations += [_sentence(one) for one in report.get("violations", [])] or [
                f"`taskflow verify` ended with code {code}: {report.get('told', '')}"
            ]


async def _verify(settings: Settings, state_dir: Path) -> tuple[dict[str, Any], int]:
    """The report of `taskflow verify`, a process of its own as a user would run it."""
    chosen = {
        "BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TOPIC_PREFIX": settings.topic_prefix,
        "PARTITIONS": f"{settings.partitions}",
        "DEDUPE_WINDOW": f"{settings.dedupe_window_ms}ms",
        "STATE_DIR": str(state_dir),
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "verify", "--at-rest", "--grace", VERIFY_GRACE),
        "--json",
        env={**os.environ, **{f"{PREFIX}{name}": value for name, value in chosen.items()}},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    code = process.returncode or 0
    try:
        report: dict[str, Any] = json.loads(out)
    except ValueError:
        report = {"ok": False, "told": errors.decode("utf-8", "replace")[-2000:]}
        code = code or 1
    return report, code


def _sentence(violation: Mapping[str, Any]) -> str:
    where = f"{violation['topic']}/{violation['partition']} offset {violation['offset']}"
    return f"{violation['invariant']} {violation['kind']} at {where}: {violation['message']}"
