"""What managed steps cost: whole steps a second, from a schedule to the first line of its handler,
leases that end, and leases at rest.

Run it: .venv/bin/python -m tests.benchmarks.steps [throughput] [handler] [lapse] [rest]
"""

import argparse
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import uvloop

from processor.embedded.broker import EmbeddedBroker, embedded_broker
from tests.benchmarks import throughput as plain
from tests.benchmarks.results import Run, arguments
from tests.benchmarks.running import machine
from tests.benchmarks.steps import handler, hops, lapse, leases, throughput

STEPS: Final = ("throughput", "handler", "lapse", "rest")
WARM_UP: Final = 50_000
"""Commands before the first figure: the broker's JVM compiles itself."""


class Bench:
    """One broker for all, and the rows that are measured."""

    def __init__(self, chosen: argparse.Namespace, home: Path, broker: EmbeddedBroker) -> None:
        self._chosen = chosen
        self._home = home
        self._broker = broker
        self.rows: list[dict[str, Any]] = []

    def _took(self, step: str, r: dict[str, float]) -> dict[str, float]:
        self.rows.append({"step": step, **r})
        return r

    async def throughput(self) -> AsyncIterator[str]:
        yield "Whole steps, scheduled, started and completed; CPU seconds per 100,000 commands:\n"
        yield (
            "| processes | steps/s | commands/s | commands a transaction | worker CPU s "
            "| broker CPU s | load CPU s | peak MiB |"
        )
        yield "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
        for number, processes in enumerate(self._chosen.processes * self._chosen.runs):
            shape = throughput.Shape(self._chosen.steps, processes=processes)
            r = self._took(
                "throughput",
                await throughput.measure(self._home, self._broker, shape, prefix=f"steps-{number}"),
            )
            yield (
                f"| {processes} | {r['steps_per_s']:,.0f} | {r['rate_per_s']:,.0f} | "
                f"{r['commands_a_transaction']:,.0f} | {r['worker_cpu_s']:.1f} | "
                f"{r['broker_cpu_s']:.1f} | {r['load_cpu_s']:.1f} | {r['peak_mib']:,.0f} |"
            )

    async def handler(self) -> AsyncIterator[str]:
        yield "\nFrom when a step was due to be scheduled to its handler's first line, ms:\n"
        yield "| steps/s | p50 | p95 | p99 | max | never begun |"
        yield "| ---: | ---: | ---: | ---: | ---: | ---: |"
        r = self._took(
            "handler",
            await handler.measure(
                self._home,
                self._broker.bootstrap,
                rate_per_s=self._chosen.rate,
                seconds=self._chosen.seconds,
                prefix="handler",
            ),
        )
        shown = " | ".join(f"{r[name]:,.1f}" for name in ("p50", "p95", "p99", "max"))
        yield f"| {r['rate_per_s']} | {shown} | {r['not_begun']} |"
        yield "\nOf that, ms, by the times of appends:\n"
        yield "| hop | p50 | p99 |"
        yield "| --- | ---: | ---: |"
        for hop in hops.HOPS:
            yield f"| {hop} | {r[f'{hop} p50']:,.1f} | {r[f'{hop} p99']:,.1f} |"

    async def lapse(self) -> AsyncIterator[str]:
        yield "\nLeases that end, and are handed out again, ms:\n"
        yield "| leases/s | beside updates/s | part | p50 | p99 |"
        yield "| ---: | ---: | --- | ---: | ---: |"
        for ordinary_per_s in self._chosen.ordinary:
            load = lapse.Lapses(
                self._broker.bootstrap,
                f"lapse-{ordinary_per_s}",
                self._chosen.rate,
                self._chosen.seconds,
                ordinary_per_s,
            )
            r = self._took("lapse", await lapse.measure(self._home, load))
            for part, meaning in lapse.PARTS.items():
                yield (
                    f"| {r['rate_per_s']} | {ordinary_per_s:,} | {meaning} | "
                    f"{r[f'{part}_p50']:,.0f} | {r[f'{part}_p99']:,.0f} |"
                )
            if r["not_handed_out"]:
                yield f"{r['not_handed_out']} were not handed out again in time."

    async def rest(self) -> AsyncIterator[str]:
        yield "\nLeases at rest, one worker:\n"
        yield "| leases | restored in s | tables MiB | CPU at rest, % of a core | MiB |"
        yield "| ---: | ---: | ---: | ---: | ---: |"
        for count in (0, self._chosen.leases):
            r = self._took(
                "rest",
                await leases.measure(
                    self._home, self._broker.bootstrap, count, prefix=f"rest-{count}"
                ),
            )
            yield (
                f"| {count:,} | {r['restored_s']:.1f} | {r['table_mib']:,.0f} | "
                f"{r['idle_percent']:.1f} | {r['mib']:,.0f} |"
            )


async def main(chosen: argparse.Namespace) -> None:
    print(machine())
    print(f"load average before: {os.getloadavg()[0]:.2f}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with embedded_broker(properties=plain.JOINED_TOGETHER) as broker:
            bench = Bench(chosen, home, broker)
            await plain.measure(home, broker, plain.Shape(chosen.warm_up), prefix="warm-up")
            for step in chosen.which or STEPS:
                async for line in getattr(bench, step)():
                    print(line, flush=True)
    print(f"\nload average after: {os.getloadavg()[0]:.2f}")
    Run("steps", arguments(chosen), bench.rows).keep(chosen.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", nargs="*", choices=STEPS, metavar="WHAT", default=None)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rate", type=int, default=100, help="steps, or leases, a second")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--ordinary", type=int, nargs="+", default=[0, 1_000])
    parser.add_argument("--leases", type=int, default=1_000_000)
    parser.add_argument("--warm-up", type=int, default=WARM_UP, help="commands")
    parser.add_argument("--results", type=Path, help="the folder where the figures are kept")
    uvloop.run(main(parser.parse_args()))
