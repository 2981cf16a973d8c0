"""Run load and one fault after the other, each once the last has healed, and give a verdict."""

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from aiokafka import TopicPartition

from processor.adapters.kafka.client_config import connection_options
from processor.contract.topics import Topics
from processor.embedded.errors import EmbeddedBrokerError
from processor.settings import PREFIX, Settings
from processor.testing.chaos.cluster_faults import CLUSTER_MENU
from processor.testing.chaos.faults import KILLS, MENU, Act, draw, healed
from processor.testing.chaos.load import LONGEST_WAIT_S, Load, under_load
from processor.testing.chaos.lost_records import lost_records
from processor.testing.chaos.outcome_tracker import NotHealed, OutcomeTracker
from processor.testing.chaos.plan import ChaosPlan, ChaosResult
from processor.testing.chaos.stage import ChaosStage, Notify, opened_stage
from processor.testing.chaos.step_audit import read_steps
from processor.testing.chaos.worker_process import WorkerEnded, WorkerSilent, remove_table

HEAL_TIMEOUT_S: Final = 120.0
BETWEEN_S: Final = (0.2, 2.0)
"""From one fault's healing to the next fault, drawn between these."""
BETWEEN_KILLS_S: Final = (0.0, 0.6)
REST_S: Final = 1.0 + LONGEST_WAIT_S
VERIFY_GRACE: Final = "30s"


async def torture(plan: ChaosPlan, *, environ: Mapping[str, str], notify: Notify) -> ChaosResult:
    """Carry it out. `environ`: as a worker's; who we are to a given cluster is taken from it.

    Raises BrokerUnreachable, TopicsWrong or AccessDenied if it cannot begin.
    """
    prefix = f"torture-{plan.seed}-{os.getpid()}"
    home = Path(tempfile.mkdtemp(prefix="taskflow-torture-"))
    result = ChaosResult(plan, prefix)
    began = time.monotonic()
    try:
        async with opened_stage(plan, prefix, home, environ, notify) as stage:
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


async def _carry_out(
    stage: ChaosStage, plan: ChaosPlan, result: ChaosResult, notify: Notify
) -> None:
    settings = stage.settings
    topics, connection = Topics(settings.topic_prefix), connection_options(settings, "torture")
    outcomes = OutcomeTracker(connection, topics, plan.partitions)
    load = None
    began = time.monotonic()
    try:
        async with under_load(
            connection, topics, plan.partitions, seed=plan.seed, per_s=plan.per_s
        ) as load:
            try:
                await _faults(stage, plan, result, outcomes, load, notify)
            finally:
                result.kills = stage.kills
        loaded_s = time.monotonic() - began
        notify("the load is over; waiting for the last outcomes, and until nothing waits any more")
        await outcomes.until(load.marks, timeout_s=HEAL_TIMEOUT_S)
        # On a slow machine executors end fewer steps than the load schedules, and do the rest now.
        await _come_to_rest(stage, outcomes, result, timeout_s=HEAL_TIMEOUT_S + loaded_s)
        result.violations += await lost_records(settings, load.digests)
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
    if plan.kills is None and stage.replicas is not None:
        menu += CLUSTER_MENU
    between = BETWEEN_S if plan.kills is None else BETWEEN_KILLS_S
    while time.monotonic() < ends and not _enough(stage.kills, plan.kills):
        # Each fault has dice of its own: what it does with them changes nothing for the next.
        dice = random.Random(f"{plan.seed}/{nth}")
        await asyncio.sleep(dice.uniform(*between))
        act = draw(menu, dice, with_broker=bool(stage.brokers))
        how = await act.play(stage, dice)
        nth += 1
        result.faults[act.name] += 1
        over = time.monotonic()
        await healed(stage)
        await outcomes.until(dict(load.marks), timeout_s=HEAL_TIMEOUT_S)
        result.heal_s.append(time.monotonic() - over)
        what = f"{act.name} {how}".rstrip()
        notify(
            f"{_clock(time.monotonic() - began)}  {nth:>4} {what}: healed in "
            f"{result.heal_s[-1]:.1f} s; {load.acknowledged:,} commands, "
            f"{stage.kills.total():,} kills"
        )


async def _come_to_rest(
    stage: ChaosStage, outcomes: OutcomeTracker, result: ChaosResult, *, timeout_s: float
) -> None:
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
    await outcomes.rest(sources, rest_s=REST_S, timeout_s=timeout_s)
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
    """`taskflow verify` looks at the topics, and at the tables of each worker.

    A bit that was flipped in a document is found when a worker reads it, or else by `verify`: then
    such tables are removed, as the operator's page says, and `verify` must find nothing any more.
    """
    notify("verifying the topics and the tables of all workers ...")
    verified = await _verify_all(stage)
    found = [one for report, _ in verified for one in report.get("violations", [])]
    if its := [one for one in found if Path(one["topic"]) in stage.flipped]:
        result.repaired = [_sentence(one) for one in its]
        try:
            await _remove_flipped(stage)
        except (WorkerEnded, WorkerSilent) as error:
            result.violations.append(str(error))
        verified = await _verify_all(stage)
    for report, code in verified:
        result.verified.append(report)
        if code != 0:
            result.violations += [_sentence(one) for one in report.get("violations", [])] or [
                f"`taskflow verify` ended with code {code}: {report.get('told', '')}"
            ]


async def _verify_all(stage: ChaosStage) -> list[tuple[dict[str, Any], int]]:
    return await asyncio.gather(
        *(_verify(stage.settings, worker.state_dir) for worker in stage.workers)
    )


async def _remove_flipped(stage: ChaosStage) -> None:
    """All of them, since `verify` names one violation of a kind, and counts the others."""
    for worker in stage.workers:
        if its := stage.flipped.intersection(worker.tables()):
            await worker.end()
            for path in its:
                remove_table(path)
            await worker.start(RETAIN_TERMINAL="off")
    await healed(stage)


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
