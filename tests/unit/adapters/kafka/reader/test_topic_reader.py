"""A consumer that breaks or falls silent is replaced where the last one stood."""

import asyncio
import time
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, OffsetOutOfRangeError

from processor.adapters.kafka.errors import PositionLost
from processor.adapters.kafka.reader import topic_reader as module
from processor.adapters.kafka.reader.topic_reader import TopicReader
from processor.settings import Settings


class Consumer:
    """A consumer of aiokafka's that has nothing to say."""

    def __init__(
        self, *, fails_with: Exception | None = None, received_ms: float | None = None
    ) -> None:
        self.sought: dict[int, int] = {}
        self.closed = False
        self._fails_with = fails_with
        self._received_ms = received_ms
        self._client = self

    async def start(self) -> None: ...

    async def stop(self) -> None:
        raise asyncio.CancelledError  # as aiokafka's does when a fetch waits to be tried again

    async def close(self) -> None:
        self.closed = True

    def assign(self, partitions: list[TopicPartition]) -> None: ...

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.sought[tp.partition] = offset

    async def getmany(self, *tps: TopicPartition, **how: Any) -> dict[TopicPartition, list[Any]]:
        await asyncio.sleep(0)
        if self._fails_with is not None:
            raise self._fails_with
        return {}

    async def position(self, tp: TopicPartition) -> int:
        return self.sought[tp.partition]

    def last_poll_timestamp(self, _: TopicPartition) -> float | None:
        return self._received_ms


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BACKOFF_MIN_S", 0.0)


def a_reader(*consumers: Consumer) -> TopicReader:
    made = iter(consumers)

    class Reader(TopicReader):
        def _new_consumer(self) -> Any:
            return next(made)

    reader = Reader(Settings(), "t.outcomes")
    reader.positions = {0: 17, 1: 4}
    return reader


async def test_a_broken_consumer_is_let_go_of_and_replaced_at_its_position() -> None:
    broken, healthy = Consumer(fails_with=KafkaConnectionError()), Consumer()
    reader = a_reader(broken, healthy)
    assert await reader.poll(wait_s=0) == []
    assert broken.closed
    await reader.poll(wait_s=0)
    assert healthy.sought == {0: 17, 1: 4}


async def test_a_silent_consumer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STALL_S", 0.0)
    silent, healthy = Consumer(received_ms=(time.time() - 60) * 1000), Consumer()
    reader = a_reader(silent, healthy)
    await reader.poll(wait_s=0)
    assert silent.closed
    await reader.poll(wait_s=0)
    assert healthy.sought == {0: 17, 1: 4}


async def test_a_consumer_that_hears_of_nothing_new_is_kept() -> None:
    quiet = Consumer(received_ms=time.time() * 1000)
    reader = a_reader(quiet)
    for _ in range(3):
        await reader.poll(wait_s=0)
    assert not quiet.closed


async def test_a_position_that_is_gone_is_told() -> None:
    lost = OffsetOutOfRangeError({TopicPartition("t.outcomes", 1): 4})
    reader = a_reader(Consumer(fails_with=lost))
    with pytest.raises(PositionLost) as caught:
        await reader.poll(wait_s=0)
    assert caught.value.positions == {1: 4}


async def test_a_poll_that_is_cancelled_keeps_its_consumer() -> None:
    """As when somebody waits for the next event with a deadline."""
    quiet = Consumer(received_ms=time.time() * 1000)
    reader = a_reader(quiet)
    await reader.poll(wait_s=0)
    polling = asyncio.ensure_future(reader.poll(wait_s=0))
    await asyncio.sleep(0)

    polling.cancel()
    await asyncio.gather(polling, return_exceptions=True)

    assert polling.cancelled()
    assert not quiet.closed
    assert await reader.poll(wait_s=0) == []
