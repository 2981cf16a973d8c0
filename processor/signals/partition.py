"""Fold one partition of a source topic exactly once: state, position and records in transactions.

Taking over has the steps of a worker's partition: fence the former producer by the transactional
id, read `signals.state` to its real end, continue at the position in it. A crash between any two
steps leaves a transaction committed or aborted; the next owner continues from there. The consumer
group only assigns partitions: no fold starts from the group's offsets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import orjson
from aiokafka import TopicPartition

from processor.adapters.kafka.client_config import compression_type, connection_options
from processor.adapters.kafka.producer.transactional_producer import KafkaTransactionalProducer
from processor.adapters.kafka.reader.log_reader import KafkaLogReader
from processor.contract.topics import SignalTopics, Topics
from processor.engine.batch import Outgoing
from processor.engine.codec import Record
from processor.errors import HistoryLost, TaskflowError
from processor.settings import Settings

CURSOR_ENTRY: Final = "cursor/"
COMMIT_TIMEOUT_S: Final = 20.0


class GapInSource(TaskflowError):
    """A fetch does not continue at the partition's next offset; the service starts again from its
    positions."""

    retriable = True


class Chunk(NamedTuple):
    """Committed records of one partition, complete from offset `start` on."""

    start: int
    records: Sequence[Record]


@dataclass(slots=True)
class FoldOutput:
    """The output of a fold: entries of its state (None: removed), records for `signals.log` by
    partition, and dead letters."""

    state: Mapping[bytes, bytes | None] = field(default_factory=dict)
    log: dict[int, list[Outgoing]] = field(default_factory=dict)
    dead_letters: list[Outgoing] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.state or self.log or self.dead_letters)


class Fold(Protocol):
    """A fold of the records of one partition of a source topic. Pure: no clock, no I/O."""

    prefixes: tuple[bytes, ...]
    """The prefixes of its entries' keys on `signals.state`."""

    def load(self, entry_key: bytes, value: bytes) -> None:
        """Load an entry of `signals.state`."""

    def loaded(self) -> None:
        """Complete the state after the last entry is loaded."""

    def apply(self, records: Sequence[Record]) -> None:
        """Fold the next records."""

    def take_output(self) -> FoldOutput:
        """Return the output since the last call."""


class SourcePartition:
    """One partition of a source topic, from `take_over` until `close`, for one task at a time."""

    def __init__(
        self, settings: Settings, name: str, topic: str, partition: int, fold: Fold
    ) -> None:
        """`name`: the source: `audit`, `signals` or `log`."""
        self.fold = fold
        self.next_offset = 0
        """The offset in the source after the last folded and committed record."""
        self.written_ms: int | None = None
        """The broker's time of the last transaction."""
        self._settings = settings
        self._name = name
        self._topic = topic
        self._partition = partition
        self._topics = SignalTopics(settings.topic_prefix)
        self._producer: KafkaTransactionalProducer | None = None
        self._reader: KafkaLogReader | None = None

    async def take_over(self) -> None:
        """Fence the owner before, and load what it has committed.

        Raises HistoryLost if the source no longer holds what comes next, and what the brokers'
        errors are turned into.
        """
        settings = self._settings
        connection = connection_options(settings, "signals")
        state, key = self._topics.state, self._cursor_key
        self._reader = KafkaLogReader(connection, self._partition, topics=[self._topic, state])
        await self._start_producer()
        ranges = await self._reader.settled([state])
        entries: dict[bytes, bytes] = {}
        wanted = (key, *self.fold.prefixes)
        async for records in self._reader.read(state, *ranges[state]):
            for record in records:
                if record.key is None or not record.key.startswith(wanted):
                    continue
                if record.value is None:
                    entries.pop(record.key, None)
                else:
                    entries[record.key] = record.value
        cursor = entries.pop(key, None)
        for entry_key, value in entries.items():
            self.fold.load(entry_key, value)
        self.fold.loaded()
        source = await self._reader.offset_range(self._topic)
        self.next_offset = source.start if cursor is None else orjson.loads(cursor)["next"]
        if not source.start <= self.next_offset <= source.end:
            raise HistoryLost(
                f"{self._topic}/{self._partition} holds offsets {source.start} to {source.end}; "
                f"{self.next_offset} comes next: retention took it, or the topic was recreated. "
                f"Signals may be lost. Delete {state} to start again from what the topics hold."
            )

    async def take(self, chunk: Chunk) -> None:
        """Fold the new records of `chunk`, and commit the output.

        Raises GapInSource, OwnershipLost and other errors of a transaction; the partition must then
        be taken over again.
        """
        if chunk.start > self.next_offset:
            raise GapInSource(
                f"{self._topic}/{self._partition} continues at offset {chunk.start}, but "
                f"{self.next_offset} comes next"
            )
        records = [record for record in chunk.records if record.offset >= self.next_offset]
        if records:
            self.fold.apply(records)
            self.next_offset = records[-1].offset + 1
            await self.commit()

    async def commit(self, *, log: Mapping[int, Sequence[Outgoing]] | None = None) -> None:
        """Write the fold's output with the position; nothing if there is no output.

        `log`: further records for `signals.log`, which need a transaction in any case.
        """
        output = self.fold.take_output()
        if log is None and not output:
            return
        state = [Outgoing(key, value, []) for key, value in output.state.items()]
        position = Outgoing(self._cursor_key, orjson.dumps({"next": self.next_offset}), [])
        records: dict[TopicPartition, Sequence[Outgoing]] = {
            TopicPartition(self._topics.state, self._partition): [*state, position]
        }
        for partition in sorted(output.log.keys() | (log or {}).keys()):
            records[TopicPartition(self._topics.log, partition)] = [
                *output.log.get(partition, ()),
                *(log or {}).get(partition, ()),
            ]
        if output.dead_letters:
            place = TopicPartition(self._topics.dead_letters, self._partition)
            records[place] = output.dead_letters
        await self._write(records)

    def behind(self, position: int, end: int | None, fetched: int) -> int | None:
        """The number of committed offsets that are not folded yet; None if it is not known.

        `position`: the consumer's; `end`: of what is committed; `fetched`: behind the last fetched
        record. Behind that one there are only markers of transactions, which are no lag.
        """
        if end is None:
            return None
        all_folded = fetched <= self.next_offset
        passed = max(position, self.next_offset) if all_folded else self.next_offset
        return max(end - passed, 0)

    async def source_end(self) -> int:
        """The source's end offset now, including open transactions."""
        assert self._reader is not None, "a partition is taken over first"
        return (await self._reader.offset_range(self._topic)).end

    async def close(self) -> None:
        """Close producer and reader without a commit."""
        if self._producer is not None:
            self._producer.discard()
        if self._reader is not None:
            await self._reader.close()

    @property
    def _cursor_key(self) -> bytes:
        return f"{CURSOR_ENTRY}{self._name}".encode()

    async def _start_producer(self) -> None:
        settings = self._settings
        self._producer = KafkaTransactionalProducer(
            connection_options(settings, "signals"),
            Topics(settings.topic_prefix),
            self._partition,
            compression=compression_type(settings),
            commit_timeout_s=COMMIT_TIMEOUT_S,
            transactional_id=f"{self._topics.prefix}.signals-{self._name}-{self._partition}",
        )
        await self._producer.start()

    async def _write(self, records: Mapping[TopicPartition, Any]) -> None:
        producer = self._producer
        assert producer is not None, "a partition is taken over first"
        written = await producer.write_to(records)
        self.written_ms = written.at_ms
        if producer.suspect:
            producer.discard()
            await self._start_producer()
