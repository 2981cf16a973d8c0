"""Those who are measured side by side: taskflow, and what others build with their own libraries.

Each reads commands from a topic with four partitions and commits one answer to each command to
another: taskflow its outcomes, a peer its audit records. peers/README.md says what peers do.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import psutil
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.topics import Topics
from processor.settings import Settings
from tests.benchmarks.running import running_worker

HERE: Final = Path(__file__).parent / "peers"
BUILD: Final = Path.home() / ".cache" / "taskflow" / "peers"
PARTITIONS: Final = 4
STOP_S: Final = 15


class Missing(Exception):
    """A peer cannot be built here."""


class Channel(NamedTuple):
    """Where a contestant reads and answers; `name` is nobody else's."""

    name: str
    commands: str
    outcomes_topic: str


@dataclass(frozen=True)
class Taskflow:
    """taskflow, as a worker of some processes."""

    processes: int = 1
    reference_words: bool = False

    @property
    def name(self) -> str:
        return f"taskflow, {self.processes} process{'es' * (self.processes > 1)}"

    async def prepare(self, bootstrap: str) -> Channel:
        """Topics of its own."""
        prefix = f"taskflow-{uuid.uuid4().hex[:8]}"
        await create_topics(self.settings(bootstrap, prefix))
        return Channel(prefix, Topics(prefix).commands, Topics(prefix).outcomes)

    @asynccontextmanager
    async def running(
        self, home: Path, bootstrap: str, channel: Channel
    ) -> AsyncIterator[psutil.Process]:
        settings = self.settings(bootstrap, channel.name)
        async with running_worker(
            settings, home / channel.name, processes=self.processes
        ) as worker:
            yield worker

    @staticmethod
    def settings(bootstrap: str, prefix: str) -> Settings:
        return Settings(bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS)


@dataclass(frozen=True)
class Peer:
    """A program of another library: how it is started, and what it is told."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    share: float = 1.0
    """Of the commands: a slow one gets fewer, so that all have their turn within minutes."""
    most_per_s: float = float("inf")
    """What is offered to it at a steady rate, at most."""
    whole_contract: bool = False
    """Whether it answers each command on a topic of outcomes beside its audit, as taskflow does."""
    reference_words: bool = True

    async def prepare(self, bootstrap: str, commands: str | None = None) -> Channel:
        """Topics for its audit and its answers, and one for commands where it is given none."""
        own = f"peer-{uuid.uuid4().hex[:8]}"
        audit, outcomes = _audit(own), f"{own}-outcomes"
        outcomes_path = outcomes if self.whole_contract else audit
        channel = Channel(own, commands or f"{own}-commands", outcomes_path)
        await create_plain_topics(
            bootstrap, {audit, outcomes_path} | ({channel.commands} - {commands})
        )
        return channel

    @asynccontextmanager
    async def running(
        self, home: Path, bootstrap: str, channel: Channel
    ) -> AsyncIterator[psutil.Process]:
        state_dir = home / channel.name
        state_dir.mkdir()
        environment = {
            **os.environ,
            **self.environment,
            "PEER_BOOTSTRAP": bootstrap,
            "PEER_INPUT": channel.commands,
            "PEER_AUDIT": _audit(channel.name),
            "PEER_OUTCOMES": channel.outcomes_topic,
            "PEER_APP_ID": channel.name,
            "PEER_STATE_DIR": str(state_dir),
        }
        with (home / f"{channel.name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *self.command, env=environment, stdout=log, stderr=log
            )
        try:
            yield psutil.Process(process.pid)
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()


Contestant = Taskflow | Peer


def _audit(name: str) -> str:
    return f"{name}-audit"


async def create_plain_topics(bootstrap: str, names: Iterable[str]) -> None:
    """As Kafka makes them, with the partitions that all have."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, PARTITIONS, 1) for name in names])
    finally:
        await admin.close()


# Building


def python_app(build: Path, folder: Path) -> Sequence[str]:
    """How to run the `app.py` in `folder`, in an environment with the libraries that it needs."""
    name = folder.name
    home = build / name
    wanted = folder / "requirements.txt"
    done = home / "done"
    if not done.exists() or done.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin" / "pip"), "install", "--quiet", "-r", str(wanted)]
        if subprocess.run(pip, check=False).returncode:
            raise Missing(f"{name}: its library could not be installed")
        done.write_text(wanted.read_text())
    return [str(home / "bin" / "python"), str(folder / "app.py")]


def _java_peers(build: Path) -> Sequence[str]:
    """How both applications are started, but for the name of their class."""
    java, maven = shutil.which("java"), shutil.which("mvn")
    if java is None or maven is None:
        raise Missing("Kafka Streams: it needs a JDK 17 and Maven, which are not here")
    home = build / "kstreams"
    jar = home / "kstreams-peer-1.jar"
    newest_s = max(file.stat().st_mtime for file in (HERE / "kstreams").rglob("*.*"))
    if not jar.exists() or jar.stat().st_mtime < newest_s:
        pom = str(HERE / "kstreams" / "pom.xml")
        done = subprocess.run(
            [maven, "-q", "-B", "-f", pom, "package", f"-Dpeer.target={home}"], check=False
        )
        if done.returncode:
            raise Missing("Kafka Streams: Maven could not build it")
    return [java, "-Xmx1g", "-cp", f"{jar}:{home}/lib/*"]


def _faust_peer(build: Path) -> Sequence[str]:
    worker = ("--loop", "uvloop", "worker", "-l", "warn", "--without-web")
    return [*python_app(build, HERE / "faust"), *worker]


def _built(build: Path, make: Callable[[Path], Sequence[str]]) -> Sequence[str] | None:
    build.mkdir(parents=True, exist_ok=True)
    try:
        return make(build)
    except Missing as why:
        print(f"Left out: {why}.\n")
        return None


def peers_for_throughput(build: Path) -> Iterator[Peer]:
    """With the intervals between commits at which they decide most; says which cannot be built."""
    if (streams := _built(build, _java_peers)) is not None:
        for threads in (1, 2):
            for commit_ms in (100, 1_000):
                yield _streams_whole(streams, threads, commit_ms)
        yield from (_streams_reference(streams, commit_ms) for commit_ms in (100, 1_000))
    if (quix := _built(build, lambda home: python_app(home, HERE / "quix"))) is not None:
        yield _every(1_000, "Quix Streams", quix)
    if (faust := _built(build, _faust_peer)) is not None:
        yield _every(1_000, "Faust", faust, share=1 / 8)


def peers_for_latency(build: Path) -> Iterator[Peer]:
    """With shorter ones: an answer of theirs comes with its commit."""
    if (streams := _built(build, _java_peers)) is not None:
        for commit_ms in (100, 10):
            yield _streams_whole(streams, 1, commit_ms)
            yield _streams_reference(streams, commit_ms)
    if (quix := _built(build, lambda home: python_app(home, HERE / "quix"))) is not None:
        yield _every(100, "Quix Streams", quix)
        yield _every(10, "Quix Streams", quix)
    if (faust := _built(build, _faust_peer)) is not None:
        yield _every(100, "Faust", faust, most_per_s=2_000)


def _streams_whole(java: Sequence[str], threads: int, commit_ms: int) -> Peer:
    name = f"Kafka Streams, whole contract, {threads} thread{'s' * (threads > 1)}"
    peer = _every(commit_ms, name, [*java, "peers.WholeContract"], PEER_THREADS=str(threads))
    return replace(peer, whole_contract=True)


def _streams_reference(java: Sequence[str], commit_ms: int) -> Peer:
    name = "Kafka Streams, reference work"
    return _every(commit_ms, name, [*java, "peers.ReferenceWork"], PEER_THREADS="1")


def _every(
    commit_ms: int,
    name: str,
    command: Sequence[str],
    *,
    share: float = 1.0,
    most_per_s: float = float("inf"),
    **environment: str,
) -> Peer:
    shown = f"{commit_ms} ms" if commit_ms < 1_000 else f"{commit_ms // 1_000} s"
    environment["PEER_COMMIT_MS"] = str(commit_ms)
    return Peer(f"{name}, commit {shown}", command, environment, share, most_per_s)
