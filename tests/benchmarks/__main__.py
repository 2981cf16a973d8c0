"""Runs the benchmarks and prints their tables, with the machine that they were run on."""

import argparse
import asyncio
import os
import sys
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from processor.broker import embedded_broker
from processor.settings import Settings
from tests.benchmarks import latency, scaling, stages, takeover, throughput, timers
from tests.benchmarks.running import machine
from tests.benchmarks.throughput import Shape

WARM_UP = 100_000
"""Commands before the first run: the broker's JVM compiles itself, once in its life; all runs, of
latency too, are on that one broker."""


async def commands(count: int, seconds: int, runs: int, rates: list[int]) -> None:
    print("CPU µs of an update that is accepted, by stage:\n")
    print(stages.report(await stages.measure()) + "\n", flush=True)
    print(
        f"One worker, 4 partitions, 20,000 flows, after {WARM_UP:,} commands that warm the broker "
        "up; CPU and bytes per 100,000 commands; CPU and memory of all its processes together:\n"
    )
    print(scaling.HEADER.format("processes"), flush=True)
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = await stack.enter_async_context(
            embedded_broker(properties=throughput.JOINED_TOGETHER)
        )
        await throughput.measure(home, broker, Shape(WARM_UP), prefix="warm-up")
        for number, processes in enumerate((1, 2) * runs):
            shape = Shape(count, processes=processes)
            r = await throughput.measure(home, broker, shape, prefix=f"run-{number}")
            print(scaling.row(str(processes), r), flush=True)
        print("\nFrom when a command was due to its outcome, through FlowClient, ms:\n")
        print("| commands/s | p50 | p95 | p99 | p99.9 | max |")
        print("| ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
        for number, rate_per_s in enumerate(rates * runs):
            settings = Settings(
                bootstrap_servers=broker.bootstrap, topic_prefix=f"latency-{number}"
            )
            ms = await latency.measure(home, settings, seconds=seconds, rate_per_s=rate_per_s)
            shown = (ms[name] for name in ("p50", "p95", "p99", "p99.9", "max"))
            print(f"| {rate_per_s:,} | {' | '.join(f'{one:.1f}' for one in shown)} |", flush=True)


async def main(chosen: argparse.Namespace) -> None:
    print(machine())
    print(f"load average before: {os.getloadavg()[0]:.2f}\n", flush=True)
    if chosen.timers_only is None and chosen.takeover_only is None:
        await commands(chosen.commands, chosen.seconds, chosen.runs, chosen.rates)
        print("\nRecorded commands through `taskflow replay check`, from a file:\n", flush=True)
        # A process of its own, as the program is: it has a loop and processes of its own.
        command = (sys.executable, "-m", "tests.benchmarks.replay")
        await (await asyncio.create_subprocess_exec(*command)).wait()
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
        command = (sys.executable, "-m", "tests.benchmarks.views", *sizes)
        await (await asyncio.create_subprocess_exec(*command)).wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=400_000)
    parser.add_argument("--seconds", type=int, default=30, help="of a run that measures latency")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument(
        "--rates", type=int, nargs="+", default=[100, 1_000], help="commands a second, for latency"
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
    uvloop.run(main(parser.parse_args()))
