"""The same job with taskflow, Celery on Redis and procrastinate on PostgreSQL, one after the other.

Two worker processes with `SLOTS` jobs at a time each. `throughput`: jobs that do nothing lie there
when the workers start. `latency`: from when a job was due to be sent to its first line, at a steady
rate. `kills`: jobs of 50 ms; every 2 s one of the workers is killed (kill -9, with its children)
and started again, 20 times; what is never done is lost, what is done more than once is told.
Whoever falls silent for `LEASE_S` loses its jobs: a lease, a visibility timeout, a heartbeat.

Run it: .venv/bin/python -m tests.benchmarks.jobs throughput latency kills
"""

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import uvloop

from tests.benchmarks.contestants import BUILD
from tests.benchmarks.jobs.contestants import Contestant, contestants
from tests.benchmarks.jobs.effects import Effects, after_kills, latency, throughput
from tests.benchmarks.results import Run, arguments
from tests.benchmarks.running import machine

STEPS: Final = ("throughput", "latency", "kills")
WORKERS: Final = 2
LEASE_S: Final = 5
SLOTS: Final = {"throughput": 16, "latency": 16, "kills": 2}
"""Of each worker. As many processes with Celery, tasks of one loop with the others."""
WORK_S: Final = 0.05
KILL_EVERY_S: Final = 2.0
PATIENCE_S: Final = 120.0
WARM: Final = 200
ROOT: Final = Path(__file__).parents[3]


class Bench:
    """One contestant with its service: jobs are sent, workers come and go, effects are read."""

    def __init__(self, contestant: Contestant, home: Path, variables: dict[str, str]) -> None:
        self._contestant = contestant
        self._file = home / "effects"
        self._log = home / "workers.log"
        self._variables = variables
        self._sent = 0

    def environment(self, slots: int) -> dict[str, str]:
        return {
            **os.environ,
            **self._variables,
            "PYTHONPATH": str(ROOT),
            "JOBS_EFFECTS": str(self._file),
            "JOBS_LEASE_S": str(LEASE_S),
            "JOBS_SLOTS": str(slots),
        }

    async def worker(self, slots: int) -> asyncio.subprocess.Process:
        with self._log.open("ab") as log:
            return await asyncio.create_subprocess_exec(
                *(*self._contestant.command, "work"),
                env=self.environment(slots),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self) -> str:
        """What the workers have written."""
        return self._log.read_text()

    async def enqueue(
        self, count: int, *, rate_per_s: int = 0, work_s: float = 0.0
    ) -> tuple[range, float]:
        """The numbers of the jobs that were sent, and when the first one was due."""
        numbers = range(self._sent, self._sent + count)
        self._sent += count
        how = map(str, (numbers.start, count, rate_per_s, work_s))
        process = await asyncio.create_subprocess_exec(
            *(*self._contestant.command, "enqueue", *how),
            env=self.environment(1),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, f"{self._contestant.name}: jobs could not be sent"
        return numbers, float(out)

    def effects(self) -> Effects:
        return Effects.of(self._file.read_text().splitlines() if self._file.exists() else ())

    async def done(self, numbers: Sequence[int], within_s: float = PATIENCE_S) -> bool:
        """Wait until each of the jobs was done."""
        deadline_s = time.monotonic() + within_s
        while not all(number in self.effects().ended_s for number in numbers):
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(0.5)
        return True


async def measure(
    contestant: Contestant, steps: Sequence[str], chosen: argparse.Namespace
) -> dict[str, Any]:
    r: dict[str, Any] = {"who": contestant.name}
    async with AsyncExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "service"
        home.mkdir()
        variables = await stack.enter_async_context(contestant.service(home))
        bench = Bench(contestant, home, dict(variables))
        if contestant.name.startswith("procrastinate"):
            await bench_schema(bench, contestant)
        if "throughput" in steps:
            numbers, _ = await bench.enqueue(chosen.jobs)
            async with _Workers(bench, SLOTS["throughput"]):
                await bench.done(numbers)
            r |= throughput(bench.effects(), numbers)
        if "latency" in steps:
            async with _Workers(bench, SLOTS["latency"]):
                warm, _ = await bench.enqueue(WARM)
                await bench.done(warm)
                count = chosen.rate * chosen.seconds
                numbers, due_s = await bench.enqueue(count, rate_per_s=chosen.rate)
                await bench.done(numbers)
            r |= latency(bench.effects(), numbers, due_s, chosen.rate, 2 * chosen.rate)
        if "kills" in steps:
            numbers, _ = await bench.enqueue(chosen.kill_jobs, work_s=WORK_S)
            async with _Workers(bench, SLOTS["kills"]) as workers:
                await bench.done(numbers[:1])
                began_s = time.monotonic()
                for number in range(chosen.kills):
                    await asyncio.sleep(KILL_EVERY_S)
                    await workers.replace(number % WORKERS)
                await bench.done(numbers)
                r["kills_took_s"] = time.monotonic() - began_s
            r |= after_kills(bench.effects(), numbers)
    return r


async def bench_schema(bench: Bench, contestant: Contestant) -> None:
    process = await asyncio.create_subprocess_exec(
        *(*contestant.command, "schema"), env=bench.environment(1)
    )
    assert await process.wait() == 0, "the schema could not be made"


class _Workers:
    """WORKERS of them; killed at the end."""

    def __init__(self, bench: Bench, slots: int) -> None:
        self._bench = bench
        self._slots = slots
        self._running: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> "_Workers":
        for _ in range(WORKERS):
            self._running.append(await self._bench.worker(self._slots))
        return self

    async def replace(self, number: int) -> None:
        worker = self._running[number]
        assert worker.returncode is None, f"a worker has ended by itself:\n{self._bench.log()}"
        os.killpg(worker.pid, signal.SIGKILL)
        await worker.wait()
        self._running[number] = await self._bench.worker(self._slots)

    async def __aexit__(self, *_: object) -> None:
        for worker in self._running:
            if worker.returncode is None:
                os.killpg(worker.pid, signal.SIGKILL)
                await worker.wait()


HEADER: Final = (
    "| | jobs/s | p50 ms | p99 ms | killed | lost | done twice | until all were done, s |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def row(r: dict[str, Any], kills: int) -> str:
    cells = (
        f"{r['jobs_per_s']:,.0f}" if "jobs_per_s" in r else "",
        f"{r['p50']:,.1f}" if "p50" in r else "",
        f"{r['p99']:,.1f}" if "p99" in r else "",
        *(
            (str(kills), str(r["lost"]), str(r["twice"]), f"{r['kills_took_s']:.0f}")
            if "lost" in r
            else ("",) * 4
        ),
    )
    return f"| {r['who']} | {' | '.join(cells)} |"


async def main(chosen: argparse.Namespace) -> None:
    print(machine())
    print(f"load average before: {os.getloadavg()[0]:.2f}\n")
    rows = []
    found = [one for one in contestants(chosen.build) if not chosen.only or one.name in chosen.only]
    print(HEADER, flush=True)
    for contestant in found:
        rows.append(await measure(contestant, chosen.steps, chosen))
        print(row(rows[-1], chosen.kills), flush=True)
    print(f"\nload average after: {os.getloadavg()[0]:.2f}")
    Run("jobs", arguments(chosen), rows).keep(chosen.results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", nargs="*", default=STEPS, choices=[*STEPS, []], metavar="STEP")
    parser.add_argument("--jobs", type=int, default=5_000)
    parser.add_argument("--rate", type=int, default=100, help="jobs a second, for latency")
    parser.add_argument("--seconds", type=int, default=12, help="of the measurement of latency")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--kill-jobs", type=int, default=2_500)
    parser.add_argument("--only", nargs="*", help="contestants by name")
    parser.add_argument("--build", type=Path, default=BUILD)
    parser.add_argument("--results", type=Path, help="the folder where the figures are kept")
    uvloop.run(main(parser.parse_args()))
