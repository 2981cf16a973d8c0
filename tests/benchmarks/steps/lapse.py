"""How soon a step is handed out again once its lease is over.

A load in C schedules steps at a steady rate, starts each as soon as it is offered, and is silent
then; what comes of the lease is read from the work items and, afterwards, from the audit. The
backoff is 0, so that nothing but the processor's own way lies in between.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Producer, TopicPartition

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.contract.topics import Topics
from processor.contract.values import parse_timestamp
from processor.settings import Settings
from tests.benchmarks.paced import WARM_UP_S, pace
from tests.benchmarks.running import percentile, publish, running_worker
from tests.benchmarks.steps.work import PER_FLOW, Made, Work, step_of
from tests.benchmarks.throughput import command
from tests.benchmarks.timers import flow_ids

PARTITIONS: Final = 4
LEASE_MS: Final = 3_000
SCHEDULE: Final = b',"lease_ms":%d,"backoff_ms":0' % LEASE_MS
LATE_S: Final = 30.0
ORDINARY_FLOWS: Final = 500
PARTS: Final = {
    "wake": "from the lease's end to the append of its `wake_step`",
    "item": "from there to the append of the work item",
    "seen": "from the lease's end to a consumer of `steps`",
}


@dataclass(frozen=True)
class Lapses:
    """`rate_per_s` leases that end each second, for `seconds`, while `ordinary_per_s` updates of
    other flows come."""

    bootstrap: str
    prefix: str
    rate_per_s: int
    seconds: int
    ordinary_per_s: int

    @property
    def steps(self) -> int:
        return self.rate_per_s * (WARM_UP_S + self.seconds)

    @property
    def flows(self) -> int:
        return self.steps // PER_FLOW + 1


class Seen:
    """Work items of second attempts: when they were appended, and when they came here, in ms."""

    def __init__(self) -> None:
        self.appended_ms: dict[int, int] = {}
        self.at_ms: dict[int, float] = {}


def run(load: Lapses) -> None:
    """Print, of each step whose lease has ended: its number, append and arrival of the item."""
    gc.freeze()
    gc.disable()
    work, topics, seen = Work(load.flows, PARTITIONS), Topics(load.prefix), Seen()
    producer = Producer({"bootstrap.servers": load.bootstrap, "linger.ms": 1})
    items = consumer(load.bootstrap, topics.steps)
    ordinary = _ordinary(load)
    ratio = load.ordinary_per_s // load.rate_per_s

    def send(made: Made) -> None:
        producer.produce(topics.commands, made.value, made.key, made.partition)

    def take(wait_s: float) -> None:
        for item in items.consume(1_000, wait_s):
            now_ms = time.time() * 1000
            if (error := item.error()) is not None:
                assert error.code() == KafkaError._PARTITION_EOF, error
                continue
            step = step_of(item.key() or b"")
            attempt = orjson.loads(item.value() or b"")["attempt"]
            if attempt > 1 and step not in seen.at_ms:
                seen.appended_ms[step], seen.at_ms[step] = item.timestamp()[1], now_ms
            # The second holder ends it.
            send(work.start(step, attempt))
            if attempt > 1:
                send(work.complete(step, attempt))
        producer.poll(0)

    def one(number: int) -> None:
        if number % (ratio + 1) == 0:
            send(work.schedule(number // (ratio + 1), SCHEDULE))
        else:
            send(next(ordinary))

    count = load.steps * (ratio + 1)
    pace(count, load.rate_per_s * (ratio + 1), one, sleep=take)
    deadline_s = time.monotonic() + LATE_S
    while len(seen.at_ms) < load.steps and time.monotonic() < deadline_s:
        take(0.05)
    producer.flush()
    items.close()
    rows = [(step, seen.appended_ms[step], at_ms) for step, at_ms in seen.at_ms.items()]
    print(json.dumps(rows))


def _ordinary(load: Lapses) -> Iterator[Made]:
    """Updates of other flows, in rounds."""
    work = Work(0, PARTITIONS)
    ids = flow_ids(ORDINARY_FLOWS, first=10_000_000)
    turn = 2
    while True:
        for number, flow_id in enumerate(ids):
            yield work.place(flow_id, command(flow_id, turn, number))
        turn += 1


def consumer(bootstrap: str, topic: str, **more: Any) -> Consumer:
    """A consumer of all of a topic from its beginning, that waits for nothing."""
    made = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"bench-{topic}",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
            **more,
        }
    )
    made.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in range(PARTITIONS)])
    return made


def result(
    rows: list[tuple[int, int, float]],
    ended_ms: Mapping[int, int],
    woken_ms: Mapping[int, int],
    *,
    steps: int,
    skipped: int,
) -> dict[str, float]:
    """Percentiles of PARTS in ms, without the first `skipped` steps. `ended_ms` says when each
    step's first lease ended, `woken_ms` when its `wake_step` was appended."""
    counted = [row for row in rows if row[0] >= skipped]
    parts: dict[str, list[float]] = {
        "wake": [woken_ms[step] - ended_ms[step] for step, _, _ in counted],
        "item": [appended_ms - woken_ms[step] for step, appended_ms, _ in counted],
        "seen": [at_ms - ended_ms[step] for step, _, at_ms in counted],
    }
    return {
        "leases": steps - skipped,
        "not_handed_out": steps - skipped - len(counted),
        **{
            f"{part}_p{share}": percentile(ms, share)
            for part, ms in parts.items()
            for share in (50, 99)
        },
        "seen_max": max(parts["seen"], default=float("nan")),
    }


async def measure(home: Path, load: Lapses, *, processes: int = 1) -> dict[str, float]:
    settings = Settings(
        bootstrap_servers=load.bootstrap, topic_prefix=load.prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    work = Work(load.flows, PARTITIONS)
    flows = [work.create(flow) for flow in range(load.flows)]
    flows += [
        work.place(flow_id, command(flow_id, turn, number))
        for turn in (0, 1)
        for number, flow_id in enumerate(flow_ids(ORDINARY_FLOWS, first=10_000_000))
    ]
    await publish(settings, ((one.partition, one.key.decode(), one.value) for one in flows))
    async with running_worker(settings, home / load.prefix, processes=processes):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.benchmarks.steps.lapse", json.dumps(asdict(load))),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        assert process.returncode == 0, f"the load ended with {process.returncode}"
    ended_ms, woken_ms = await asyncio.to_thread(_audited, settings)
    skipped = load.rate_per_s * WARM_UP_S
    return {
        "rate_per_s": load.rate_per_s,
        "ordinary_per_s": load.ordinary_per_s,
        **result(json.loads(out), ended_ms, woken_ms, steps=load.steps, skipped=skipped),
    }


def _audited(settings: Settings) -> tuple[dict[int, int], dict[int, int]]:
    """When the first lease of each step ended, and when the command was appended that ended it."""
    audit = consumer(
        settings.bootstrap_servers,
        Topics(settings.topic_prefix).audit,
        **{"isolation.level": "read_committed", "enable.partition.eof": True},
    )
    ended_ms: dict[int, int] = {}
    woken_ms: dict[int, int] = {}
    unread = PARTITIONS
    while unread:
        for record in audit.consume(10_000, 1.0):
            if (error := record.error()) is not None:
                unread -= error.code() == KafkaError._PARTITION_EOF
                continue
            event = orjson.loads(record.value() or b"")
            if event["kind"] not in ("step_started", "step_retried"):
                continue
            step = int(event["payload_json"]["run_id"].removeprefix("run-"))
            if event["kind"] == "step_retried":
                woken_ms.setdefault(step, parse_timestamp(event["at"]))
            elif step not in ended_ms:
                due_at = event["payload_json"]["changes"]["execution"]["due_at"]
                ended_ms[step] = parse_timestamp(due_at)
    audit.close()
    return ended_ms, woken_ms


if __name__ == "__main__":
    run(Lapses(**json.loads(sys.argv[1])))
