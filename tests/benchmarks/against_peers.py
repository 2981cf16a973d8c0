"""taskflow beside what others build with their own libraries, interleaved on one broker.

Each peer does the reference work: it validates the same commands, keeps the flows in its store,
writes an audit event for each command, exactly once. Rows "whole contract" keep taskflow's contract
beside that, as taskflow does: outcomes, chain, ledger, snapshots. What is measured is seen from
outside, for all in the same way. Throughput: from the first record written to the last one
committed on the topic of which there is one record a command. Latency: from when a command was due
to where a consumer has its answer, at steady rates.

Run it: .venv/bin/python -m tests.benchmarks.against_peers throughput latency
Peers are built where `--build` says; one whose tools are missing is left out, with a sentence.
"""

import argparse
import asyncio
import os
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from tests.benchmarks import paced, throughput
from tests.benchmarks.contestants import (
    BUILD,
    PARTITIONS,
    Contestant,
    Taskflow,
    create_plain_topics,
    peers_for_latency,
    peers_for_throughput,
)
from tests.benchmarks.results import Run, arguments
from tests.benchmarks.running import cpu_s, machine, memory_bytes, publish_to
from tests.benchmarks.throughput import POLL_S, WEIGHED_EVERY_S, Shape, pause_s

STEPS: Final = ("throughput", "latency")
FLOWS: Final = 20_000
QUIET_S: Final = 2.0
PATIENCE_S: Final = 240.0
INPUT: Final = "peers.commands"
WARM_UP: Final = 50_000
"""Commands before the first one that counts: the broker's JVM compiles itself."""


async def load(settings: Settings, count: int) -> None:
    """The peers' commands, as taskflow's lie on its own topic."""
    flows = [str(uuid.UUID(int=(7 << 120) + n * 7919)) for n in range(FLOWS)]
    places = [partition_of(flow.encode(), PARTITIONS) for flow in flows]
    numbers = ((i % len(flows), i // len(flows)) for i in range(count))
    commands = (
        (places[n], flows[n], paced.in_reference_words(throughput.command(flows[n], t, n)))
        for n, t in numbers
    )
    await publish_to(settings, INPUT, commands)


class Watch:
    """The ends of a topic, written and committed."""

    def __init__(self, bootstrap: str, topic: str) -> None:
        self._tps = [TopicPartition(topic, p) for p in range(PARTITIONS)]
        self._written = AIOKafkaConsumer(bootstrap_servers=bootstrap)
        self._committed = AIOKafkaConsumer(
            bootstrap_servers=bootstrap, isolation_level="read_committed"
        )

    async def __aenter__(self) -> "Watch":
        await self._written.start()
        await self._committed.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._written.stop()
        await self._committed.stop()

    async def written(self) -> int:
        return sum((await self._written.end_offsets(self._tps)).values())

    async def committed(self) -> int:
        return sum((await self._committed.end_offsets(self._tps)).values())


async def measured(
    watch: Watch, process: psutil.Process, broker: psutil.Process, count: int
) -> dict[str, float]:
    """Rates and costs of `count` commands, the markers of transactions aside; the peer's CPU from
    its start, with what its runtime compiles."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not await watch.written():
        assert process.is_running(), "it has ended"
        assert time.monotonic() < deadline_s, "it has written nothing"
        await asyncio.sleep(POLL_S / 2)
    began_s = changed_s = time.monotonic()
    broker_began_s, total, peak, weighed_s = cpu_s(broker), 0, 0.0, 0.0
    spent = broker_spent = 0.0
    seen: list[tuple[float, int]] = []
    while total < count or time.monotonic() - changed_s < QUIET_S:
        if time.monotonic() - began_s > PATIENCE_S:
            break  # what is committed by then counts, as all is measured to `changed_s`
        end = await watch.committed()
        if time.monotonic() - weighed_s > WEIGHED_EVERY_S:
            weighed_s, peak = time.monotonic(), max(peak, memory_bytes(process))
        if end > total:
            total, changed_s = end, time.monotonic()
            spent, broker_spent = cpu_s(process), cpu_s(broker) - broker_began_s
            seen.append((changed_s, total))
        await asyncio.sleep(pause_s(total, count))
    done = min(total, count)
    half_s, half = next((at for at in seen if at[1] >= total / 2), seen[-1])
    return {
        "commands": done,
        "wall_s": changed_s - began_s,
        "rate_per_s": done / (changed_s - began_s),
        "second_half_per_s": (total - half) / max(changed_s - half_s, 1e-9),
        "cpu_s": spent * 100_000 / done,
        "broker_cpu_s": broker_spent * 100_000 / done,
        "peak_mib": peak / 2**20,
    }


async def throughput_of(
    contestant: Contestant, home: Path, broker: EmbeddedBroker, count: int
) -> dict[str, float]:
    """One turn over commands that lie there when it starts: a peer's on INPUT, for all peers."""
    bootstrap = broker.bootstrap
    if isinstance(contestant, Taskflow):
        channel = await contestant.prepare(bootstrap)
        await throughput.load(contestant.settings(bootstrap, channel.name), Shape(count))
    else:
        channel = await contestant.prepare(bootstrap, INPUT)
        # As long a topic, of which it does a share.
        count = int(count * contestant.share)
    async with (
        Watch(bootstrap, channel.outcomes_topic) as watch,
        contestant.running(home, bootstrap, channel) as process,
    ):
        return await measured(watch, process, psutil.Process(broker.pid), count)


async def latency_of(
    contestant: Contestant, home: Path, broker: EmbeddedBroker, rate_per_s: int, seconds: int
) -> dict[str, float]:
    """One turn at a steady rate."""
    channel = await contestant.prepare(broker.bootstrap)
    async with contestant.running(home, broker.bootstrap, channel):
        return await paced.measure(
            paced.Load(
                broker.bootstrap,
                channel.commands,
                channel.outcomes_topic,
                rate_per_s,
                seconds,
                contestant.reference_words,
            )
        )


async def report_throughput(
    chosen: argparse.Namespace, home: Path, broker: EmbeddedBroker, rows: list[dict[str, Any]]
) -> AsyncIterator[str]:
    others = [p for p in peers_for_throughput(chosen.build) if chosen.only in p.name]
    contestants: list[Contestant] = [*map(Taskflow, chosen.processes), *others]
    yield (
        f"{chosen.commands:,} commands over {FLOWS:,} flows, {PARTITIONS} partitions; "
        "CPU seconds per 100,000 commands, from the program's start:\n"
    )
    yield "| | load average | commands/s | second half/s | CPU s | broker CPU s | peak MiB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    await create_plain_topics(broker.bootstrap, [INPUT])
    await load(Settings(bootstrap_servers=broker.bootstrap), chosen.commands)
    for turn in range(chosen.runs):
        for contestant in contestants:
            load_average = os.getloadavg()[0]
            r = await throughput_of(contestant, home, broker, chosen.commands)
            rows.append({"of": contestant.name, "turn": turn, "load_average": load_average, **r})
            yield (
                f"| {contestant.name} | {load_average:.1f} | {r['rate_per_s']:,.0f} | "
                f"{r['second_half_per_s']:,.0f} | {r['cpu_s']:.2f} | "
                f"{r['broker_cpu_s']:.2f} | {r['peak_mib']:.0f} |"
            )


async def report_latency(
    chosen: argparse.Namespace, home: Path, broker: EmbeddedBroker, rows: list[dict[str, Any]]
) -> AsyncIterator[str]:
    others = [p for p in peers_for_latency(chosen.build) if chosen.only in p.name]
    contestants: list[Contestant] = [*map(Taskflow, chosen.processes), *others]
    yield (
        f"\nFrom when a command was due to its answer, {paced.FLOWS:,} flows, {PARTITIONS} "
        f"partitions, {chosen.seconds} s each, after {paced.AT_FIRST:,} commands at once; ms:\n"
    )
    yield paced.HEADER.format("")
    for turn in range(chosen.runs):
        for rate_per_s in chosen.rates:
            for contestant in contestants:
                if not isinstance(contestant, Taskflow) and rate_per_s > contestant.most_per_s:
                    continue
                load_average = os.getloadavg()[0]
                r = await latency_of(contestant, home, broker, rate_per_s, chosen.seconds)
                rows.append(
                    {"of": contestant.name, "turn": turn, "load_average": load_average, **r}
                )
                yield paced.row(contestant.name, r)


async def main(chosen: argparse.Namespace) -> None:
    print(machine() + "\n")
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        async with embedded_broker(properties=throughput.JOINED_TOGETHER) as broker:
            await throughput.measure(home, broker, Shape(WARM_UP), prefix="warm-up")
            for step, report in zip(STEPS, (report_throughput, report_latency), strict=True):
                if step not in (chosen.steps or STEPS):
                    continue
                rows: list[dict[str, Any]] = []
                async for line in report(chosen, home, broker, rows):
                    print(line, flush=True)
                Run(f"peers-{step}", arguments(chosen), rows).keep(chosen.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", choices=[[], *STEPS], metavar="STEP", default=[])
    parser.add_argument("--commands", type=int, default=400_000)
    parser.add_argument("--rates", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--seconds", type=int, default=20, help="of a turn that measures latency")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--only", default="", help="peers whose names hold this text")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--build", type=Path, default=BUILD)
    parser.add_argument("--results", type=Path, help="the folder where the figures are kept")
    uvloop.run(main(parser.parse_args()))
