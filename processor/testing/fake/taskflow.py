"""TaskflowFake: a deployment in memory, whose time a test moves."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import count
from typing import Any, Final

from processor.client.connection import standing_in
from processor.contract import EVENTS, Flow, FlowEvent, Outcome, Topics
from processor.contract.steps import STEPS, Step
from processor.domain.decision import Limits
from processor.engine.batch import PartitionConfig
from processor.ops.verify.report import Report
from processor.partition.batch_processor import BatchProcessor
from processor.partition.pace import Pace
from processor.partition.ports import PartitionPorts
from processor.partition.processor import PartitionProcessor
from processor.settings import Settings
from processor.telemetry.metrics import Metrics
from processor.testing.fake.connection import FakeConnection, Group
from processor.testing.fake.internals import LoopClock
from processor.testing.fake.source import FakeSource
from processor.testing.memory.deployment import Deployment
from processor.testing.memory.ports import (
    MemoryForwarder,
    MemoryHistory,
    MemoryWorkItems,
    MemoryWriter,
)
from processor.testing.memory.table import ModelFile, ModelTable, table_of
from processor.testing.memory.timed_kafka import TimedKafka

PACE: Final = Pace(fetch_s=86_400.0, between_s=0.0)
"""A partition is woken by what it waits for, and has nothing to look at in between."""
END_S: Final = 0.1
"""A worker learns the broker's time to the millisecond, and asks it once more where that is too
early: what is due as a span ends needs so much more."""
CACHE_BYTES: Final = 2**20
BATCH_MAX_RECORDS: Final = 1_000

_instances = count(1)


class TaskflowFake:
    """The real engine on Kafka in memory, for the clients of one event loop.

    Every FlowClient, AuditStream and StepWorker whose settings name `settings.bootstrap_servers`
    is connected to it. Time passes as it does outside, and `advance` moves it: the loop's timers,
    the broker's clock and the waits, leases and retries of all flows.
    """

    def __init__(self, settings: Settings) -> None:
        """`settings`: all but the brokers count; the topics and one partition are there."""
        self.settings = settings.model_copy(
            update={
                "bootstrap_servers": f"taskflow-fake-{next(_instances)}.invalid:9092",
                "partitions": 1,
            }
        )
        self._topics = Topics(settings.topic_prefix)
        self._clock: LoopClock | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.kafka = TimedKafka(self._topics, self.settings.partitions, self.monotonic)
        self.kafka.now_ms = time.time_ns() // 1_000_000
        self._files = {partition: ModelFile() for partition in range(self.settings.partitions)}
        self._groups: dict[str, Group] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # Time

    @property
    def now(self) -> datetime:
        """The time by the broker's clock."""
        return datetime.fromtimestamp(self.kafka.now_ms / 1000, UTC)

    def monotonic(self) -> float:
        return time.monotonic() if self._clock is None else self._clock.time()

    async def advance(self, span: timedelta) -> None:
        """Let `span`, and a moment, pass at once; return when all that became due in it is done.

        Timers of this loop fire in their order, each at its time. What waits for something outside
        of the loop (a thread, a socket) is not waited for.
        """
        clock = self._running()
        await clock.idle()
        with clock.jumping():
            await asyncio.sleep(span.total_seconds() + END_S)
        await clock.idle()

    async def settle(self) -> None:
        """Return when all that can happen without time passing has happened."""
        await self._running().idle()

    # What came of it

    def events(self, flow_id: str | None = None) -> list[FlowEvent]:
        """Return the events so far, in the order of their ids, of one flow or of all."""
        found = (EVENTS.validate_json(value) for value in self._values(self._topics.audit, flow_id))
        return sorted(found, key=lambda event: event.id)

    def outcomes(self, flow_id: str | None = None) -> list[Outcome]:
        """Return the outcomes so far of one flow's commands or of all."""
        values = self._values(self._topics.outcomes, flow_id)
        return [Outcome.model_validate_json(value) for value in values]

    def dead_letters(self) -> list[bytes]:
        """Return the values of the records that could not be read as commands."""
        return list(self._values(self._topics.dead_letters, None))

    def flow(self, flow_id: str) -> Flow | None:
        """Return the flow as it is now; None if there is none, or it was pruned."""
        for file in self._files.values():
            if (row := file.content.flows.get(flow_id)) is not None:
                return Flow.model_validate_json(row.doc)
        return None

    def steps(self, flow_id: str) -> dict[str, Step]:
        """Return the flow's steps as they are now, by run id."""
        return {
            run_id: STEPS.validate_json(doc)
            for file in self._files.values()
            for (owner, run_id), doc in file.content.steps.items()
            if owner == flow_id
        }

    async def verify(self) -> Report:
        """Run `taskflow verify` over all topics and tables."""
        await self.settle()
        return await self.deployment().verify()

    def deployment(self) -> Deployment:
        """Return all that was committed, and the tables."""
        tables = [
            table_of(f"memory/{partition}", partition, self.settings.partitions, file.content)
            for partition, file in self._files.items()
            if file.content.checkpoint is not None
        ]
        return self.kafka.deployment(self.settings.dedupe_window_ms, tables)

    def _values(self, topic: str, flow_id: str | None) -> Iterator[bytes]:
        key = None if flow_id is None else flow_id.encode()
        for partition in range(self.settings.partitions):
            log = self.kafka.log(topic, partition)
            for record in log.committed(log.start, log.end):
                if key is None or record.key == key:
                    yield record.value or b""

    # The engine

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Inside the block clients with its settings are connected to it."""
        with standing_in(
            self.settings.bootstrap_servers, lambda _: FakeConnection(self, self._groups)
        ):
            try:
                yield
            finally:
                self._stop()

    def ensure_running(self) -> None:
        """Run the engine on the running loop. On another one than before, it takes its partitions
        over as a worker does that was started again."""
        self._running()

    def _running(self) -> LoopClock:
        loop = asyncio.get_running_loop()
        if self._clock is not None and self._loop is loop:
            return self._clock
        if self._loop is not None and self._loop.is_running():
            raise RuntimeError("A taskflow_fake works on one event loop at a time.")
        self._stop()
        clock = LoopClock.of(loop)
        if self._clock is not None:
            clock.ahead_s = max(clock.ahead_s, self._clock.ahead_s)
        else:
            # The clock of a loop that was moved before is ahead; the broker's is right.
            self.kafka.now_ms -= round(clock.ahead_s * 1000)
        self._clock, self._loop = clock, loop
        source = FakeSource(
            self.kafka, lambda partition: self._files[partition].content.next_due_ms()
        )
        self._tasks = [
            loop.create_task(self._processor(partition, source).run()) for partition in self._files
        ]
        return clock

    def _processor(self, partition: int, source: FakeSource) -> PartitionProcessor:
        kafka, settings = self.kafka, self.settings
        place = PartitionConfig(
            partition,
            settings.partitions,
            self._topics,
            settings.dedupe_window_ms,
            Limits(settings.timer_max_horizon_ms, settings.flow_steps_max),
            settings.retain_terminal_ms,
        )
        ports = PartitionPorts(
            source=source,
            forwarder=MemoryForwarder(kafka),
            work_items=MemoryWorkItems(kafka),
            open_table=partial(_opened, self._files[partition]),
            new_writer=partial(MemoryWriter, kafka, partition),
            new_history=lambda _: MemoryHistory(kafka, partition),
        )
        batches = BatchProcessor(
            place,
            ports,
            metrics=Metrics(),
            batch_max_records=BATCH_MAX_RECORDS,
            cache_bytes=CACHE_BYTES,
            pace=PACE,
            clock=lambda: kafka.now_ms / 1000,
            monotonic=self.monotonic,
        )
        return PartitionProcessor(batches)

    def _stop(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            for task in self._tasks:
                task.cancel()
        self._tasks = []


@asynccontextmanager
async def _opened(file: ModelFile) -> AsyncIterator[Any]:
    yield ModelTable(file)
