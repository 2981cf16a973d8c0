"""Runs the benchmarks and prints their tables, with the machine that they were run on."""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop

from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.settings import Settings
from tests.benchmarks import latency, paced, scaling, stages, takeover, throughput, timers
from tests.benchmarks.against_peers import latency_of
from tests.benchmarks.contestants import Taskflow
from tests.benchmarks.results import Run, arguments
from tests.benchmarks.running import machine
from tests.benchmarks.throughput import Shape

WARM_UP = 100_000
"""Commands before the first run: the broker's JVM compiles itself, once in its life; all runs, of
latency too, are on that one broker."""
PROCESSES = (1, 2)
BUSY = 0.8
"""Of the most commands a second: a rate at which a worker is to be asked for its latency."""


async def commands(chosen: argparse.Namespace) -> None:
    print("CPU µs of an update that is accepted, by stage:\n")
    print(stages.report(await stages.measure()) + "\n", flush=True)
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = await stack.enter_async_context(
            embedded_broker(properties=throughput.JOINED_TOGETHER)
        )
        await throughput.measure(home, broker, Shape(WARM_UP), prefix="warm-up")
        most_per_s = await report_throughput(chosen, home, broker)
        await report_through_the_client(chosen, home, broker)
        await report_latency(chosen, home, broker, most_per_s)


async def report_throughput(
    chosen: argparse.Namespace, home: Path, broker: EmbeddedBroker
) -> dict[int, float]:
    """Print it; the most commands a second, by the number of processes."""
    print(
        f"One worker, 4 partitions, 20,000 flows, after {WARM_UP:,} commands that warm the broker "
        "up; CPU and bytes per 100,000 commands; CPU and memory of all its processes together:\n"
    )
    print(scaling.HEADER.format("processes"), flush=True)
    rows: list[dict[str, Any]] = []
    for number, processes in enumerate(PROCESSES * chosen.runs):
        shape = Shape(chosen.commands, processes=processes)
        r = await throughput.measure(home, broker, shape, prefix=f"run-{number}")
        rows.append({"processes": processes, **r})
        print(scaling.row(str(processes), r), flush=True)
    Run("throughput", arguments(chosen), rows).keep(chosen.results)
    return {
        processes: max(row["rate_per_s"] for row in rows if row["processes"] == processes)
        for processes in PROCESSES
    }


async def report_through_the_client(
    chosen: argparse.Namespace, home: Path, broker: EmbeddedBroker
) -> None:
    print("\nFrom when a command was due to its outcome, through FlowClient, ms:\n")
    print("| commands/s | p50 | p95 | p99 | p99.9 | max |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    rows: list[dict[str, Any]] = []
    for number, rate_per_s in enumerate(chosen.rates * chosen.runs):
        settings = Settings(bootstrap_servers=broker.bootstrap, topic_prefix=f"latency-{number}")
        ms = await latency.measure(home, settings, seconds=chosen.seconds, rate_per_s=rate_per_s)
        rows.append({"rate_per_s": rate_per_s, **ms})
        shown = (ms[name] for name in ("p50", "p95", "p99", "p99.9", "max"))
        print(f"| {rate_per_s:,} | {' | '.join(f'{one:.1f}' for one in shown)} |", flush=True)
    Run("latency-client", arguments(chosen), rows).keep(chosen.results)


async def report_latency(
    chosen: argparse.Namespace,
    home: Path,
    broker: EmbeddedBroker,
    most_per_s: Mapping[int, float],
) -> None:
    """At rates that one FlowClient may not reach, and at a share of what was just measured."""
    print(
        "\nThe same with a producer and a consumer in C instead of the client, also at "
        f"{BUSY:.0%} of the most that was measured above; ms:\n"
    )
    print(paced.HEADER.format("processes"), flush=True)
    rows: list[dict[str, Any]] = []
    for processes in PROCESSES * chosen.runs:
        for rate_per_s in (*chosen.paced_rates, int(most_per_s[processes] * BUSY)):
            r = await latency_of(Taskflow(processes), home, broker, rate_per_s, chosen.seconds)
            rows.append({"processes": processes, "most_per_s": most_per_s[processes], **r})
            print(paced.row(str(processes), r), flush=True)
    Run("latency", arguments(chosen), rows).keep(chosen.results)


async def _program(module: str, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", module, *arguments)
    await process.wait()


async def main(chosen: argparse.Namespace) -> None:
    print(machine())
    print(f"load average before: {os.getloadavg()[0]:.2f}\n", flush=True)
    if chosen.timers_only is None and chosen.takeover_only is None:
        await commands(chosen)
    if chosen.commands_only:
        return
    if chosen.timers_only is None and chosen.takeover_only is None:
        print("\nRecorded commands through `taskflow replay check`, from a file:\n", flush=True)
        # A process of its own, as the program is: it has a loop and processes of its own.
        await _program("tests.benchmarks.replay")
        print()
    if chosen.takeover_only is None:
        async for line in timers.report(
            chosen.waits,
            chosen.herd,
            chosen.seconds,
            steps=chosen.timers_only or timers.STEPS,
            keep=chosen.keep,
        ):
            print(line, flush=True)
    if chosen.timers_only is None:
        print()
        async for line in takeover.report(
            chosen.flows,
            chosen.kills,
            steps=chosen.takeover_only or takeover.STEPS,
            keep=chosen.keep,
        ):
            print(line, flush=True)
    if chosen.timers_only is None and not chosen.takeover_only:
        print("\nViews:\n", flush=True)
        sizes = ("--flows", str(chosen.flows), "--seconds", str(chosen.seconds))
        await _program("tests.benchmarks.views", *sizes)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=400_000)
    parser.add_argument("--seconds", type=int, default=30, help="of a run that measures latency")
    parser.add_argument(
        "--commands-only", action="store_true", help="throughput and latency, nothing else"
    )
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--rates", type=int, nargs="*", default=[100, 1_000], help="a second, through FlowClient"
    )
    parser.add_argument(
        "--paced-rates",
        type=int,
        nargs="*",
        default=[100, 1_000, 10_000],
        help="a second, without it",
    )
    parser.add_argument("--waits", type=int, default=1_000_000, help="flows that wait for a day")
    parser.add_argument("--herd", type=int, default=100_000, help="timers due in one second")
    parser.add_argument(
        "--timers-only",
        nargs="*",
        choices=timers.STEPS,
        metavar="STEP",
        help="one or more of %(choices)s",
    )
    parser.add_argument(
        "--keep", type=Path, help="where the flows at rest stay, for their steps one by one"
    )
    parser.add_argument("--flows", type=int, default=1_000_000, help="taken over, and in a view")
    parser.add_argument("--kills", type=int, default=takeover.KILLS, help="with a standby")
    parser.add_argument(
        "--takeover-only",
        nargs="*",
        choices=takeover.STEPS,
        metavar="STEP",
        help="one or more of %(choices)s",
    )
    parser.add_argument("--results", type=Path, help="the folder where the figures are kept")
    uvloop.run(main(parser.parse_args()))
