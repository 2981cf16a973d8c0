"""taskflow beside what others build with their own libraries, interleaved on one broker.

Each peer validates the same commands, keeps the flows in its store, writes an audit event for each
command, exactly once; taskflow keeps its whole contract beside that (outcomes, chain, ledger,
snapshots). What is measured is seen from outside, for all in the same way: from the first record
written to the last one committed on the topic of which there is one record a command.

Run it: .venv/bin/python -m tests.benchmarks.against_peers --commands 400000
Peers are built where `--build` says; one whose tools are missing is left out, with a sentence.
"""

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from processor.adapters.kafka.admin import create_topics
from processor.broker import EmbeddedBroker, embedded_broker
from processor.placement import partition_of
from processor.settings import Settings
from schemas.topics import Topics
from tests.benchmarks import throughput
from tests.benchmarks.running import cpu_s, machine, memory_bytes, publish_to, running_worker

HERE: Final = Path(__file__).parent / "peers"
PARTITIONS: Final = 4
FLOWS: Final = 20_000
POLL_S: Final = 0.05
QUIET_S: Final = 2.0
PATIENCE_S: Final = 240.0
INPUT: Final = "peers.commands"


class Missing(Exception):
    """A peer cannot be built here."""


@dataclass(frozen=True)
class Peer:
    """A program of another library: how it is started, and what it is told."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


def _python_peer(build: Path, name: str) -> Sequence[str]:
    """An environment with the peer's own library."""
    home = build / name
    wanted = HERE / name / "requirements.txt"
    done = home / "done"
    if not done.exists() or done.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(home / "bin" / "pip"), "install", "--quiet", "-r", str(wanted)]
        if subprocess.run(pip, check=False).returncode:
            raise Missing(f"{name}: its library could not be installed")
        done.write_text(wanted.read_text())
    return [str(home / "bin" / "python"), str(HERE / name / "app.py")]


def _java_peer(build: Path) -> Sequence[str]:
    java, maven = shutil.which("java"), shutil.which("mvn")
    if java is None or maven is None:
        raise Missing("Kafka Streams: it needs a JDK 17 and Maven, which are not here")
    home = build / "kstreams"
    jar = home / "kstreams-peer-1.jar"
    if not jar.exists():
        pom = str(HERE / "kstreams" / "pom.xml")
        done = subprocess.run(
            [maven, "-q", "-B", "-f", pom, "package", f"-Dpeer.target={home}"], check=False
        )
        if done.returncode:
            raise Missing("Kafka Streams: Maven could not build it")
    return [java, "-Xmx1g", "-cp", f"{jar}:{home}/lib/*", "peers.TaskflowStreams"]


def peers(build: Path) -> Iterator[Peer]:
    """Those that can be built here; says which cannot."""
    try:
        streams = _java_peer(build)
        yield Peer("Kafka Streams, commit 100 ms", streams, {"PEER_COMMIT_MS": ""})
        yield Peer("Kafka Streams, commit 1 s", streams, {"PEER_COMMIT_MS": "1000"})
    except Missing as why:
        print(f"Left out: {why}.\n")
    for name, label in (("quix", "Quix Streams, commit 1 s"), ("faust", "Faust, commit 1 s")):
        try:
            command = list(_python_peer(build, name))
        except Missing as why:
            print(f"Left out: {why}.\n")
            continue
        if name == "faust":
            command += ["--loop", "uvloop", "worker", "-l", "warn", "--without-web"]
        yield Peer(label, command, {"PEER_COMMIT_MS": "1000"})


def _reference_command(flow_id: str, turn: int, n: int) -> bytes:
    """The `turn`-th command of a flow, as `throughput.command`, in the peers' words."""
    body = json.loads(throughput.command(flow_id, turn, n))
    if turn == 0:
        body |= {"kind": "create", "owner_session_key": body["issued_by"], "current_step": "init"}
    elif turn == 1:
        body["kind"] = "start"
    return json.dumps(body, separators=(",", ":")).encode()


async def load(settings: Settings, count: int) -> None:
    """The peers' commands, as taskflow's lie on its own topic."""
    flows = [str(uuid.UUID(int=(7 << 120) + n * 7919)) for n in range(FLOWS)]
    places = [partition_of(flow.encode(), PARTITIONS) for flow in flows]
    numbers = ((i % len(flows), i // len(flows)) for i in range(count))
    await publish_to(
        settings,
        INPUT,
        ((places[n], flows[n], _reference_command(flows[n], t, n)) for n, t in numbers),
    )


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
    broker_began_s, total, peak = cpu_s(broker), 0, 0.0
    spent = broker_spent = 0.0
    seen: list[tuple[float, int]] = []
    while total < count or time.monotonic() - changed_s < QUIET_S:
        if time.monotonic() - began_s > PATIENCE_S:
            break  # what is committed by then counts, as all is measured to `changed_s`
        end = await watch.committed()
        peak = max(peak, memory_bytes(process))
        if end > total:
            total, changed_s = end, time.monotonic()
            spent, broker_spent = cpu_s(process), cpu_s(broker) - broker_began_s
            seen.append((changed_s, total))
        await asyncio.sleep(POLL_S)
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


async def of_taskflow(
    home: Path, broker: EmbeddedBroker, count: int, processes: int
) -> dict[str, float]:
    prefix = f"taskflow-{uuid.uuid4().hex[:8]}"
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    await throughput.load(settings, throughput.Shape(count))
    async with (
        Watch(broker.bootstrap, Topics(prefix).outcomes) as watch,
        running_worker(settings, home / prefix, processes=processes) as worker,
    ):
        return await measured(watch, worker, psutil.Process(broker.pid), count)


async def of_peer(home: Path, broker: EmbeddedBroker, count: int, peer: Peer) -> dict[str, float]:
    own = f"peer-{uuid.uuid4().hex[:8]}"
    async with _topic(broker.bootstrap, f"{own}-audit"):
        (home / own).mkdir()
        environment = {
            **os.environ,
            **peer.environment,
            "PEER_BOOTSTRAP": broker.bootstrap,
            "PEER_INPUT": INPUT,
            "PEER_AUDIT": f"{own}-audit",
            "PEER_APP_ID": own,
            "PEER_STATE_DIR": str(home / own),
        }
        with (home / f"{own}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *peer.command, env=environment, stdout=log, stderr=log
            )
        try:
            async with Watch(broker.bootstrap, f"{own}-audit") as watch:
                seen = psutil.Process(process.pid)
                return await measured(watch, seen, psutil.Process(broker.pid), count)
        finally:
            if process.returncode is None:
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 15)
            except TimeoutError:
                process.kill()
                await process.wait()


@asynccontextmanager
async def _topic(bootstrap: str, name: str) -> AsyncIterator[None]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, PARTITIONS, 1)])
        yield
    finally:
        await admin.close()


async def main(chosen: argparse.Namespace) -> None:
    print(machine() + "\n")
    chosen.build.mkdir(parents=True, exist_ok=True)
    others = list(peers(chosen.build))
    results: list[dict[str, Any]] = []
    print(
        f"{chosen.commands:,} commands over {FLOWS:,} flows, {PARTITIONS} partitions; "
        "CPU seconds per 100,000 commands, from the program's start:\n"
    )
    print("| | load average | commands/s | second half/s | CPU s | broker CPU s | peak MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        async with embedded_broker(properties=throughput.JOINED_TOGETHER) as broker:
            async with _topic(broker.bootstrap, INPUT):
                await load(Settings(bootstrap_servers=broker.bootstrap), chosen.commands)
            for turn in range(chosen.runs):
                for label, run in (
                    *((f"taskflow, {n} process{'es' * (n > 1)}", n) for n in chosen.processes),
                    *((peer.name, peer) for peer in others),
                ):
                    load_average = os.getloadavg()[0]
                    # A slow one gets a share, so that all have their turn within minutes.
                    count = chosen.commands // 8 if label.startswith("Faust") else chosen.commands
                    if isinstance(run, Peer):
                        r = await of_peer(home, broker, count, run)
                    else:
                        r = await of_taskflow(home, broker, count, run)
                    results.append({"of": label, "turn": turn, "load_average": load_average, **r})
                    print(
                        f"| {label} | {load_average:.1f} | {r['rate_per_s']:,.0f} | "
                        f"{r['second_half_per_s']:,.0f} | {r['cpu_s']:.2f} | "
                        f"{r['broker_cpu_s']:.2f} | {r['peak_mib']:.0f} |",
                        flush=True,
                    )
    if chosen.json is not None:
        chosen.json.write_text(json.dumps({"machine": machine(), "runs": results}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commands", type=int, default=400_000)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--build", type=Path, default=Path.home() / ".cache" / "taskflow" / "peers")
    parser.add_argument("--json", type=Path, help="where the results are kept")
    uvloop.run(main(parser.parse_args()))
