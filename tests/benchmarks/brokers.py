"""What replication costs, and a broker's loss: one broker, and three with two replicas in sync.

Run it: .venv/bin/python -m tests.benchmarks.brokers [STEP …]
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import uvloop

from processor.adapters.kafka.admin.cluster_inspection import group_members
from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.embedded.cluster import EmbeddedCluster, embedded_cluster
from processor.settings import Settings
from processor.testing.chaos.replicas import Replicas
from tests.benchmarks import paced, scaling, throughput
from tests.benchmarks.results import Run, arguments
from tests.benchmarks.running import (
    Kafka,
    machine,
    percentile,
    publish,
    running_worker,
    settings_for,
)
from tests.benchmarks.takeover import decided, outcomes_since, under_load
from tests.benchmarks.throughput import Shape
from tests.benchmarks.timers import creating, flow_ids

STEPS: Final = ("throughput", "latency", "loss")
WORKERS: Final = 4
PARTITIONS: Final = 4
WARM_UP: Final = 50_000
BROKER_SESSION_S: Final = 9
PROPERTIES: Final = {
    **throughput.JOINED_TOGETHER,
    # As Kafka has it by default: so long may a broker be silent before others lead.
    "broker.session.timeout.ms": f"{BROKER_SESSION_S * 1000}",
    "broker.heartbeat.interval.ms": "2000",
}
LOST: Final = {"kill -9": EmbeddedBroker.kill, "stopped in good order": EmbeddedBroker.stop}
NOTICED_TIMEOUT_S: Final = 60.0
RESUMED_TIMEOUT_S: Final = 60.0
SETTLED_S: Final = 2.0
BEFORE_S: Final = 1.0
"""What is looked at before a loss, to find the last outcome."""


@asynccontextmanager
async def four_workers(settings: Settings, home: Path) -> AsyncIterator[None]:
    """On topics that are made."""
    await create_topics(settings)
    async with AsyncExitStack() as running:
        for number in range(WORKERS):
            state_dir = home / f"{settings.topic_prefix}-{number}"
            await running.enter_async_context(running_worker(settings, state_dir))
        yield


async def latency(home: Path, kafka: Kafka, rate_per_s: int, seconds: int) -> dict[str, float]:
    """As paced.py measures it."""
    settings = settings_for(kafka, f"latency-{rate_per_s}", PARTITIONS)
    topics = Topics(settings.topic_prefix)
    async with four_workers(settings, home):
        return await paced.measure(
            paced.Load(
                kafka.bootstrap,
                topics.commands,
                topics.outcomes,
                rate_per_s,
                seconds,
                reference_words=False,
            )
        )


# The loss of a broker


def longest_pause_s(at_s: Sequence[float]) -> float:
    """Between two outcomes that follow each other; NaN of less than two."""
    ordered = sorted(at_s)
    return max((later - one for one, later in pairwise(ordered)), default=float("nan"))


async def outcomes_until_all_resumed(
    settings: Settings, since: float, others_lead: float
) -> dict[int, list[float]]:
    """When there were outcomes, by partition, from `since` until all have some after `others_lead`
    (POSIX seconds)."""
    async with asyncio.timeout(RESUMED_TIMEOUT_S):
        while True:
            await asyncio.sleep(SETTLED_S)
            outcomes = await outcomes_since(settings, since)
            if all(at_s and max(at_s) > others_lead for at_s in outcomes.values()):
                return outcomes


async def lost(
    cluster: EmbeddedCluster, settings: Settings, how: str, turn: int
) -> dict[str, list[float]]:
    """Lose the broker that leads the outcomes of a partition, and have it back: how many seconds
    went by without an outcome of the partitions that it had led, and of the others."""
    replicas, topic = Replicas(cluster.brokers), Topics(settings.topic_prefix).outcomes
    seen = await replicas.seen_by(cluster.brokers[0])
    leaders = {one.partition: one.leader for one in seen if one.topic == topic}
    victim, *others = sorted(
        cluster.brokers, key=lambda broker: broker.node_id != leaders[turn % PARTITIONS]
    )
    since = time.time() - BEFORE_S
    await LOST[how](victim)
    await replicas.until(
        others[0],
        f"broker {victim.node_id} leads nothing",
        lambda seen: not any(one.leader in (victim.node_id, -1) for one in seen),
        timeout_s=NOTICED_TIMEOUT_S,
    )
    outcomes = await outcomes_until_all_resumed(settings, since, time.time())
    await victim.start()
    await replicas.until_whole(timeout_s=NOTICED_TIMEOUT_S)
    found: dict[str, list[float]] = {"led": [], "others": []}
    for partition, at_s in outcomes.items():
        of = "led" if leaders[partition] == victim.node_id else "others"
        found[of].append(longest_pause_s(at_s))
    return found


async def all_joined(settings: Settings, count: int) -> None:
    """Wait until all workers are members, and have decided `count` commands."""
    async with asyncio.timeout(NOTICED_TIMEOUT_S):
        while await group_members(settings) != WORKERS:  # noqa: ASYNC110 (a broker knows)
            await asyncio.sleep(SETTLED_S)
    await decided(settings, count)


async def report_loss(
    home: Path, cluster: EmbeddedCluster, turns: int, rows: list[dict[str, Any]]
) -> AsyncIterator[str]:
    yield (
        "Seconds without an outcome, of a partition whose outcomes the lost broker led, and of the "
        f"others; a broker may be silent for {BROKER_SESSION_S} s (Kafka's default):\n"
    )
    yield "| the broker is | times | p50 | max | others, p50 | others, max |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    settings = settings_for(cluster, "loss", PARTITIONS)
    ids = flow_ids(1_000)
    async with four_workers(settings, home):
        await publish(settings, creating(ids))
        async with under_load(settings, ids):
            await all_joined(settings, len(ids))
            for how in LOST:
                found: dict[str, list[float]] = {"led": [], "others": []}
                for turn in range(turns):
                    for of, pauses in (await lost(cluster, settings, how, turn)).items():
                        found[of] += pauses
                rows.append({"step": "loss", "how": how, "turns": turns, **found})
                cells = [
                    f"{percentile(found[of], share):.2f}"
                    for of in ("led", "others")
                    for share in (50, 100)
                ]
                yield f"| {how} | {turns} | {' | '.join(cells)} |"
    yield ""


async def report(chosen: argparse.Namespace, rows: list[dict[str, Any]]) -> AsyncIterator[str]:
    """Lines to print; what was measured is added to `rows`, too."""
    steps = chosen.steps or STEPS
    tables: dict[str, list[str]] = {"throughput": [], "latency": []}
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        for brokers, starting in (
            ("one broker, replication 1", embedded_broker(properties=PROPERTIES)),
            ("three, replication 3, 2 in sync", embedded_cluster(properties=PROPERTIES)),
        ):
            async with starting as kafka:
                place = home / type(kafka).__name__
                if set(steps) & set(tables):
                    await throughput.measure(
                        place, kafka, Shape(WARM_UP, workers=WORKERS), prefix="warm-up"
                    )
                if "throughput" in steps:
                    shape = Shape(chosen.commands, workers=WORKERS)
                    r = await throughput.measure(place, kafka, shape)
                    rows.append({"step": "throughput", "brokers": brokers, **r})
                    tables["throughput"].append(scaling.row(brokers, r))
                for rate_per_s in chosen.rates if "latency" in steps else ():
                    r = await latency(place, kafka, rate_per_s, chosen.seconds)
                    rows.append({"step": "latency", "brokers": brokers, **r})
                    tables["latency"].append(paced.row(brokers, r))
                if isinstance(kafka, EmbeddedCluster):
                    if "throughput" in steps:
                        yield "CPU and bytes per 100,000 commands, of all workers and brokers:\n"
                        yield "\n".join([scaling.HEADER.format(""), *tables["throughput"], ""])
                    if "latency" in steps:
                        yield "From when a command was due to its outcome, ms:\n"
                        yield "\n".join([paced.HEADER.format(""), *tables["latency"], ""])
                    if "loss" in steps:
                        async for line in report_loss(place, kafka, chosen.turns, rows):
                            yield line


async def main(chosen: argparse.Namespace) -> None:
    print(machine())
    print(f"load average before: {os.getloadavg()[0]:.2f}\n")
    print(f"{WORKERS} workers of one process, {PARTITIONS} partitions.\n", flush=True)
    rows: list[dict[str, Any]] = []
    async for line in report(chosen, rows):
        print(line, flush=True)
    Run("brokers", arguments(chosen), rows).keep(chosen.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", choices=[[], *STEPS], metavar="STEP", default=[])
    parser.add_argument("--commands", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=15, help="of a run that measures latency")
    parser.add_argument("--rates", type=int, nargs="*", default=[1_000], help="commands a second")
    parser.add_argument("--turns", type=int, default=2, help="how often a broker is lost each way")
    parser.add_argument("--results", type=Path, help="the folder where the figures are kept")
    uvloop.run(main(parser.parse_args()))
