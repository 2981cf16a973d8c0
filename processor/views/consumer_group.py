"""Describe the workers' consumer group: which worker decides which partition, and how far."""

import asyncio
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.internals import AnyBrokerAdmin
from processor.contract import Topics
from processor.settings import Settings

FRESH_S: Final = 2.0
PATIENCE_S: Final = 3.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class GroupState:
    """What Kafka said last; nothing, where it did not answer in time."""

    state: str | None = None
    workers: Mapping[int, str] = field(default_factory=dict)
    committed: Mapping[TopicPartition, int] = field(default_factory=dict)
    ends: Mapping[TopicPartition, int] = field(default_factory=dict)
    topics: Topics = field(default_factory=Topics)

    def unassigned(self, partitions: Iterable[int]) -> list[int] | None:
        """Those of `partitions` that no worker decides; None if Kafka does not say."""
        if self.state is None:
            return None
        return [partition for partition in partitions if partition not in self.workers]

    def undecided(self, partitions: Iterable[int]) -> int | None:
        """Offsets of commands and control of `partitions` that are not decided yet; None if that
        is not known. Where nothing was ever decided, all of them wait."""
        tps = [
            TopicPartition(topic, partition)
            for topic in (self.topics.commands, self.topics.control)
            for partition in partitions
        ]
        if any(tp not in self.ends for tp in tps):
            return None
        return sum(max(self.ends[tp] - self.committed.get(tp, 0), 0) for tp in tps)

    def of(self, partition: int) -> Json:
        return {
            "worker": self.workers.get(partition),
            "commands": self._lag(TopicPartition(self.topics.commands, partition)),
            "control": self._lag(TopicPartition(self.topics.control, partition)),
        }

    def _lag(self, tp: TopicPartition) -> Json | None:
        end, committed = self.ends.get(tp), self.committed.get(tp)
        if end is None:
            return None
        behind = None if committed is None else max(end - committed, 0)
        return {"end": end, "committed": committed, "behind": behind}


class WorkerGroup:
    """Asks Kafka at most once in FRESH_S, however many ask us."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topics = Topics(settings.topic_prefix)
        self._asking = asyncio.Lock()
        self._last = GroupState(topics=self._topics)
        self._asked_at_s = -FRESH_S
        self._stack: AsyncExitStack | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._consumer: AIOKafkaConsumer | None = None

    async def standing(self) -> GroupState:
        async with self._asking:
            if time.monotonic() - self._asked_at_s >= FRESH_S:
                try:
                    async with asyncio.timeout(PATIENCE_S):
                        self._last = await self._ask()
                except (KafkaError, TimeoutError, OSError):
                    self._last = GroupState(topics=self._topics)
                    await self._disconnect()
                self._asked_at_s = time.monotonic()
            return self._last

    async def close(self) -> None:
        await self._disconnect()

    async def _ask(self) -> GroupState:
        admin, consumer = await self._connected()
        group = self._settings.group_id
        tps = [
            TopicPartition(topic, partition)
            for topic in (self._topics.commands, self._topics.control)
            for partition in range(self._settings.partitions)
        ]
        committed = await admin.list_consumer_group_offsets(group)
        ends = await consumer.end_offsets(tps)
        (described,) = await admin.describe_consumer_groups([group])
        (state, members) = _members(described)
        return GroupState(
            state or None,
            {
                partition: f"{client} at {host.lstrip('/')}"
                for client, host, assignment in members
                for topic, partitions in assignment
                if topic == self._topics.commands
                for partition in partitions
            },
            {tp: found.offset for tp, found in committed.items() if found.offset >= 0},
            ends,
            self._topics,
        )

    async def _connected(self) -> tuple[AIOKafkaAdminClient, AIOKafkaConsumer]:
        if self._admin is None or self._consumer is None:
            stack = self._stack = AsyncExitStack()
            admin = AnyBrokerAdmin(**connection_options(self._settings, "views-admin"))
            stack.push_async_callback(admin.close)
            await admin.start()
            consumer = AIOKafkaConsumer(**connection_options(self._settings, "views-ends"))
            stack.push_async_callback(consumer.stop)
            await consumer.start()
            self._admin, self._consumer = admin, consumer
        return self._admin, self._consumer

    async def _disconnect(self) -> None:
        stack, self._stack, self._admin, self._consumer = self._stack, None, None, None
        if stack is not None:
            await stack.aclose()


def _members(described: Any) -> tuple[str, list[tuple[str, str, list[tuple[str, list[int]]]]]]:
    """The group's state, and of each member its client id, host and assignment."""
    group = described.to_object()["groups"][0]
    members = []
    for member in group["members"]:
        raw = member["member_assignment"]
        assigned = ConsumerProtocolMemberAssignment.decode(raw).assignment if raw else []
        members.append((member["client_id"], member["client_host"], assigned))
    return group["state"], members
