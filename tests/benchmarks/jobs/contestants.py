"""Who does the job: taskflow, Celery on Redis, procrastinate on PostgreSQL."""

import asyncio
import os
import pwd
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import embedded_broker
from processor.settings import Settings
from tests.benchmarks.contestants import BUILD, Missing, python_app
from tests.benchmarks.running import free_address, running_worker

APPS: Final = Path(__file__).parent / "apps"
POSTGRES: Final = Path("/usr/lib/postgresql")
PARTITIONS: Final = 4
SESSION_TIMEOUT: Final = "2s"
PATIENCE_S: Final = 30.0

Environment = Mapping[str, str]
Service = Callable[[Path], AbstractAsyncContextManager[Environment]]
"""What the job is kept in, running: what the app must be told."""


@dataclass(frozen=True)
class Contestant:
    """How its app is run, and in what it keeps jobs."""

    name: str
    command: Sequence[str]
    service: Service


@asynccontextmanager
async def _taskflow(home: Path) -> AsyncIterator[Environment]:
    async with embedded_broker() as broker:
        settings = Settings(bootstrap_servers=broker.bootstrap, partitions=PARTITIONS)
        await create_topics(settings)
        async with running_worker(settings, home / "tables"):
            yield {
                "TASKFLOW_BOOTSTRAP_SERVERS": broker.bootstrap,
                "TASKFLOW_PARTITIONS": str(PARTITIONS),
                "TASKFLOW_SESSION_TIMEOUT": SESSION_TIMEOUT,
            }


@asynccontextmanager
async def _redis(home: Path) -> AsyncIterator[Environment]:
    port = free_address().rpartition(":")[2]
    # An append-only file, written every second: as durable as Redis is commonly run.
    options = ("--appendonly", "yes", "--save", "", "--dir", str(home), "--loglevel", "warning")
    async with _running("redis-server", "--bind", "127.0.0.1", "--port", port, *options):
        await _until(("redis-cli", "-p", port, "ping"))
        yield {"JOBS_URL": f"redis://127.0.0.1:{port}/0"}


@asynccontextmanager
async def _postgres(home: Path) -> AsyncIterator[Environment]:
    bin_dir = _postgres_bin()
    as_user: tuple[str, ...] = ()
    data = home / "data"
    data.mkdir()
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        as_user = ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups")
        user = pwd.getpwnam("postgres")
        os.chown(data, user.pw_uid, user.pw_gid)
        for folder in (home, *home.parents[:1]):
            folder.chmod(0o755)
    name, port = "jobs", free_address().rpartition(":")[2]
    trust = ("-A", "trust", "-U", name, "-D", str(data))
    made = await asyncio.create_subprocess_exec(
        *(*as_user, str(bin_dir / "initdb"), *trust), stdout=asyncio.subprocess.DEVNULL
    )
    if await made.wait():
        raise RuntimeError("initdb has failed")
    server = ("-D", str(data), "-h", "127.0.0.1", "-p", port, "-k", str(data))
    async with _running(*as_user, str(bin_dir / "postgres"), *server, "-c", "logging_collector=on"):
        about = ("-h", "127.0.0.1", "-p", port, "-U", name)
        await _until((str(bin_dir / "pg_isready"), *about))
        yield {"JOBS_URL": f"postgresql://{name}@127.0.0.1:{port}/postgres"}


def _postgres_bin() -> Path:
    found = sorted(POSTGRES.glob("*/bin/postgres"))
    if not found:
        raise Missing("procrastinate: it needs PostgreSQL, which is not here")
    return found[-1].parent


@asynccontextmanager
async def _running(*command: str) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def _until(command: Sequence[str]) -> None:
    """Wait until a command succeeds."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            probe = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
            )
            if await probe.wait() == 0:
                return
            await asyncio.sleep(0.2)


def contestants(build: Path = BUILD) -> list[Contestant]:
    """All that can run here; says which cannot."""
    made = [Contestant("taskflow", (sys.executable, str(APPS / "taskflow" / "app.py")), _taskflow)]
    for make in (_celery, _procrastinate):
        try:
            made.append(make(build))
        except Missing as why:
            print(f"Left out: {why}.\n")
    return made


def _celery(build: Path) -> Contestant:
    if shutil.which("redis-server") is None:
        raise Missing("Celery: it needs redis-server, which is not here")
    return Contestant("Celery on Redis", python_app(build, APPS / "celery"), _redis)


def _procrastinate(build: Path) -> Contestant:
    _postgres_bin()
    command = python_app(build, APPS / "procrastinate")
    return Contestant("procrastinate on PostgreSQL", command, _postgres)
