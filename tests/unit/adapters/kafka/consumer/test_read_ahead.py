"""The reader takes records out of the consumer before they are asked for, up to a bound."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import ConsumerStoppedError, KafkaError

from processor.adapters.kafka.consumer.read_ahead import BYTES_MAX, ReadAhead, Records

TP = TopicPartition("taskflow.commands", 0)


class _Consumer:
    """Gives out what was put in, one item for each call of `getmany`."""

    def __init__(self) -> None:
        self._coordinator = SimpleNamespace(_pending_exception=None)
        self.fetches: asyncio.Queue[list[Any] | Exception] = asyncio.Queue()
        self.asked: list[int] = []
        """`max_records` of each call."""

    async def getmany(self, *_: TopicPartition, timeout_ms: int, max_records: int) -> Records:
        self.asked.append(max_records)
        fetched = await self.fetches.get()
        if isinstance(fetched, Exception):
            raise fetched
        return {TP: fetched} if fetched else {}

    def put(self, *offsets: int, size_bytes: int = 1) -> None:
        self.fetches.put_nowait([_record(offset, size_bytes) for offset in offsets])


def _record(offset: int, size_bytes: int) -> Any:
    return SimpleNamespace(offset=offset, key=None, value=bytes(size_bytes))


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def _take(ahead: ReadAhead, max_records: int = 10, timeout_s: float = 60.0) -> list[int]:
    taken = await ahead.take(max_records=max_records, timeout_s=timeout_s)
    return [record.offset for records in taken.values() for record in records]


async def test_what_comes_while_nobody_takes_is_read_and_held() -> None:
    consumer = _Consumer()
    ahead = ReadAhead(consumer, TP)
    consumer.put(0)
    assert await _take(ahead) == [0]
    consumer.put(1)
    consumer.put(2, 3)
    await _settled()
    assert consumer.fetches.empty()
    assert ahead.position(TP) == 1
    assert await _take(ahead) == [1, 2, 3]
    assert ahead.position(TP) is None
    assert await _take(ahead, timeout_s=0) == []
    await ahead.stop()


async def test_nothing_is_read_before_somebody_asks() -> None:
    consumer = _Consumer()
    ahead = ReadAhead(consumer, TP)
    consumer.put(0)
    await _settled()
    assert consumer.asked == []
    await ahead.stop()


async def test_no_more_is_read_than_a_take_asks_for() -> None:
    consumer = _Consumer()
    ahead = ReadAhead(consumer, TP)
    consumer.put(0)
    assert await _take(ahead, max_records=3) == [0]
    consumer.put(1)
    consumer.put(2, 3)
    consumer.put(4)
    await _settled()
    assert consumer.fetches.qsize() == 1
    assert await _take(ahead, max_records=3) == [1, 2, 3]
    assert await _take(ahead, max_records=3) == [4]
    await ahead.stop()


async def test_no_more_is_read_while_large_records_are_held() -> None:
    consumer = _Consumer()
    ahead = ReadAhead(consumer, TP)
    consumer.put(0)
    assert await _take(ahead) == [0]
    consumer.put(1, size_bytes=BYTES_MAX)
    consumer.put(2)
    await _settled()
    assert await _take(ahead) == [1]
    assert await _take(ahead) == [2]
    await ahead.stop()


async def test_an_error_is_raised_behind_what_was_read_before_it() -> None:
    consumer = _Consumer()
    ahead = ReadAhead(consumer, TP)
    consumer.put(0)
    consumer.fetches.put_nowait(KafkaError("no such offset"))
    assert await _take(ahead) == [0]
    await _settled()
    with pytest.raises(KafkaError, match="no such offset"):
        await _take(ahead)


async def test_an_error_of_coordination_is_told_and_stays_where_it_is() -> None:
    consumer = _Consumer()
    consumer._coordinator._pending_exception = error = KafkaError("the group has ended")
    ahead = ReadAhead(consumer, TP)
    with pytest.raises(KafkaError, match="the group has ended"):
        await _take(ahead)
    assert consumer.asked == []
    assert consumer._coordinator._pending_exception is error


@pytest.mark.parametrize("stopped", [False, True])
async def test_who_waits_when_the_assignment_ends_gets_nothing(stopped: bool) -> None:
    consumer = _Consumer()
    ahead = ReadAhead(consumer, TP)
    taking = asyncio.create_task(_take(ahead))
    await _settled()
    if stopped:
        await ahead.stop()
        with pytest.raises(ConsumerStoppedError):
            await taking
    else:
        ahead.drop()
        assert await taking == []
