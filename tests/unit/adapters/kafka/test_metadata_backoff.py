"""How often a client asks for metadata while nobody, or nobody of use, answers."""

import asyncio
import inspect
from importlib.metadata import version

import pytest
from aiokafka.client import AIOKafkaClient

from processor.adapters.kafka.metadata_backoff import back_off_metadata


class Cluster:
    """Topics' partitions, of which only some have a leader."""

    def __init__(self, led: dict[str, set[int]]) -> None:
        self._led = led

    def topics(self, exclude_internal_topics: bool = True) -> set[str]:
        return set(self._led)

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0, 1}

    def available_partitions_for_topic(self, topic: str) -> set[int]:
        return self._led[topic]


ALL_LED = Cluster({"t": {0, 1}, "offline": set()})


class Client:
    """Asks whoever the test puts there, on a clock that only sleeping moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        self.responds = True
        self.breaks = False
        self.asked_at: list[float] = []
        monkeypatch.setattr(asyncio, "sleep", self._sleep)
        back_off_metadata(self, monotonic=lambda: self.now_s)

    async def _sleep(self, for_s: float) -> None:
        self.now_s += for_s

    async def _metadata_update(self, cluster: Cluster, topics: set[str]) -> bool:
        self.asked_at.append(self.now_s)
        if self.breaks:
            raise KeyError("something that aiokafka did not foresee")
        return self.responds

    async def ask(self, times: int, cluster: Cluster = ALL_LED) -> list[float]:
        """The seconds from each question to the next."""
        self.asked_at.clear()
        for _ in range(times):
            await self._metadata_update(cluster, {"t"})
        gaps = zip(self.asked_at, self.asked_at[1:], strict=False)
        return [round(later - earlier, 3) for earlier, later in gaps]


async def test_a_broker_that_is_away_is_asked_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client(monkeypatch)
    client.responds = False

    assert await client.ask(8) == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0]


async def test_a_partition_without_a_leader_is_asked_for_ever_more_rarely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert await Client(monkeypatch).ask(4, Cluster({"t": {1}})) == [0.1, 0.2, 0.4]


async def test_what_nobody_foresaw_is_asking_in_vain_and_not_the_end_of_asking(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client(monkeypatch)
    client.breaks = True

    assert await client.ask(4) == [0.1, 0.2, 0.4]


async def test_who_is_answered_asks_again_without_a_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch)
    client.responds = False
    await client.ask(8)
    client.responds = True

    assert await client.ask(4) == [0.0, 0.0, 0.0]


async def test_time_that_has_passed_anyhow_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client(monkeypatch)
    client.responds = False
    await client.ask(8)
    client.now_s += 60.0
    began = client.now_s
    await client.ask(1)

    assert client.asked_at == [began]


def test_what_is_paced_is_where_it_was_in_this_version_of_aiokafka() -> None:
    assert version("aiokafka") == "0.14.0"
    assert list(inspect.signature(AIOKafkaClient._metadata_update).parameters) == [
        "self",
        "cluster_metadata",
        "topics",
    ]
    # What is forced is asked there, and those who forced it await its end.
    assert "await self._metadata_update(" in inspect.getsource(AIOKafkaClient._md_synchronizer)
