"""Reading back through a consumer that does as the test says."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient

from processor.adapters.kafka import log_reader as history_module
from processor.adapters.kafka.errors import HistoryStalled
from processor.adapters.kafka.internals import keep_topics
from processor.adapters.kafka.log_reader import KafkaLogReader

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
        monkeypatch.setattr(history_module.time, "monotonic", lambda: self._now_s)

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
