"""One side of a repartition: what its topics hold at a moment, and reading them."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from processor.adapters.kafka.client_config import compression_type, connection_options
from processor.adapters.kafka.errors import explained
from processor.adapters.kafka.producer.transactional_producer import (
    KafkaTransactionalProducer,
    producers_stopped,
)
from processor.adapters.kafka.reader.log_reader import KafkaLogReader
from processor.cli.common.history import PartitionLog, open_history, open_log
from processor.cli.common.runner import Refused
from processor.contract.topics import Topics
from processor.engine.batch import PartitionConfig
from processor.engine.ports import OffsetRange as Whole
from processor.engine.rows import Position
from processor.ops.verify.ports import LogRange
from processor.recovery.checkpoint import newest_cursor
from processor.settings import Settings

COMMIT_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0

TopicRanges = dict[int, dict[str, LogRange]]


class Seen(NamedTuple):
    """The old side at one moment."""

    offset_ranges: TopicRanges
    cursors: dict[int, Position]

    def ends(self) -> dict[tuple[int, str], int]:
        return {(q, topic): one.end for q, topic, one in self._all()}

    @property
    def offsets(self) -> int:
        return sum(one.stable - one.start for _, _, one in self._all())

    def _all(self) -> Iterator[tuple[int, str, LogRange]]:
        return (
            (q, topic, one) for q, some in self.offset_ranges.items() for topic, one in some.items()
        )

    def rest(self, q: int, topic: str) -> tuple[int, int]:
        """First undecided offset and stable end."""
        offset_range = self.offset_ranges[q][topic]
        decided = getattr(self.cursors[q], topic.rpartition(".")[2])
        return max(decided, offset_range.start), offset_range.stable


class TopicSet:
    """The topics of one prefix, `count` partitions of each."""

    def __init__(self, settings: Settings, topics: Topics, count: int) -> None:
        self.topics = topics
        self.count = count
        self._settings = settings

    def history(self, partition: int) -> AbstractAsyncContextManager[KafkaLogReader]:
        return open_history(self._settings, partition, "repartition", self.topics)

    def log(self, partition: int) -> AbstractAsyncContextManager[PartitionLog]:
        return open_log(self._settings, partition, self.topics)

    async def look(self) -> Seen:
        """What is there now."""
        offset_ranges: TopicRanges = {}
        cursors: dict[int, Position] = {}
        for q in range(self.count):
            async with self.history(q) as history:
                offset_ranges[q] = {}
                for name in self.topics.by_flow:
                    whole = await history.offset_range(name)
                    stable = await history.stable_end(name)
                    offset_ranges[q][name] = LogRange(whole.start, stable, whole.end)
                place = PartitionConfig(q, self.count, self.topics, self._settings.dedupe_window_ms)
                state = offset_ranges[q][self.topics.state]
                at = {self.topics.state: Whole(state.start, state.stable)}
                cursor = await newest_cursor(place, history, at)
                cursors[q] = cursor.position if cursor else Position(0, 0, 0)
        return Seen(offset_ranges, cursors)

    async def undecided(self, seen: Seen) -> int:
        """How many commands are undecided."""
        count = 0
        for q in range(self.count):
            async with self.history(q) as history:
                for topic in (self.topics.commands, self.topics.control):
                    async for records in history.read(topic, *seen.rest(q, topic)):
                        count += len(records)
        return count

    def assert_unchanged(self, seen: Seen) -> None:
        """Raises Refused if it cannot be copied as it is."""
        for q, some in seen.offset_ranges.items():
            for topic, offset_range in some.items():
                if offset_range.stable < offset_range.end:
                    raise Refused(
                        f"A transaction is open on {topic}/{q} from offset "
                        f"{offset_range.stable} on; "
                        "`taskflow doctor` says more."
                    )
            if (start := some[self.topics.audit].start) > 0:
                raise Refused(
                    f"{self.topics.audit}/{q} begins at offset {start}: its "
                    "chains have no beginning that could be rewritten."
                )

    async def fence(self) -> None:
        """Fence the old side: an owner of a partition there cannot commit any more."""
        try:
            for q in range(self.count):
                writer = KafkaTransactionalProducer(
                    connection_options(self._settings, "repartition"),
                    self.topics,
                    q,
                    compression=compression_type(self._settings),
                    commit_timeout_s=COMMIT_TIMEOUT_S,
                )
                with explained(self._settings):
                    await writer.start()
                writer.discard()
        finally:
            await producers_stopped(STOP_TIMEOUT_S)
