"""Look topics up by name: their partitions, and the operations that are allowed on them."""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import TopicAuthorizationFailedError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from processor.adapters.kafka.internals import send_request
from processor.contract.rights import Operation

UNREPORTED: Final = -(2**31)
"""What a broker gives where it does not report operations."""
_INCLUDED_IN: Final = {Operation.DESCRIBE: (Operation.READ, Operation.WRITE, Operation.ALTER)}


class TopicFound(NamedTuple):
    """`partitions`: None if the topic is not there, or hidden from us. `led`: each of them has a
    leader. `operations`: bits of what we may do, UNREPORTED if the broker does not say.
    `replicas`: of each partition, the least of them."""

    partitions: int | None
    led: bool
    operations: int
    replicas: int = 0


def allows(operations: int, operation: Operation) -> bool:
    """What is not reported counts as allowed."""
    enough = (operation, *_INCLUDED_IN.get(operation, ()))
    return operations == UNREPORTED or any(operations & 1 << one.code for one in enough)


async def look_up(admin: AIOKafkaAdminClient, names: Iterable[str]) -> dict[str, TopicFound]:
    """Each of `names`. Asked for all topics, a broker leaves out what we may not see; asked by
    name, it says so. It makes none of them. Raises KafkaError."""
    wanted = sorted(set(names))
    if not wanted:
        return {}
    try:
        response = await send_request(admin, _MetadataRequest(wanted))
    except NotImplementedError:
        return await _unreported(admin, wanted)
    found = dict.fromkeys(wanted, TopicFound(None, False, UNREPORTED))
    for code, name, _internal, partitions, operations in response.topics:
        if for_code(code) is TopicAuthorizationFailedError:
            found[name] = TopicFound(None, False, 0)
        elif code == 0:
            led = all(leader >= 0 for _code, _partition, leader, *_ in partitions)
            replicas = min((len(ids) for _, _, _, _, ids, *_ in partitions), default=0)
            found[name] = TopicFound(len(partitions), led, operations, replicas)
    return found


async def _unreported(admin: AIOKafkaAdminClient, names: Sequence[str]) -> dict[str, TopicFound]:
    """As a broker before Kafka 2.3 returns it."""
    found = dict.fromkeys(names, TopicFound(None, False, UNREPORTED))
    for topic in await admin.describe_topics():
        if topic["topic"] in found and topic["error_code"] == 0:
            partitions = topic["partitions"]
            led = all(partition["leader"] >= 0 for partition in partitions)
            replicas = min((len(one["replicas"]) for one in partitions), default=0)
            found[topic["topic"]] = TopicFound(len(partitions), led, UNREPORTED, replicas)
    return found


class _MetadataResponse(Response):  # type: ignore[misc]
    """Version 8, which reports what one may do; aiokafka 0.14 speaks up to 5."""

    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(
                ("node_id", Int32),
                ("host", String("utf-8")),
                ("port", Int32),
                ("rack", String("utf-8")),
            ),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("operations", Int32),
            ),
        ),
        ("cluster_operations", Int32),
    )


class _MetadataRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _MetadataRequest(Request[_MetadataRequestStruct]):  # type: ignore[misc]
    """Of topics by name; a broker makes none of them."""

    API_KEY = 3

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class(self._names, False, False, True)
