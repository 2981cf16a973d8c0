"""How a view worker answers an honest client while others attack it.

Hostile requests come at a steady rate from a process of their own, each on a new connection: bad
positions, hosts, sites, headers, bodies and tokens, requests that never end, waits for events that
never come, and clients that never read. Run it: .venv/bin/python -m tests.benchmarks.hostile
"""

import argparse
import asyncio
import base64
import os
import random
import socket
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import aiohttp
import orjson
import psutil
import uvloop

from processor.contract.values import EVENTS_PER_PARTITION
from processor.embedded.broker import embedded_broker
from processor.settings import Settings
from tests.benchmarks.running import (
    cpu_s,
    free_address,
    machine,
    memory_bytes,
    percentile,
    publish,
    running_views,
    running_worker,
)
from tests.benchmarks.timers import creating, flow_ids

PARTITIONS: Final = 4
FLOWS: Final = 5_000
LARGE: Final = 400
"""Flows with a state of LARGE_BYTES, so that a page of their events takes megabytes."""
LARGE_BYTES: Final = 20_000
SECONDS: Final = 30
RATE_PER_S: Final = 500
HONEST_EVERY_S: Final = 0.04
HELD_MAX: Final = 4_000
"""Connections that the attacker keeps open at the same time."""
OUTCOME_WITHIN_S: Final = 2.0
P99_MAX_MS: Final = 250
MEMORY_MAX_MIB: Final = 300
PATIENCE_S: Final = 300


# The attacker


def packed(value: object) -> str:
    return base64.urlsafe_b64encode(orjson.dumps(value)).rstrip(b"=").decode()


def get(path: str, *headers: str, host: str = "localhost") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()


class Attack(NamedTuple):
    """What is sent, and whether the connection is then held open without reading from it."""

    kind: str
    request: bytes
    held: bool = False


def attacks(chance: random.Random) -> Iterator[Attack]:
    """Without an end, each kind as often as the others."""
    while True:
        number = chance.randrange(2**63)
        yield from (
            Attack("position", get(f"/v1/stream?last_event_id={packed({'1': 1})}")),
            Attack("position", get(f"/v1/events?cursor={packed({'1': number})}")),
            Attack("position", get(f"/v1/flows?cursor={packed(['updated', number, number])}")),
            Attack("position", get(f"/v1/flows?after={PARTITIONS * EVENTS_PER_PARTITION + 1}")),
            Attack("position", get(f"/v1/flows?after={'9' * 20}&wait=30s")),
            Attack("wait", get("/v1/flows?after=1000000&wait=30s"), held=True),
            Attack("host", get("/v1/flows", host="evil.example")),
            Attack("site", get("/v1/flows", "Origin: http://evil.example")),
            Attack("site", get("/v1/stream", "Sec-Fetch-Site: cross-site")),
            Attack("line", get("/v1/flows?" + "x" * 20_000)),
            Attack("header", get("/v1/flows", "X: " + "x" * 60_000)),
            Attack("header", get("/v1/flows", *(f"X-{n}: {'x' * 7000}" for n in range(30)))),
            Attack("header", get("/v1/flows", *(f"X-{n}: x" for n in range(300)))),
            Attack("no HTTP", b"\x16\x03\x01" + chance.randbytes(300)),
            Attack("unfinished", b"GET /v1/flows HTTP/1.1\r\nHost: local", held=True),
            Attack("unfinished", b"", held=True),
            Attack("body", _post("Content-Length: 1000000000") + b"x" * 100_000, held=True),
            Attack("body", _post("Content-Length: 100") + b"{", held=True),
            Attack("body", _post("Transfer-Encoding: chunked") + b"zz\r\n"),
            Attack("body", _post("Content-Encoding: gzip", "Content-Length: 9") + b"x" * 9),
            Attack("token", _post("Authorization: Bearer x", "Content-Length: 2") + b"{}"),
            Attack("peer", get("/internal/statistics", f"Taskflow-Peer: {'0' * 32} {'0' * 64}")),
            Attack("slow reader", get("/v1/events?limit=200"), held=True),
            Attack("slow reader", get("/v1/stream?since=beginning"), held=True),
            Attack("leaves", get("/v1/stream?since=beginning")),
            Attack("method", b"DELETE /v1/flows HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        )


def _post(*headers: str) -> bytes:
    lines = ["POST /v1/commands HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


async def attack(host: str, port: int, seconds: float, rate_per_s: int) -> Counter[str]:
    """How many requests of each kind were sent."""
    loop = asyncio.get_running_loop()
    sent: Counter[str] = Counter()
    held: deque[socket.socket] = deque()
    under_way: set[asyncio.Task[None]] = set()

    async def one(chosen: Attack) -> None:
        client = socket.socket()
        client.setblocking(False)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it is connected
        kept = False
        try:
            async with asyncio.timeout(OUTCOME_WITHIN_S):
                await loop.sock_connect(client, (host, port))
                await loop.sock_sendall(client, chosen.request)
                sent[chosen.kind] += 1
                if chosen.held:
                    held.append(client)
                    kept = True
                else:
                    await loop.sock_recv(client, 4096)
        except (OSError, TimeoutError):
            sent["not sent whole, or not answered"] += 1
        finally:
            if not kept:
                client.close()
            while len(held) > HELD_MAX:
                held.popleft().close()

    began_s, count = time.monotonic(), 0
    for chosen in attacks(random.Random(14)):
        wait_s = began_s + count / rate_per_s - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if time.monotonic() - began_s > seconds:
            break
        count += 1
        task = asyncio.create_task(one(chosen))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
    if under_way:
        await asyncio.wait(under_way)
    sent["all"] = count
    for client in held:
        client.close()
    return sent


# The honest client


class Honest(NamedTuple):
    """Milliseconds of each answer, and how many questions had none, or another one."""

    took_ms: list[float]
    failed: Counter[str]


async def ask_honestly(url: str, ids: list[str], until_s: float) -> Honest:
    """One question after the other, of what the page and services ask, on a kept connection."""
    chance = random.Random(7)
    honest = Honest([], Counter())
    timeout = aiohttp.ClientTimeout(total=10)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:
        while time.monotonic() < until_s:
            path = chance.choice(
                ["/v1/flows?limit=50", "/v1/statistics", f"/v1/flows/{chance.choice(ids)}",
                 f"/v1/flows/{chance.choice(ids)}/history", "/ready"]
            )  # fmt: skip
            began_s = time.perf_counter()
            try:
                async with session.get(path) as response:
                    await response.read()
                    if response.status != 200:
                        honest.failed[str(response.status)] += 1
            except (aiohttp.ClientError, TimeoutError) as error:
                honest.failed[type(error).__name__] += 1
            honest.took_ms.append((time.perf_counter() - began_s) * 1000)
            await asyncio.sleep(HONEST_EVERY_S)
    return honest


class Peak:
    """The largest memory that a process is seen to have."""

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self.mib = 0.0

    async def watch(self) -> None:
        while True:
            with suppress(psutil.Error):
                self.mib = max(self.mib, memory_bytes(self._process) / 2**20)
            await asyncio.sleep(0.1)


async def crowded(settings: Settings, home: Path) -> list[str]:
    """The ids of the flows that a worker has decided."""
    ids = flow_ids(FLOWS + LARGE)
    commands = list(creating(ids))
    for index in range(LARGE):
        place, flow_id, value = commands[-1 - index]
        command = {**orjson.loads(value), "state_json": {"x": "y" * LARGE_BYTES}}
        commands[-1 - index] = (place, flow_id, orjson.dumps(command))
    async with running_worker(settings, home / "worker"):
        await publish(settings, commands)
        async with asyncio.timeout(PATIENCE_S):
            while await _undecided(settings, len(ids)):  # noqa: ASYNC110
                await asyncio.sleep(0.5)
    return ids


async def _undecided(settings: Settings, count: int) -> int:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from processor.contract.topics import Topics

    async with AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, isolation_level="read_committed"
    ) as consumer:
        audit = Topics(settings.topic_prefix).audit
        places = [TopicPartition(audit, p) for p in range(PARTITIONS)]
        ends: dict[TopicPartition, int] = await consumer.end_offsets(places)
    return max(0, 2 * count - sum(ends.values()))


async def report(
    *, seconds: int = SECONDS, rate_per_s: int = RATE_PER_S
) -> AsyncIterator[tuple[str, bool]]:
    """Lines of Markdown, and whether what they tell is within bounds."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        async with embedded_broker() as broker:
            settings = Settings(
                bootstrap_servers=broker.bootstrap, topic_prefix="hostile", partitions=PARTITIONS
            )
            ids = await crowded(settings, home)
            address = free_address()
            async with running_views(settings, home / "views", address=address) as process:
                url = f"http://{address}"
                await _until_ready(url, 2 * len(ids))
                yield (
                    (
                        "| | hostile/s | honest | failed | p50 ms | p99 ms | max ms | peak MiB "
                        "| CPU s |\n"
                        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
                    ),
                    True,
                )
                for what, rate in (("alone", 0), ("under attack", rate_per_s), ("afterwards", 0)):
                    yield await _measured(what, process, url, ids, seconds if rate else 10, rate)


async def _measured(
    what: str, process: psutil.Process, url: str, ids: list[str], seconds: int, rate_per_s: int
) -> tuple[str, bool]:
    spent_s, peak = cpu_s(process), Peak(process)
    watching = asyncio.create_task(peak.watch())
    attacker = None
    if rate_per_s:
        attacker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __spec__.name, "--attack", url.removeprefix("http://")),
            *("--seconds", str(seconds), "--rate-per-s", str(rate_per_s)),
            stdout=asyncio.subprocess.PIPE,
        )
    honest = await ask_honestly(url, ids, time.monotonic() + seconds)
    sent: Counter[str] = Counter()
    if attacker is not None:
        output, _ = await attacker.communicate()
        sent = Counter(orjson.loads(output))
    watching.cancel()
    p50, p99, slowest = (percentile(honest.took_ms, share) for share in (50, 99, 100))
    rate = sent["all"] / seconds
    good = (
        p99 <= P99_MAX_MS
        and peak.mib <= MEMORY_MAX_MIB
        and not honest.failed
        and rate >= 0.95 * rate_per_s
    )
    line = (
        f"| {what} | {rate:.0f} | {len(honest.took_ms):,} | {honest.failed.total()} | {p50:.1f} "
        f"| {p99:.1f} | {slowest:.1f} | {peak.mib:.0f} | {cpu_s(process) - spent_s:.1f} |"
    )
    if honest.failed:
        line += f"\n\nfailed: {dict(honest.failed)}\n"
    if sent:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in sorted(sent.items()))
        print(f"sent: {kinds}", file=sys.stderr)
    return line, good


async def _until_ready(url: str, events: int) -> None:
    async with aiohttp.ClientSession(url) as session, asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(aiohttp.ClientError):
                async with session.get("/v1/statistics") as response:
                    if response.status == 200 and (await response.json())["events_total"] >= events:
                        return
            await asyncio.sleep(0.2)


async def _main(chosen: argparse.Namespace) -> int:
    if chosen.attack:
        host, _, port = chosen.attack.rpartition(":")
        sent = await attack(host, int(port), chosen.seconds, chosen.rate_per_s)
        print(orjson.dumps(sent).decode())
        return 0
    print(machine())
    print(f"load average before: {os.getloadavg()[0]:.2f}\n", flush=True)
    all_good = True
    async for line, good in report(seconds=chosen.seconds, rate_per_s=chosen.rate_per_s):
        print(line, flush=True)
        all_good &= good
    print(
        f"\nwanted: no failure, p99 within {P99_MAX_MS} ms, {MEMORY_MAX_MIB} MiB: "
        f"{'yes' if all_good else 'no'}"
    )
    return 0 if all_good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=SECONDS)
    parser.add_argument("--rate-per-s", type=int, default=RATE_PER_S, help="hostile requests")
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    sys.exit(uvloop.run(_main(parser.parse_args())))
