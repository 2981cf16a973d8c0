"""Ask the brokers which rights are missing. Changes nothing there."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    NoError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    for_code,
)
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from aiokafka.protocol.api import Request
from aiokafka.protocol.transaction import EndTxnRequest

from processor.adapters.kafka.access.topic_lookup import UNREPORTED, allows, look_up
from processor.adapters.kafka.admin.topic_admin import Mismatch, ensure_topics, open_admin
from processor.adapters.kafka.errors import NotAuthorized
from processor.adapters.kafka.internals import send_request
from processor.contract.rights import Operation, ResourceKind, Right, Role, rights
from processor.contract.topics import Topics
from processor.settings import Settings

_NO_PRODUCER: Final = 2**63 - 1
"""A producer id that no broker has given out."""


class RightsProbe:
    """Asks over one connection, as often as is wanted."""

    def __init__(self, admin: AIOKafkaAdminClient) -> None:
        self._admin = admin

    async def missing(self, wanted: Iterable[Right]) -> list[Right]:
        """Those of `wanted` that we do not have. What a broker does not report counts as there:
        the rights on a topic that does not exist, or any before Kafka 2.3.

        Raises KafkaError, OSError, TimeoutError.
        """
        wanted = list(wanted)
        seen = await look_up(self._admin, _names(wanted, ResourceKind.TOPIC))
        topics = {name: one.operations for name, one in seen.items()}
        unseen = {name for name, operations in topics.items() if operations == 0}
        configs = [
            right.resource.name
            for right in wanted
            if right.operation is Operation.DESCRIBE_CONFIGS and right.resource.name in unseen
        ]
        topics |= await self._configs(configs)
        groups = {name: await self._group(name) for name in _names(wanted, ResourceKind.GROUP)}
        ids = {
            name: await self._transactional_id(name)
            for name in _names(wanted, ResourceKind.TRANSACTIONAL_ID)
        }
        allowed = {
            ResourceKind.TOPIC: topics,
            ResourceKind.GROUP: groups,
            ResourceKind.TRANSACTIONAL_ID: ids,
        }
        return [
            right
            for right in wanted
            if not allows(allowed[right.resource.kind][right.resource.name], right.operation)
        ]

    async def _configs(self, names: Sequence[str]) -> dict[str, int]:
        """Of topics that metadata hides from us, whether their settings may be seen."""
        if not names:
            return {}
        found: dict[str, int] = {}
        for response in await self._admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        ):
            for code, _message, _kind, name, _entries in response.resources:
                denied = for_code(code) is TopicAuthorizationFailedError
                found[name] = 0 if denied else 1 << Operation.DESCRIBE_CONFIGS.code
        return found

    async def _group(self, group: str) -> int:
        try:
            coordinator = await self._admin.find_coordinator(group)
            response = await send_request(self._admin, _DescribeGroupRequest(group), coordinator)
        except GroupAuthorizationFailedError:
            return 0
        except (NotImplementedError, GroupCoordinatorNotAvailableError):
            return UNREPORTED  # the first group of a cluster waits for the topic of all groups
        ((code, *_, operations),) = response.groups
        error = for_code(code)
        if error is GroupAuthorizationFailedError:
            return 0
        return int(operations) if error is NoError else UNREPORTED

    async def _transactional_id(self, beginning: str) -> int:
        """Whether Write is allowed on the first of the ids: asked for the end of a transaction of a
        producer that cannot be, a broker says so before it looks for one."""
        request = EndTxnRequest(f"{beginning}0", _NO_PRODUCER, -1, False)
        response = await send_request(self._admin, request)
        if for_code(response.error_code) is TransactionalIdAuthorizationFailed:
            return 0
        return 1 << Operation.WRITE.code


@asynccontextmanager
async def rights_probe(settings: Settings) -> AsyncIterator[RightsProbe]:
    """Raises BrokerUnreachable, also out of the block."""
    async with open_admin(settings) as admin:
        yield RightsProbe(admin)


async def missing_rights(settings: Settings, wanted: Iterable[Right]) -> list[Right]:
    """As `RightsProbe.missing`. Raises BrokerUnreachable."""
    async with rights_probe(settings) as probe:
        return await probe.missing(wanted)


async def ensure_startable(settings: Settings, role: Role) -> list[Mismatch]:
    """Raise NotAuthorized unless we have all rights of `role`, and TopicsWrong if it must not start
    on these topics; else what else is amiss with them."""
    await ensure_rights(settings, role)
    return await ensure_topics(settings)


async def ensure_rights(settings: Settings, role: Role) -> None:
    """Raise NotAuthorized unless we have all rights of `role`. Raises BrokerUnreachable."""
    wanted = rights(role, Topics(settings.topic_prefix), settings.group_id)
    if missing := await missing_rights(settings, wanted):
        raise NotAuthorized.by(settings, missing, role)


def _names(wanted: Iterable[Right], kind: ResourceKind) -> set[str]:
    return {right.resource.name for right in wanted if right.resource.kind is kind}


class _DescribeGroupRequestStruct(DescribeGroupsRequest_v3):  # type: ignore[misc]
    """aiokafka 0.14 reads the response to version 3 as one to version 2, without the rights."""

    RESPONSE_TYPE = DescribeGroupsResponse_v3


class _DescribeGroupRequest(Request[_DescribeGroupRequestStruct]):  # type: ignore[misc]
    API_KEY = 15

    def __init__(self, group: str) -> None:
        self._group = group

    def build(
        self, request_struct_class: type[_DescribeGroupRequestStruct]
    ) -> _DescribeGroupRequestStruct:
        return request_struct_class([self._group], True)
