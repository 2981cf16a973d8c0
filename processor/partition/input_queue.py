"""The records of a partition's two sources that are fetched and not decided yet."""

import asyncio
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from processor.engine.batch import Decoded, PartitionConfig, WriteSet, sliced
from processor.engine.codec import Record, decode
from processor.engine.ports import Fetched, GroupConsumer
from processor.engine.rows import Position

FETCH_BYTES: Final = 2**20
"""How much a partition fetches at once, keys and values, by the size of the records before."""
FULL_SHARES: Final = 4
"""Of so many partitions in one process each may hold a whole batch; of more, a share."""
SHARE_MIN: Final = 150
LARGE_BYTES: Final = 16 * 2**10
"""What a record is taken for while none has been seen."""


class InputQueue:
    """Fetches `commands` and `control` of one partition, and holds them in the order of decision:
    by append time, in each topic by offset.

    `appended` is called with the append time (ms) of the newest record of each fetch and topic.
    """

    def __init__(
        self,
        place: PartitionConfig,
        source: GroupConsumer,
        *,
        batch_max_records: int,
        appended: Callable[[int], None],
    ) -> None:
        self.partitions = 1
        """How many partitions share this process's memory."""
        self.position = Position(0, 0, 0)
        """Up to where both sources are decided."""
        self._place = place
        self._source = source
        self._batch_max_records = batch_max_records
        self._appended = appended
        self._pending: list[Decoded] = []
        self._generation = 0
        self._record_bytes = LARGE_BYTES
        self._newest_ms = {place.topics.commands: 0, place.topics.control: 0}
        """The append time of the newest decided record of each source."""

    def __len__(self) -> int:
        return len(self._pending)

    @property
    def pending(self) -> Sequence[Decoded]:
        return self._pending

    @property
    def size_bytes(self) -> int:
        """Of the keys and values of all pending records."""
        return sum(_size_bytes(item.record) for item in self._pending)

    @property
    def lag(self) -> int:
        """Offsets of both sources that are not decided yet, as far as is known; those behind an
        open transaction count."""
        lags = self._source.lags(self._place.partition)
        hidden = sum(one.end - one.start for one in self._source.hidden(self._place.partition))
        return sum(lag or 0 for lag in lags) + hidden + len(self._pending)

    @property
    def is_outdated(self) -> bool:
        """Whether the group was rebalanced since `attach`: what is fetched now would be void."""
        return self._source.generation != self._generation

    def clear(self) -> None:
        self._pending = []

    async def attach(self, position: Position) -> None:
        """Fetch from `position` on: after a takeover, and whenever the group was rebalanced and
        left the partition with us, which keeps producer and memory."""
        self._generation = await self._source.assigned(self._place.partition)
        self._pending = []
        self.position = position
        self._source.attach(self._place.partition, position)

    async def fetch(self, *, timeout_s: float) -> Fetched:
        """What comes next, or nothing after `timeout_s`."""
        return await self._source.fetch(
            self._place.partition, max_records=self._fetch_max(), timeout_s=timeout_s
        )

    async def put(self, fetched: Fetched) -> bool:
        """Decode and hold what was fetched. False: it was for an assignment that is over."""
        items: list[Decoded] = []
        for records in fetched:
            if records:
                self._appended(records[-1].timestamp)
                self._record_bytes = sum(map(_size_bytes, records)) // len(records)
        for some in sliced(list(self._in_order(fetched))):
            items.extend(map(decode, some))
            await asyncio.sleep(0)
        if self.is_outdated:
            return False
        self._pending = items
        return True

    def advance(self, position: Position, count: int = 0) -> None:
        """Drop the first `count` records: both sources are decided up to `position`."""
        self.position = position
        self._pending = self._pending[count:]

    def decided(self, topic: str) -> int:
        """Up to where `topic`, a source, is decided, markers included."""
        ahead = self._source.ahead(self._place.partition)
        commands = topic == self._place.topics.commands
        decided = self.position.commands if commands else self.position.control
        if ahead is None or self.holds(topic):
            return decided
        return max(decided, ahead.commands if commands else ahead.control)

    def holds(self, topic: str) -> bool:
        """Whether records of `topic` are pending."""
        return any(item.record.topic == topic for item in self._pending)

    def oldest_to_come_ms(self, batch: WriteSet) -> int:
        """The append time before which no command lies that is decided after `batch`.

        A topic that lags, or of which nothing is known yet, may still bring commands as old as
        its newest decided one.
        """
        for topic, at_ms in batch.newest.items():
            self._newest_ms[topic] = max(self._newest_ms[topic], at_ms)
        newest = max(self._newest_ms.values())
        topics = self._place.topics
        lags = self._source.lags(self._place.partition)
        undecided = {item.record.topic for item in self._pending[batch.handled :]}
        return min(
            newest if lag == 0 and topic not in undecided else self._newest_ms[topic]
            for topic, lag in zip((topics.commands, topics.control), lags, strict=True)
        )

    def _in_order(self, fetched: Fetched) -> Iterable[Record]:
        """Both topics by append time, each in the order of its offsets; nothing twice."""
        position = self.position
        commands = [r for r in fetched.commands if r.offset >= position.commands]
        control = [r for r in fetched.control if r.offset >= position.control]
        if not control:
            return commands
        return heapq.merge(commands, control, key=lambda record: record.timestamp)

    def _fetch_max(self) -> int:
        """As many records as make a batch, or fewer where they are large or the partitions many:
        each is in memory as it came, as it was parsed and as what it brings about."""
        share = min(1.0, FULL_SHARES / self.partitions)
        records = max(SHARE_MIN, int(self._batch_max_records * share))
        fitting = int(FETCH_BYTES * share) // max(1, self._record_bytes)
        return max(1, min(self._batch_max_records, records, fitting))


def _size_bytes(record: Record) -> int:
    """Of its key and value."""
    return len(record.key or b"") + len(record.value or b"")
