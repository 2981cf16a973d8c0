"""An executor in C (librdkafka), in a process of its own: it keeps a number of steps in flight.

Each work item is answered at once by a start and a completion, and makes room for another step,
which is scheduled. The outcome of a start is not awaited: nobody else starts these steps, and what
an executor costs is not what is measured.
"""

import asyncio
import gc
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from tests.benchmarks.steps.work import Made, Work, step_of

PATIENCE_S: Final = 300.0
POLL_S: Final = 0.05


@dataclass(frozen=True)
class Flight:
    """What is worked off, and where: `steps` of `flows` that are there, `in_flight` at a time."""

    bootstrap: str
    commands: str
    items: str
    partitions: int
    flows: int
    steps: int
    in_flight: int


def run(flight: Flight) -> float:
    """Return once each step had its work item, and all commands are acknowledged; how much CPU that
    took, in s, threads of librdkafka's included."""
    began_s = time.process_time()
    gc.freeze()
    gc.disable()
    work = Work(flight.flows, flight.partitions)
    producer = Producer(
        {
            "bootstrap.servers": flight.bootstrap,
            "enable.idempotence": True,
            "linger.ms": 20,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    consumer = Consumer(
        {
            "bootstrap.servers": flight.bootstrap,
            "group.id": "bench-executors",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
            "fetch.min.bytes": 100_000,
        }
    )
    consumer.assign(
        [TopicPartition(flight.items, p, OFFSET_BEGINNING) for p in range(flight.partitions)]
    )

    def send(made: Made) -> None:
        producer.produce(flight.commands, made.value, made.key, made.partition)

    scheduled = min(flight.in_flight, flight.steps)
    for step in range(scheduled):
        send(work.schedule(step))
    done: set[int] = set()
    deadline_s = time.monotonic() + PATIENCE_S
    while len(done) < flight.steps:
        producer.poll(0)
        assert time.monotonic() < deadline_s, f"{len(done)} of {flight.steps} work items"
        for item in consumer.consume(2_000, POLL_S):
            assert not item.error(), item.error()
            step = step_of(item.key() or b"")
            if step in done:
                continue  # a work item may come twice
            done.add(step)
            send(work.start(step))
            send(work.complete(step))
            if scheduled < flight.steps:
                send(work.schedule(scheduled))
                scheduled += 1
    producer.flush()
    consumer.close()
    return time.process_time() - began_s


async def fly(flight: Flight) -> float:
    """`run`, in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.benchmarks.steps.executor", json.dumps(asdict(flight))),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        said, _ = await process.communicate()
        assert process.returncode == 0, "the executor has failed"
        return float(said)
    finally:
        if process.returncode is None:
            process.kill()


if __name__ == "__main__":
    print(run(Flight(**json.loads(sys.argv[1]))))
