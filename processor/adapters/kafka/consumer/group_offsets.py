"""Describe a consumer group, and set its offsets while it is empty."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    CommitFailedError,
    GroupCoordinatorNotAvailableError,
    IllegalGenerationError,
    NoError,
    NotCoordinatorForGroupError,
    RebalanceInProgressError,
    UnknownMemberIdError,
    for_code,
)
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from processor.adapters.kafka.admin.topic_admin import open_admin
from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import explained
from processor.adapters.kafka.shutdown import stop_consumer
from processor.contract.rights import Operation, on_group
from processor.errors import TaskflowError
from processor.settings import Settings

LATEST_MS: Final = 2**62
"""A time that no record has: it stands for the end."""

_OCCUPIED = (
    CommitFailedError,
    IllegalGenerationError,
    RebalanceInProgressError,
    UnknownMemberIdError,
)


_PATIENCE_S: Final = 10.0
"""The first group of a cluster waits until the topic of all groups' offsets is made."""


def _patiently() -> AsyncRetrying:
    return AsyncRetrying(
        retry=retry_if_exception_type(
            (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError)
        ),
        stop=stop_after_delay(_PATIENCE_S),
        wait=wait_fixed(0.2),
        reraise=True,
    )


class GroupOccupied(TaskflowError):
    """The group has live members, which keep to their own offsets; nothing was changed."""


class GroupDescription(NamedTuple):
    """A group as its coordinator has it; one that was never there is `Dead`, without members."""

    state: str
    members: list[str]
    """Their client ids."""


async def describe_group(settings: Settings, group: str) -> GroupDescription:
    """Raises BrokerUnreachable, AccessDenied."""
    async with open_admin(settings, on_group(Operation.DESCRIBE, group)) as admin:
        return await _patiently()(_described, admin, group)


async def _described(admin: AIOKafkaAdminClient, group: str) -> GroupDescription:
    for response in await admin.describe_consumer_groups([group]):
        described: Any = response
        for code, _name, state, _type, _protocol, members, *_ in described.groups:
            if for_code(code) is not NoError:
                raise for_code(code)(group)
            return GroupDescription(state, [member[1] for member in members])
    return GroupDescription("Dead", [])


async def committed_offsets(settings: Settings, group: str, topic: str) -> dict[int, int]:
    """By partition, as far as the group has any. Raises BrokerUnreachable, AccessDenied."""
    async with open_admin(settings, on_group(Operation.DESCRIBE, group)) as admin:
        found: Mapping[Any, Any] = await _patiently()(admin.list_consumer_group_offsets, group)
    return {tp.partition: at.offset for tp, at in found.items() if tp.topic == topic}


async def set_offsets(
    settings: Settings, group: str, topic: str, offsets: Mapping[int, int]
) -> None:
    """Raises GroupOccupied if the group has members by now, BrokerUnreachable, AccessDenied."""
    with explained(settings, on_group(Operation.READ, group)):
        consumer = AIOKafkaConsumer(
            **connection_options(settings, "groups"), group_id=group, enable_auto_commit=False
        )
        wanted = {TopicPartition(topic, p): offset for p, offset in offsets.items()}
        try:
            await consumer.start()
            consumer.assign([*wanted])
            await consumer.commit(wanted)
        except _OCCUPIED as error:
            raise GroupOccupied(
                f"The group {group!r} has live members; stop them first. Nothing was changed."
            ) from error
        finally:
            await stop_consumer(consumer, timeout_s=2.0)


async def offsets_at(
    settings: Settings, topic: str, partitions: int, at_ms: int | None
) -> dict[int, int]:
    """The first offsets appended at `at_ms` or later, or where the partitions end by now; None:
    where they begin. Raises BrokerUnreachable, AccessDenied."""
    tps = [TopicPartition(topic, partition) for partition in range(partitions)]
    with explained(settings):
        consumer = AIOKafkaConsumer(
            **connection_options(settings, "groups"), isolation_level="read_committed"
        )
        try:
            await consumer.start()
            if at_ms is None:
                return {
                    tp.partition: at for tp, at in (await consumer.beginning_offsets(tps)).items()
                }
            ends = await consumer.end_offsets(tps)
            found = await consumer.offsets_for_times(dict.fromkeys(tps, at_ms))
        finally:
            await stop_consumer(consumer, timeout_s=2.0)
    return {tp.partition: ends[tp] if found.get(tp) is None else found[tp].offset for tp in tps}
