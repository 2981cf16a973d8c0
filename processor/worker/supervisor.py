"""Run one worker as several processes, each a member of the group, under one parent.

Python decides in one core; the partitions are shared out by the group, as among workers. The
parent holds the state directory, answers over HTTP for all, and starts again what ends; each
process holds the tables of its partitions. They end with their parent, however that goes: then
their standard input ends.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

import aiohttp
import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from processor.adapters.kafka.access.authorization import ensure_startable
from processor.adapters.sqlite import state_dir_lock
from processor.contract.rights import Role
from processor.errors import TaskflowError
from processor.runtime import end_tasks, unless_stopped
from processor.settings import OFF, Settings, variable
from processor.telemetry.health_server import serve

log = structlog.get_logger()

FLOW_CACHE_MIN_BYTES: Final = 1024 * 1024
RESTART_PAUSE_MIN_S: Final = 0.5
RESTART_PAUSE_MAX_S: Final = 30.0
SOUND_AFTER_S: Final = 60.0
"""A process that has lived for so long is started again without a longer pause."""
END_TIMEOUT_S: Final = 8.0
"""A process drains in 5 s; what takes longer is killed."""
RESPONSE_TIMEOUT_S: Final = 2.0
REFUSED, WRONG_USE = 1, 2
"""Exit codes of a process that must not be started again: it has said why."""


class ProcessEnded(TaskflowError):
    """A process of the worker was refused what it needs, and has said why; all of them ended."""

    retriable = False


def environment_of(
    index: int, count: int, settings: Settings, environ: Mapping[str, str]
) -> dict[str, str]:
    """What process `number` of `count` sees: its share of the cache, its own port and name."""
    own = {
        "http": OFF if settings.http is None else "127.0.0.1:0",
        "flow_cache_bytes": str(max(FLOW_CACHE_MIN_BYTES, settings.flow_cache_bytes // count)),
    }
    if settings.instance_id is not None:
        own["instance_id"] = f"{settings.instance_id}-{index}"
    return {**environ, **{variable(field): value for field, value in own.items()}}


def merged_report(reports: Iterable[Mapping[str, Any] | None]) -> dict[str, Any]:
    """What `/ready` says of several processes; None: one that does not answer."""
    reports = list(reports)
    present = [report for report in reports if report is not None]

    def all_say(word: str) -> bool:
        return len(present) == len(reports) and all(report[word] for report in present)

    def said(word: str) -> Any:
        return next((report[word] for report in present if report[word]), None)

    partitions = {n: about for report in present for n, about in report["partitions"].items()}
    return {
        "ready": all_say("ready"),
        "joined": all_say("joined"),
        "denied": said("denied"),
        "missing": said("missing"),
        "partitions": dict(sorted(partitions.items(), key=lambda item: int(item[0]))),
    }


def merged_metrics(texts: Mapping[int, str]) -> bytes:
    """The metrics of several processes, each sample with the label `process`. They are not summed:
    a counter that starts over with its process would seem to go back."""
    families: dict[str, Metric] = {}
    for index, text in texts.items():
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(
                family.name, Metric(family.name, family.documentation, family.type)
            )
            merged.samples += [
                sample._replace(labels={**sample.labels, "process": str(index)})
                for sample in family.samples
            ]

    class Merged(Collector):
        def collect(self) -> Iterable[Metric]:
            return families.values()

    registry = CollectorRegistry()
    registry.register(Merged())
    return generate_latest(registry)


class Child:
    """One process of the worker, started again for as long as the worker runs."""

    def __init__(self, index: int, environment: Mapping[str, str]) -> None:
        self.index = index
        self.restarts = 0
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._url: str | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set; it then finishes the pending batches. Raises ProcessEnded."""
        pause_s = RESTART_PAUSE_MIN_S
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                started_s = time.monotonic()
                process = await self._start()
                ending = asyncio.create_task(process.wait())
                await asyncio.wait({ending, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set():
                    return
                code = await ending
                if code in (REFUSED, WRONG_USE):
                    raise ProcessEnded(
                        f"Process {self.index} of the worker ended with exit code {code}; "
                        "what it said stands above."
                    )
                sound = time.monotonic() - started_s > SOUND_AFTER_S
                pause_s = RESTART_PAUSE_MIN_S if sound else min(2 * pause_s, RESTART_PAUSE_MAX_S)
                log.warning(
                    "a process of the worker ended and is started again",
                    process=self.index,
                    code=code,
                    pause_s=pause_s,
                )
                await self._forget()
                self.restarts += 1
                await asyncio.wait({stopping}, timeout=pause_s)
        finally:
            await end_tasks(stopping)
            await self._end()

    async def _start(self) -> asyncio.subprocess.Process:
        # A session of its own: Ctrl-C in the terminal reaches the parent, which ends us all.
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", "worker", "--process", str(self.index)),
            env=self._environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._hearing = asyncio.create_task(self._read_output(self._process))
        return self._process

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        """Its address, which it says in its first line."""
        assert process.stdout is not None
        if line := await process.stdout.readline():
            address = json.loads(line)["http"]
            self._url = address and f"http://{address}"

    async def _forget(self) -> None:
        self._url = None
        if self._hearing is not None:
            await end_tasks(self._hearing)

    async def _end(self) -> None:
        process = self._process
        if process is None:
            return
        await self._forget()
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def fetch(self, session: aiohttp.ClientSession, path: str) -> bytes | None:
        """Its response over HTTP; None if there is none."""
        if self._url is None:
            return None
        try:
            async with session.get(f"{self._url}{path}") as response:
                return await response.read()
        except (aiohttp.ClientError, TimeoutError):
            return None


async def run_processes(settings: Settings, count: int, *, stop: asyncio.Event) -> None:
    """Run one worker as `count` processes until `stop` is set.

    Raises what `bootstrap.run_worker` raises at its start, and ProcessEnded.
    """
    with state_dir_lock(settings.state_dir):
        # By the parent, so that a wrong layout is said once.
        if await unless_stopped(ensure_startable(settings, Role.WORKER), stop) is None:
            return
        children = [
            Child(index, environment_of(index, count, settings, os.environ))
            for index in range(count)
        ]
        timeout = aiohttp.ClientTimeout(total=RESPONSE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:

            async def fetch_all(path: str) -> list[bytes | None]:
                return await asyncio.gather(*(child.fetch(session, path) for child in children))

            async def report() -> dict[str, Any]:
                said = [
                    None if body is None else json.loads(body) for body in await fetch_all("/ready")
                ]
                processes = {
                    str(child.index): {
                        "pid": child.pid,
                        "ready": bool(one and one["ready"]),
                        "restarts": child.restarts,
                    }
                    for child, one in zip(children, said, strict=True)
                }
                return {**merged_report(said), "processes": processes}

            async def metrics() -> bytes:
                said = await fetch_all("/metrics")
                return merged_metrics(
                    {n: text.decode() for n, text in enumerate(said) if text is not None}
                )

            async with serve(
                settings.http, report=report, metrics=metrics, hosts=settings.http_hosts
            ) as address:
                log.info(
                    "worker started",
                    brokers=settings.bootstrap_servers,
                    prefix=settings.topic_prefix,
                    http=str(address) if address else OFF,
                    processes=count,
                )
                await _together(children, stop)
    log.info("worker stopped")


async def _together(children: Iterable[Child], stop: asyncio.Event) -> None:
    """Run all until `stop` is set, or one of them must not be started again."""
    running = [asyncio.create_task(child.run(stop)) for child in children]
    try:
        await asyncio.wait(running, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        stop.set()
        results = await asyncio.gather(*running, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
