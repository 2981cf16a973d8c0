"""Reading several partitions, each up to its own end."""

from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition

from processor.adapters.kafka.reader.range_reader import RangeReader

ONE, TWO = TopicPartition("t", 0), TopicPartition("t", 1)


class Consumer:
    """Gives two offsets of each partition at a time; where `markers` says so, no record shows."""

    def __init__(self, *, markers: frozenset[int] = frozenset()) -> None:
        self.at: dict[TopicPartition, int] = {}
        self.paused: list[TopicPartition] = []
        self._markers = markers

    def assign(self, tps: list[TopicPartition]) -> None:
        self.at = dict.fromkeys(tps, 0)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.at[tp] = offset

    def pause(self, tp: TopicPartition) -> None:
        self.paused.append(tp)

    async def position(self, tp: TopicPartition) -> int:
        return self.at[tp]

    async def getmany(self, *tps: TopicPartition, **how: Any) -> dict[TopicPartition, list[Any]]:
        fetched = {}
        for tp in tps:
            if tp not in self.paused:
                offsets = range(self.at[tp], self.at[tp] + 2)
                self.at[tp] += 2
                fetched[tp] = [SimpleNamespace(offset=n) for n in offsets if n not in self._markers]
        return fetched


async def offsets(reading: RangeReader) -> dict[TopicPartition, list[int]]:
    found: dict[TopicPartition, list[int]] = {}
    while not reading.done:
        for tp, records in (await reading.poll(wait_ms=0)).items():
            found.setdefault(tp, []).extend(record.offset for record in records)
    return found


async def test_each_partition_is_read_to_its_end_and_nothing_behind_it() -> None:
    reading = RangeReader(Consumer(), {ONE: 1, TWO: 4}, {ONE: 6, TWO: 5})

    assert await offsets(reading) == {ONE: [1, 2, 3, 4, 5], TWO: [4]}


async def test_an_end_that_is_a_marker_is_an_end() -> None:
    consumer: Any = Consumer(markers=frozenset({2, 3}))

    assert await offsets(RangeReader(consumer, {ONE: 0}, {ONE: 4})) == {ONE: [0, 1]}


async def test_without_ends_it_is_never_done() -> None:
    consumer: Any = Consumer()
    reading = RangeReader(consumer, {ONE: 0})

    for _ in range(3):
        await reading.poll(wait_ms=0)

    assert reading.positions == {ONE: 6}
    assert not reading.done
    assert consumer.paused == []
