"""How throughput, cost and memory change with workers, partitions and payloads, and what a worker
with many partitions costs at rest. Flows: many_flows.py.

Run it: .venv/bin/python -m tests.benchmarks.scaling [STEP …]
"""

import argparse
import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop

from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.settings import Settings
from tests.benchmarks import throughput
from tests.benchmarks.results import Run, arguments
from tests.benchmarks.running import cpu_s, machine, memory_bytes, running_worker
from tests.benchmarks.throughput import Shape

COUNT: Final = 200_000
IDLE_PARTITIONS: Final = 64
IDLE_S: Final = 20
MOST_MIB: Final = 400
"""What a worker should take at most."""
SETTLING_S: Final = 25
"""How long a worker that was just started is left alone before it counts as at rest."""

SHAPES: Final[dict[str, tuple[str, dict[str, Shape]]]] = {
    "workers": (
        "Workers beside each other, 4 partitions",
        {
            "1": Shape(COUNT),
            "1, two processes": Shape(COUNT, processes=2),
            "2": Shape(COUNT, workers=2),
            "4": Shape(COUNT, workers=4),
        },
    ),
    "partitions": (
        "Partitions of one worker",
        {str(count): Shape(COUNT, partitions=count) for count in (1, 4, 16, 64)},
    ),
    "payloads": (
        "Size of what an update writes",
        {
            "200 B": Shape(COUNT, note_bytes=0),
            "2 KiB": Shape(60_000, flows=5_000, note_bytes=2 * 1024),
            "20 KiB": Shape(12_000, flows=1_000, note_bytes=20 * 1024),
            "100 KiB": Shape(3_000, flows=300, note_bytes=100 * 1024),
        },
    ),
}
STEPS: Final = (*SHAPES, "idle")
HEADER: Final = (
    "| {} | commands/s | worker CPU s | broker CPU s | MiB on the wire | peak MiB |\n"
    "| ---: | ---: | ---: | ---: | ---: | ---: |"
)


def weight(mib: float) -> str:
    """Bold where it is more than a worker should take."""
    return f"**{mib:,.0f}**" if mib > MOST_MIB else f"{mib:,.0f}"


def row(name: str, r: dict[str, float]) -> str:
    return (
        f"| {name} | {r['rate_per_s']:,.0f} | {r['worker_cpu_s']:.2f} | {r['broker_cpu_s']:.2f} | "
        f"{r['wire_mib']:,.0f} | {weight(r['peak_mib'])} |"
    )


async def idle(home: Path, broker: EmbeddedBroker) -> dict[str, float]:
    """What a worker without work costs: shares of a core, and MiB."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix="idle", partitions=IDLE_PARTITIONS
    )
    broker_process = psutil.Process(broker.pid)
    async with running_worker(settings, home / "idle") as worker:
        await asyncio.sleep(SETTLING_S)
        before = cpu_s(worker), cpu_s(broker_process)
        await asyncio.sleep(IDLE_S)
        after = cpu_s(worker), cpu_s(broker_process)
        return {
            "worker_cores": (after[0] - before[0]) / IDLE_S,
            "broker_cores": (after[1] - before[1]) / IDLE_S,
            "mib": memory_bytes(worker) / 2**20,
        }


async def report(steps: tuple[str, ...], results: list[dict[str, Any]]) -> AsyncIterator[str]:
    """Lines to print; what was measured is added to `results`, too. All on one warm broker."""
    with tempfile.TemporaryDirectory() as home:
        async with embedded_broker(properties=throughput.JOINED_TOGETHER) as broker:
            await throughput.measure(Path(home), broker, Shape(50_000), prefix="warm-up")
            for step in steps:
                if step == "idle":
                    r = await idle(Path(home), broker)
                    results.append({"step": step, "what": str(IDLE_PARTITIONS), **r})
                    yield (
                        f"A worker at rest, {IDLE_PARTITIONS} partitions: {r['worker_cores']:.1%} "
                        f"of a core, {r['mib']:.0f} MiB; the broker {r['broker_cores']:.1%}.\n"
                    )
                    continue
                title, shapes = SHAPES[step]
                yield f"{title}; CPU and bytes per 100,000 commands:\n\n{HEADER.format(step)}"
                for number, (name, shape) in enumerate(shapes.items()):
                    r = await throughput.measure(
                        Path(home), broker, shape, prefix=f"{step}-{number}"
                    )
                    results.append({"step": step, "what": name, **r})
                    yield row(name, r)
                yield ""


async def main(chosen: argparse.Namespace) -> None:
    print(machine())
    print(f"load average before: {os.getloadavg()[0]:.2f}\n", flush=True)
    results: list[dict[str, Any]] = []
    async for line in report(tuple(chosen.steps or STEPS), results):
        print(line, flush=True)
    Run("scaling", arguments(chosen), results).keep(chosen.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", choices=[[], *STEPS], metavar="STEP", default=[])
    parser.add_argument("--results", type=Path, help="the folder where the figures are kept")
    uvloop.run(main(parser.parse_args()))
