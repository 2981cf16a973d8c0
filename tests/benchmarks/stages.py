"""Where a command's CPU time goes, µs a command by stage; no broker, no sockets (a minute).

Run it: .venv/bin/python -m tests.benchmarks.stages [--loads steps] [--together 2]
"""

import argparse
import asyncio
import gc
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final, NamedTuple

import uvloop
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.structs import RecordMetadata, TopicPartition

from processor.adapters.kafka.producer.transactional_producer import (
    BATCH_MAX_BYTES,
    KafkaTransactionalProducer,
    RecordPack,
)
from processor.adapters.sqlite import FlowTable, open_table, table_path
from processor.contract.topics import Topics
from processor.engine.batch import Decoded, PartitionConfig, first_event_id, sliced
from processor.engine.codec import decode
from processor.engine.command_handler import CommandHandler
from processor.engine.flow_cache import FlowCache
from processor.engine.ports import Written
from processor.engine.rows import Checkpoint, Position
from processor.partition.loader import load_state
from processor.partition.packs import TransactionPacks
from processor.partition.scheduling.scheduler import NOTHING, Scheduler
from processor.runtime import GC_THRESHOLDS
from processor.settings import Settings
from processor.telemetry.metrics import Metrics
from processor.testing.memory.record import Appended
from tests.benchmarks.steps.work import PER_FLOW, Work
from tests.benchmarks.throughput import command

BATCH: Final = 1_000
FLOWS: Final = 5_000
"""Of one partition, as in the throughput run."""
TURNS: Final = 12
"""Commands of each flow: a create, a start, then updates."""
STEPS: Final = 20_000
IN_FLIGHT: Final = 2_000
"""Steps of one partition that are scheduled and not yet started, as in the run of whole steps."""
APPENDED_AT_MS: Final = 1_795_000_000_000
PLACE: Final = PartitionConfig(
    partition=0, partitions=1, topics=Topics(), dedupe_window_ms=3_600_000
)

Cost = tuple[float, float]
"""CPU µs a command: of the event loop's thread, of all others."""


class Costs:
    """The cheapest of all batches by stage: what other processes take away does not count."""

    def __init__(self) -> None:
        self.least: dict[str, Cost] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        own, all_threads = time.thread_time_ns(), time.process_time_ns()
        yield
        own, all_threads = time.thread_time_ns() - own, time.process_time_ns() - all_threads
        taken = own / BATCH / 1e3, max(0, all_threads - own) / BATCH / 1e3
        self.least[name] = min(taken, self.least.get(name, taken), key=sum)


class _Producer:
    """Builds record batches as aiokafka's producer does, and throws them away."""

    def __init__(self, compression: str | None) -> None:
        self._compression = {None: 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}[compression]

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(BATCH_MAX_BYTES, self._compression, is_transactional=True)

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        batch._set_producer_state(1, 0, 0)
        batch._build()
        sent = asyncio.get_running_loop().create_future()
        sent.set_result(
            RecordMetadata(topic, partition, TopicPartition(topic, partition), 0, 0, 0, 0)
        )
        return sent


class Load(NamedTuple):
    """Records as the broker hands them over; costs count from the batch that holds `counted` on."""

    records: list[Appended]
    counted: int


def _appended(commands: Iterable[tuple[bytes, bytes]]) -> list[Appended]:
    """Keys and values as records."""
    topic = PLACE.topics.commands
    return [
        # One append time a batch of the producer's, of which some hundred records are one.
        Appended(topic, PLACE.partition, offset, APPENDED_AT_MS + offset // 100, key, value)
        for offset, (key, value) in enumerate(commands)
    ]


def updates() -> Load:
    """Rounds over all flows."""
    flows = [str(uuid.UUID(int=(7 << 120) + n * 7919)) for n in range(FLOWS)]
    commands = (
        (flow_id.encode(), command(flow_id, turn, n))
        for turn in range(TURNS)
        for n, flow_id in enumerate(flows)
    )
    return Load(_appended(commands), 2 * FLOWS)


def steps() -> Load:
    """Steps in the order in which executors do them: as one is started and completed, another one
    is scheduled."""
    flows = STEPS // PER_FLOW
    work = Work(flows, PLACE.partitions)
    made = [work.create(flow) for flow in range(flows)]
    made += [work.schedule(step) for step in range(IN_FLIGHT)]
    for step in range(STEPS - IN_FLIGHT):
        made += work.start(step), work.complete(step), work.schedule(step + IN_FLIGHT)
    return Load(_appended((one.key, one.value) for one in made), flows + IN_FLIGHT)


LOADS: Final = {"updates": updates, "steps": steps}


async def run(table: FlowTable, load: Load, costs: Costs) -> None:
    """All of `load`, through everything but the broker and the loop's waiting."""
    topics, compression = PLACE.topics, Settings().compression
    writer: Any = SimpleNamespace(_partition=PLACE.partition)
    cache, metrics = FlowCache(256 * 2**20), Metrics()
    scheduler = Scheduler(
        PLACE.partition,
        commands_topic=topics.commands,
        retain_ms=None,
        metrics=metrics,
        new_id=lambda: str(uuid.uuid4()),
    )
    producer: Any = _Producer(compression)

    packing: Any = SimpleNamespace(new_pack=lambda _: RecordPack(producer.create_batch))

    position = Position(0, 0, first_event_id(PLACE.partition))
    checkpoint: Checkpoint | None = None
    next_row_number = 1
    for start in range(0, len(load.records), BATCH):
        some = load.records[start : start + BATCH]
        whole = start >= load.counted and len(some) == BATCH
        costs_of = costs if whole else Costs()
        with costs_of.stage("decode"):
            items: Sequence[Decoded] = [decode(record) for record in some]
        with costs_of.stage("load"):
            items, memory = await load_state(items, cache, table)
        with costs_of.stage("decide, encode, pack"):
            outbound = TransactionPacks(topics, packing, table)
            handler = CommandHandler(
                PLACE, memory, position, next_row_number=next_row_number, outbound=outbound
            )
            for slice_ in sliced(items):
                handler.add(slice_)
        with costs_of.stage("settle and pack"):
            batch = handler.finish()
        assert batch.handled == len(some)
        assert {verdict for _, verdict, _ in batch.tally} == {"accepted"}
        with costs_of.stage("compress and send"):
            for topic, pack in outbound.packs.items():
                tp = TopicPartition(topic, PLACE.partition)
                await KafkaTransactionalProducer._send(writer, producer, tp, pack)  # type: ignore[arg-type]
        changes: Any = outbound.changes
        changes.forget_before_ms = APPENDED_AT_MS - 1
        after = Checkpoint(batch.position, start, start, batch.newest_ms)
        with costs_of.stage("write the table"):
            await table.write(changes, before=checkpoint, after=after)
        with costs_of.stage("cache"):
            cache.put(batch.flows)
            cache.put_steps(batch.steps)
        with costs_of.stage("timers and metrics"):
            sent = scheduler.send(batch, NOTHING)
            scheduler.written(batch, sent, Written({}, batch.newest_ms, 0.0), memory, 0.0)
            metrics.steps.observe(batch.step_tally)
        position, checkpoint = batch.position, after
        next_row_number += batch.created


@asynccontextmanager
async def empty_table() -> AsyncIterator[FlowTable]:
    """A table of its own."""
    with tempfile.TemporaryDirectory() as home:
        path = table_path(Path(home), "stages", PLACE.partition)
        async with open_table(
            path, partition=PLACE.partition, prefix="stages", partitions=PLACE.partitions
        ) as table:
            yield table


async def measure(load: Load | None = None, runs: int = 3) -> dict[str, Cost]:
    """What each stage costs of a command that is accepted (else: of an update), in batches of
    BATCH."""
    costs, load = Costs(), load or updates()
    gc.set_threshold(*GC_THRESHOLDS)  # as the worker does
    gc.freeze()
    for _ in range(runs):
        async with empty_table() as table:
            await run(table, load, costs)
    return costs.least


async def measure_together(load: Load, partitions: int, runs: int = 3) -> float:
    """CPU µs of the loop's thread for a command of `load`, the least of `runs`, while so many
    partitions take turns: each finds the CPU's caches full of what the others left there, as in a
    worker, and what a batch made is freed meanwhile."""
    gc.set_threshold(*GC_THRESHOLDS)
    gc.freeze()
    taken = []
    for _ in range(runs):
        async with AsyncExitStack() as open_tables:
            tables = [
                await open_tables.enter_async_context(empty_table()) for _ in range(partitions)
            ]
            began_ns = time.thread_time_ns()
            await asyncio.gather(*(run(table, load, Costs()) for table in tables))
            taken.append(time.thread_time_ns() - began_ns)
    return min(taken) / 1e3 / len(load.records) / partitions


def report(costs: dict[str, Cost]) -> str:
    """A table in Markdown."""
    total = tuple(map(sum, zip(*costs.values(), strict=True)))
    lines = ["| stage | event loop's thread | other threads |", "| --- | ---: | ---: |"]
    lines += [
        f"| {name} | {own:.1f} | {others:.1f} |"
        for name, (own, others) in {**costs, "all": total}.items()
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loads", nargs="+", choices=[*LOADS], default=[*LOADS])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--together", type=int, help="partitions that take turns; the sum alone")
    chosen = parser.parse_args()
    for name in chosen.loads:
        if chosen.together:
            us = uvloop.run(measure_together(LOADS[name](), chosen.together, chosen.runs))
            print(f"{name}, {chosen.together} partitions: {us:.1f} µs on the loop's thread")
            continue
        print(f"CPU µs a command, {name}, batches of {BATCH:,}:\n")
        print(report(uvloop.run(measure(LOADS[name](), chosen.runs))) + "\n")
