"""Write the audit to PostgreSQL as it comes: the loop of `taskflow sink postgres`."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog

from processor.adapters.kafka.errors import PositionLost
from processor.adapters.postgres.connection import connected
from processor.adapters.postgres.service import DatabaseService
from processor.client.connection import connect
from processor.client.ports import Reader
from processor.contract.headers import chain_of
from processor.contract.topics import Topics
from processor.engine.codec import Record
from processor.recovery.event_applier import Event
from processor.runtime import unless_stopped
from processor.settings import Settings
from processor.sink.database import SinkDatabase, sink_database
from processor.sink.metrics import SinkMetrics
from processor.sink.rows import (
    SinkPosition,
    SinkRefused,
    changes_of,
    in_sequence,
    read_events,
    touched_flows,
    touched_steps,
)

log = structlog.get_logger()

POLL_S: Final = 1.0


class PostgresSink(DatabaseService):
    """Reads the audit from the positions in the database, and writes its events, and the flows and
    steps that they make, with the positions after them: each batch in one transaction.

    A crash between any two steps leaves a batch written with its positions, or not at all. Another
    sink of the same schema waits until this one ends. Also raises SinkRefused.
    """

    def __init__(self, settings: Settings, dsn: str, *, follow: bool = True) -> None:
        """`follow`: go on for ever; else end at what was committed at the start."""
        self.metrics = SinkMetrics()
        super().__init__("sink", self.metrics.failures.inc)
        self._settings = settings
        self._database = sink_database(dsn, settings.sink_schema)
        self._follow = follow
        self._topic = Topics(settings.topic_prefix).audit
        self._connection = connect(settings)
        self._positions: dict[int, SinkPosition] = {}
        self._ends: dict[int, int] = {}
        self._reached: Mapping[int, int] = {}
        self.metrics.ready.set_function(lambda: float(self.ready))

    @property
    def ready(self) -> bool:
        """Whether all that was committed at the start is written, and the database answers."""
        return self.state == "writing" and self.failing is None and self._caught_up()

    def report(self) -> dict[str, Any]:
        """What /ready says."""
        return {
            "ready": self.ready,
            "state": self.state,
            "failing": self.failing,
            "brokers": self._settings.bootstrap_servers,
            "topic": self._topic,
            "schema": self._settings.sink_schema,
            "partitions": {
                str(partition): {"event_id": position.event_id, "offset": position.audit_offset}
                for partition, position in sorted(self._positions.items())
            },
        }

    async def _work_while_connected(self, stop: asyncio.Event) -> None:
        count = (await self._connection.count_partitions([self._topic]))[self._topic]
        async with connected(self._database) as connection:
            database = SinkDatabase(connection, self._database, self._topic)
            await database.prepare()
            if not await self._alone(partial(database.lock, count), stop):
                return
            self._positions = await database.positions()
            reader = self._connection.reader(self._topic)
            try:
                await self._open(reader, count)
                self.state, self.failing = "writing", None
                log.info("sink ready", schema=self._database.schema, partitions=count)
                await self._write_all(reader, database, stop)
            finally:
                await reader.close()

    async def _open(self, reader: Reader, partitions: int) -> None:
        """Begin with the newest event that is written, to see that it is still the same."""
        if beyond := sorted(p for p in self._positions if p >= partitions):
            raise SinkRefused(
                f"{self._topic} has {partitions} partitions, but the tables hold events of "
                f"partitions {beyond}: the topic was recreated. Choose another "
                "TASKFLOW_SINK_SCHEMA, or drop the sink's tables."
            )
        start = {p: position.audit_offset for p, position in self._positions.items()}
        self._ends = await reader.open(range(partitions), start)
        for partition, position in self._positions.items():
            if position.audit_offset >= self._ends[partition]:
                raise self._recreated(partition, f"it ends at offset {self._ends[partition]}")
        self._reached = dict(reader.positions)

    async def _write_all(self, reader: Reader, database: SinkDatabase, stop: asyncio.Event) -> None:
        checked = set(range(len(self._ends))) - self._positions.keys()
        while not stop.is_set() and (self._follow or not self._caught_up()):
            try:
                records = await unless_stopped(reader.poll(wait_s=POLL_S), stop)
            except PositionLost as lost:
                raise SinkRefused(
                    f"{self._topic} does not have the offsets that come next, by partition: "
                    f"{lost.positions}. Events were deleted from the audit, or it was recreated: "
                    "bring them back, or drop the sink's tables."
                ) from lost
            if records is None:
                return
            new = [record for record in records if not self._is_written(record, checked)]
            if not self._follow:
                new = [record for record in new if record.offset < self._ends[record.partition]]
            if new:
                await self._write(database, new)
            self._reached = dict(reader.positions)
            self._progressed()

    def _is_written(self, record: Record, checked: set[int]) -> bool:
        """Whether it is the newest event of a partition that is written; it comes once, first.
        Raises SinkRefused if another one is there."""
        if record.partition in checked:
            return False
        checked.add(record.partition)
        position = self._positions[record.partition]
        ((_, event),) = read_events([record])
        found = (event["id"], record.offset, chain_of(record.headers))
        if found != position[:3]:
            raise self._recreated(
                record.partition, f"offset {record.offset} holds event {event['id']}"
            )
        return True

    def _recreated(self, partition: int, found: str) -> SinkRefused:
        position = self._positions[partition]
        return SinkRefused(
            f"{self._topic}/{partition} does not hold event {position.event_id} at offset "
            f"{position.audit_offset} as it was written to the tables; {found}. The topic was "
            "recreated, or has lost its end: choose another TASKFLOW_SINK_SCHEMA, or drop the "
            "sink's tables."
        )

    async def _write(self, database: SinkDatabase, records: Sequence[Record]) -> None:
        began = time.perf_counter()
        events: list[Event] = read_events(records)
        after = in_sequence(events, self._positions)
        flows, steps = sorted(touched_flows(events)), sorted(touched_steps(events))
        async with database.transaction(self._positions, sorted(after)):
            known = await database.known(flows, steps)
            await database.write(changes_of(events, known, after))
        self._positions |= after
        metrics = self.metrics
        metrics.events.inc(len(events))
        metrics.batch_size.observe(len(events))
        metrics.write_seconds.observe(time.perf_counter() - began)
        oldest_ms = min(record.timestamp for record in records)
        metrics.lag_seconds.observe(max(time.time() - oldest_ms / 1000, 0))
        for partition, position in after.items():
            metrics.event_id.labels(str(partition)).set(position.event_id)

    def _caught_up(self) -> bool:
        return all(self._reached.get(p, 0) >= end for p, end in self._ends.items())
