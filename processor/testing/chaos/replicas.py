"""Read leaders and in-sync sets of all partitions of a cluster, and move leaders."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any, Final, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import Array, Int8, Int16, Int32, Schema, String

from processor.adapters.kafka.internals import send_request
from processor.embedded.broker import EmbeddedBroker
from processor.testing.chaos.outcome_tracker import NotHealed

REQUEST_TIMEOUT_MS: Final = 10_000
POLL_S: Final = 0.2
PREFERRED: Final = 0
MOVED: Final = 0
"""The error code of a newly elected leader; if the leader stays, the code is another."""


class PartitionReplicas(NamedTuple):
    """The node ids of a partition's replicas. `leader` is -1 if there is none; the first of
    `replicas` is the preferred leader."""

    topic: str
    partition: int
    leader: int
    replicas: tuple[int, ...]
    insync: tuple[int, ...]

    @property
    def whole(self) -> bool:
        return self.leader >= 0 and set(self.insync) == set(self.replicas)


Holds = Callable[[Sequence[PartitionReplicas]], bool]


class Replicas:
    """The replicas of all partitions of the cluster of `brokers`."""

    def __init__(self, brokers: Sequence[EmbeddedBroker]) -> None:
        self._brokers = brokers

    async def seen_by(self, broker: EmbeddedBroker) -> list[PartitionReplicas]:
        """Return all partitions as `broker` knows them. Raises KafkaError, OSError,
        TimeoutError."""
        async with _asking(broker) as admin:
            response = await send_request(admin, MetadataRequest(None), broker.node_id)
        return [
            PartitionReplicas(
                topic["topic"],
                one["partition"],
                one["leader"],
                tuple(one["replicas"]),
                tuple(one["isr"]),
            )
            for topic in response.to_object()["topics"]
            for one in topic["partitions"]
        ]

    async def until(
        self, broker: EmbeddedBroker, what: str, holds: Holds, *, timeout_s: float
    ) -> None:
        """Wait until `holds` of the partitions as `broker` knows them. Raises NotHealed with
        `what`."""
        deadline = time.monotonic() + timeout_s
        seen: Sequence[PartitionReplicas] = ()
        while True:
            try:
                seen = await self.seen_by(broker)
            except (KafkaError, OSError, TimeoutError):
                pass  # the broker may be starting
            else:
                if holds(seen):
                    return
            if time.monotonic() > deadline:
                amiss = [one for one in seen if not one.whole]
                raise NotHealed(
                    f"After {timeout_s:g} s it does not hold that {what}. By broker "
                    f"{broker.node_id}, {len(amiss)} of {len(seen)} partitions lack a leader or "
                    f"replicas in sync, such as {amiss[:1]}."
                )
            await asyncio.sleep(POLL_S)

    async def until_whole(self, *, timeout_s: float) -> None:
        """Wait until each partition has a leader and all its replicas in sync. Raises NotHealed."""
        await self.until(
            self._brokers[0],
            "all replicas are in sync",
            lambda seen: bool(seen) and all(one.whole for one in seen),
            timeout_s=timeout_s,
        )

    async def move_leaders(self, dice: random.Random) -> int:
        """Make a random replica of each partition its preferred leader, and elect it; return the
        number of leaders that moved. Raises KafkaError, OSError, TimeoutError."""
        broker = self._brokers[0]
        before = await self.seen_by(broker)
        orders = [
            one._replace(replicas=tuple(dice.sample(one.replicas, len(one.replicas))))
            for one in before
        ]
        async with _asking(broker) as admin:
            await send_request(admin, _reassignment(orders), broker.node_id)
            elected = await send_request(admin, _ElectLeadersRequest(orders), broker.node_id)
        codes = [code for _, partitions in elected.results for _, code, _ in partitions]
        return codes.count(MOVED)


@asynccontextmanager
async def _asking(broker: EmbeddedBroker) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(
        bootstrap_servers=broker.bootstrap, request_timeout_ms=REQUEST_TIMEOUT_MS
    )
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


def _by_topic(
    partitions: Iterable[PartitionReplicas],
) -> list[tuple[str, list[PartitionReplicas]]]:
    ordered = sorted(partitions)
    return [(topic, list(of)) for topic, of in groupby(ordered, key=lambda one: one.topic)]


def _reassignment(orders: Iterable[PartitionReplicas]) -> AlterPartitionReassignmentsRequest:
    topics: list[Any] = [
        (topic, [(one.partition, list(one.replicas), {}) for one in of], {})
        for topic, of in _by_topic(orders)
    ]
    return AlterPartitionReassignmentsRequest(REQUEST_TIMEOUT_MS, topics, {})


class _ElectLeadersResponse(Response):  # type: ignore[misc]
    """ElectLeaders, version 1, which aiokafka 0.14 lacks."""

    API_KEY = 43
    API_VERSION = 1
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        (
            "results",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("partition", Int32),
                        ("error_code", Int16),
                        ("error_message", String("utf-8")),
                    ),
                ),
            ),
        ),
    )


class _ElectLeadersRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 43
    API_VERSION = 1
    RESPONSE_TYPE = _ElectLeadersResponse
    SCHEMA = Schema(
        ("election_type", Int8),
        ("topics", Array(("topic", String("utf-8")), ("partitions", Array(Int32)))),
        ("timeout_ms", Int32),
    )


class _ElectLeadersRequest(Request[_ElectLeadersRequestStruct]):  # type: ignore[misc]
    """A request to elect the preferred replica of each partition."""

    API_KEY = 43

    def __init__(self, partitions: Iterable[PartitionReplicas]) -> None:
        self._topics = [
            (topic, [one.partition for one in of]) for topic, of in _by_topic(partitions)
        ]

    def build(
        self, request_struct_class: type[_ElectLeadersRequestStruct]
    ) -> _ElectLeadersRequestStruct:
        return request_struct_class(PREFERRED, self._topics, REQUEST_TIMEOUT_MS)
