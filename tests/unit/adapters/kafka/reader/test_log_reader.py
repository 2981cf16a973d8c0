"""Reading back through a consumer that does as the test says."""

import asyncio
import time
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAuthorizationFailedError,
)

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import (
    HistoryStalled,
    NotAuthorized,
    PositionLost,
    ReadFailed,
)
from processor.adapters.kafka.internals import keep_topics
from processor.adapters.kafka.reader import log_reader as history_module
from processor.adapters.kafka.reader.log_reader import KafkaLogReader, LogReaders
from processor.settings import Settings

PASSES_S = 1.0
"""How long a fetch takes on the test's clock."""


class Consumer:
    """Comes one offset further with each fetch, until it stalls; shows no record unless told to."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        stalls_at: int | None = None,
        shows: bool = False,
    ) -> None:
        self.fetches = 0
        self.paused: list[TopicPartition] = []
        self._shows = shows
        self._stalls_at = stalls_at
        self._position = 0
        self._now_s = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self._now_s)

    def assign(self, tps: Any) -> None: ...

    def pause(self, tp: TopicPartition) -> None:
        self.paused.append(tp)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self._position = offset

    async def getmany(self, *tps: TopicPartition, **how: Any) -> Mapping[TopicPartition, Any]:
        self.fetches += 1
        self._now_s += PASSES_S
        if self._position != self._stalls_at:
            self._position += 1
        return {tps[0]: [SimpleNamespace(offset=self._position - 1)]} if self._shows else {}

    async def position(self, tp: TopicPartition) -> int:
        return self._position


def history(consumer: Consumer) -> KafkaLogReader:
    history = KafkaLogReader({}, 3, stall_timeout_s=5.0)
    history._readers._consumers["read_committed"] = consumer
    return history


async def test_a_read_that_comes_no_further_for_its_time_fails_and_may_be_begun_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consumer = Consumer(monkeypatch, stalls_at=7)

    with pytest.raises(HistoryStalled, match=r"t.audit of partition 3 stands at offset 7 of 10"):
        [some async for some in history(consumer).read("t.audit", 4, 10)]

    assert HistoryStalled.retriable
    assert consumer.fetches == 3 + 6


async def test_a_slow_read_that_comes_further_may_take_longer_than_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consumer = Consumer(monkeypatch)

    assert [some async for some in history(consumer).read("t.audit", 0, 50)] == []

    assert consumer.fetches == 50


async def test_a_read_that_has_come_to_its_end_asks_for_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    consumer = Consumer(monkeypatch, shows=True)

    paused = []
    async for _ in history(consumer).read("t.audit", 0, 3):
        paused.append(list(consumer.paused))

    # Before the last records are handed out: what follows them would be awaited meanwhile.
    assert paused == [[], [], [TopicPartition("t.audit", 3)]]


async def test_a_client_that_turns_to_one_topic_keeps_knowing_the_others() -> None:
    client = AIOKafkaClient()
    keep_topics(client)
    learning = client.set_topics(["t.audit", "t.state"])

    turning = client.set_topics(["t.audit"])

    assert client._topics == {"t.audit", "t.state"}
    assert not learning.done()
    assert turning.done(), "there is nothing to learn, and so nothing to wait for"


class Away:
    """A consumer whose broker is away for the next `for_calls` calls, also in the middle of a
    read, which comes one offset further each time."""

    def __init__(self, for_calls: int, error: KafkaError) -> None:
        self.for_calls, self.error = for_calls, error
        self.starts: list[int] = []
        self._position = 0

    def assign(self, tps: Any) -> None: ...
    def pause(self, tp: TopicPartition) -> None: ...

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.starts.append(offset)
        self._position = offset

    def _respond(self) -> None:
        if self.for_calls:
            self.for_calls -= 1
            raise self.error

    async def offsets_for_times(self, times: Mapping[TopicPartition, int]) -> Any:
        self._respond()
        return dict.fromkeys(times, SimpleNamespace(offset=7))

    async def getmany(self, tp: TopicPartition, **how: Any) -> Mapping[TopicPartition, Any]:
        if self._position % 2:
            self._respond()
        self._position += 1
        return {tp: [SimpleNamespace(offset=self._position - 1)]}

    async def position(self, tp: TopicPartition) -> int:
        return self._position


class Missing:
    """A reader with patience, and how often it has let go of its consumers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, away: Away, patience_s: float) -> None:
        self.closed = 0

        async def consumer(readers: LogReaders, isolation_level: str) -> Away:
            return away

        async def close(readers: LogReaders) -> None:
            self.closed += 1

        monkeypatch.setattr(LogReaders, "consumer", consumer)
        monkeypatch.setattr(LogReaders, "close", close)
        monkeypatch.setattr(history_module, "ASK_AGAIN_S", 0)
        connection = connection_options(Settings(), "test")
        self.reader = KafkaLogReader(connection, 3, patience_s=patience_s, in_step=True)

    async def all(self) -> list[int]:
        return [one.offset async for some in self.reader.read("t.audit", 0, 5) for one in some]


async def test_a_read_goes_on_behind_what_it_has_given_once_the_broker_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away = Away(3, KafkaConnectionError())
    missing = Missing(monkeypatch, away, 60.0)

    assert await missing.all() == [0, 1, 2, 3, 4]

    assert away.starts == [0, 1, 1, 1]
    assert missing.closed == 3, "each try has clients of its own: aiokafka's may never come back"


async def test_a_question_is_asked_again_until_the_broker_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = Missing(monkeypatch, Away(3, KafkaConnectionError()), 60.0)

    assert await missing.reader.offset_at("t.audit", 0) == 7
    assert missing.closed == 3


async def test_patience_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(2, KafkaConnectionError())
    missing = Missing(monkeypatch, away, 0.0)

    with pytest.raises(ReadFailed):
        await missing.reader.offset_at("t.audit", 0)
    with pytest.raises(ReadFailed):
        await missing.all()
    assert away.for_calls == 0


@pytest.mark.parametrize(
    ("error", "notified"),
    [
        (TopicAuthorizationFailedError("t.audit"), NotAuthorized),
        (OffsetOutOfRangeError({TopicPartition("t.audit", 3): 1}), PositionLost),
    ],
)
async def test_what_waiting_does_not_mend_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch, error: KafkaError, notified: type[Exception]
) -> None:
    away = Away(1, error)
    with pytest.raises(notified):
        await Missing(monkeypatch, away, 60.0).all()
    assert away.starts == [0]


async def test_a_consumer_that_connects_while_all_are_closed_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing stops it later: a worker's last look at an end may come after its stop."""
    connecting, connected = asyncio.Event(), asyncio.Event()
    stopped: list[object] = []

    async def start(consumer: AIOKafkaConsumer) -> None:
        connecting.set()
        await connected.wait()

    async def stop(consumer: AIOKafkaConsumer, *, timeout_s: float) -> None:
        stopped.append(consumer)
        await consumer.stop()

    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    monkeypatch.setattr(history_module, "stop_consumer", stop)
    readers = LogReaders(connection_options(Settings(), "test"))
    asking = asyncio.create_task(readers.consumer("read_committed"))
    await connecting.wait()

    await readers.close()
    connected.set()

    with pytest.raises(ReadFailed):
        await asking
    assert len(stopped) == 1
