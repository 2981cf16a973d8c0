"""Where a command's CPU time goes, µs a command by stage; no broker, no sockets (half a minute).

Run it: .venv/bin/python -m tests.benchmarks.stages
"""

import asyncio
import gc
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

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
from processor.engine.batch import LoadedState, PartitionConfig, first_event_id, needs, sliced
from processor.engine.codec import decode
from processor.engine.command_handler import CommandHandler
from processor.engine.flow_cache import FlowCache
from processor.engine.rows import Checkpoint, Position
from processor.partition.packs import TransactionPacks
from processor.runtime import GC_THRESHOLDS
from processor.settings import Settings
from processor.testing.memory.record import Appended
from tests.benchmarks.throughput import command

BATCH: Final = 1_000
FLOWS: Final = 5_000
"""Of one partition, as in the throughput run."""
TURNS: Final = 12
"""Commands of each flow: a create, a start, then updates."""
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


def load() -> list[Appended]:
    """Rounds over all flows, as the broker hands them over."""
    flows = [str(uuid.UUID(int=(7 << 120) + n * 7919)) for n in range(FLOWS)]
    topic = PLACE.topics.commands
    return [
        # One append time a batch of the producer's, of which some hundred records are one.
        Appended(
            topic,
            PLACE.partition,
            offset,
            APPENDED_AT_MS + offset // 100,
            flows[offset % FLOWS].encode(),
            command(flows[offset % FLOWS], offset // FLOWS, offset % FLOWS),
        )
        for offset in range(FLOWS * TURNS)
    ]


async def run(table: FlowTable, records: list[Appended], costs: Costs) -> None:
    """All of `records`, through everything but the broker and the loop's waiting."""
    topics, compression = PLACE.topics, Settings().compression
    writer: Any = SimpleNamespace(_partition=PLACE.partition)
    cache = FlowCache(256 * 2**20)
    producer: Any = _Producer(compression)

    packing: Any = SimpleNamespace(new_pack=lambda: RecordPack(producer.create_batch))

    position = Position(0, 0, first_event_id(PLACE.partition))
    checkpoint: Checkpoint | None = None
    next_row_number = 1
    for start in range(0, len(records), BATCH):
        some = records[start : start + BATCH]
        updating = start >= 2 * FLOWS
        costs_of = costs if updating else Costs()
        with costs_of.stage("decode"):
            items = [decode(record) for record in some]
        with costs_of.stage("recall: memory"):
            needed = needs(items)
            flows = cache.find(needed.flows)
            memory = LoadedState(flows={flow_id: flows.get(flow_id) for flow_id in needed.flows})
        with costs_of.stage("recall: table"):
            memory.ledger = await table.ledger_entries(needed.ledger)
        with costs_of.stage("decide, encode, pack"):
            outbound = TransactionPacks(topics, packing, table)
            handler = CommandHandler(
                PLACE, memory, position, next_row_number=next_row_number, outbound=outbound
            )
            for slice_ in sliced(items):
                handler.add(slice_)
        with costs_of.stage("settle and pack"):
            batch = handler.finish()
        assert batch.handled == BATCH
        assert set(batch.tally) <= {(c.command.kind, "accepted", "") for c in items}  # type: ignore[union-attr]
        with costs_of.stage("compress and send"):
            for topic, pack in outbound.packs.items():
                await KafkaTransactionalProducer._send(writer, producer, topic, pack)  # type: ignore[arg-type]
        changes: Any = outbound.changes
        changes.forget_before_ms = APPENDED_AT_MS - 1
        after = Checkpoint(batch.position, start, start, batch.newest_ms)
        with costs_of.stage("write the table"):
            await table.write(changes, before=checkpoint, after=after)
        with costs_of.stage("cache"):
            cache.put(batch.flows)
        position, checkpoint = batch.position, after
        next_row_number += batch.created


async def measure(runs: int = 3) -> dict[str, Cost]:
    """What each stage costs of an update that is accepted, in batches of BATCH."""
    costs, records = Costs(), load()
    gc.set_threshold(*GC_THRESHOLDS)  # as the worker does
    gc.freeze()
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as home:
            path = table_path(Path(home), "stages", PLACE.partition)
            async with open_table(
                path, partition=PLACE.partition, prefix="stages", partitions=PLACE.partitions
            ) as table:
                await run(table, records, costs)
    return costs.least


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
    print(f"CPU µs a command, {FLOWS:,} flows, batches of {BATCH:,}:\n")
    print(report(uvloop.run(measure())))
