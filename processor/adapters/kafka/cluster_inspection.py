"""What `taskflow doctor` asks a broker for: versions, rights, open transactions. Only asks."""

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.codec import (
    gzip_decode,
    gzip_encode,
    lz4_decode,
    lz4_encode,
    snappy_decode,
    snappy_encode,
    zstd_decode,
    zstd_encode,
)
from aiokafka.errors import KafkaError, for_code
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import explain, explained
from processor.adapters.kafka.internals import send_request, spoken_versions
from processor.adapters.kafka.shutdown import stop_consumer
from processor.adapters.kafka.topic_admin import open_admin
from processor.contract.topics import Topics
from processor.settings import Settings

Range = tuple[int, int]

_NEEDED: Final = {
    "Produce": ProduceRequest,
    "Fetch": FetchRequest,
    "ListOffsets": OffsetRequest,
    "Metadata": MetadataRequest,
    "InitProducerId": InitProducerIdRequest,
    "AddPartitionsToTxn": AddPartitionsToTxnRequest,
    "EndTxn": EndTxnRequest,
}
_NOT_TOLD: Final = -(2**31)
_CODECS: Final = {
    "gzip": (gzip_encode, gzip_decode),
    "snappy": (snappy_encode, snappy_decode),
    "lz4": (lz4_encode, lz4_decode),
    "zstd": (zstd_encode, zstd_decode),
}
_SAMPLE: Final = b'{"kind":"update_state","patch":{}}' * 64
_POLL_MS: Final = 200
_STOP_TIMEOUT_S: Final = 2.0


class _MetadataResponse(Response):  # type: ignore[misc]
    """Version 8, which tells what one may do; aiokafka 0.14 speaks up to 5."""

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
    """Of all topics: asked for by name, a broker may make what is missing."""

    API_KEY = 3

    def build(self, request_struct_class: type[_MetadataRequestStruct]) -> _MetadataRequestStruct:
        return request_struct_class(None, False, False, True)


class Rights(NamedTuple):
    """Bit fields of allowed operations by topic, and of the group; None where the broker did not
    say. `transactional_id`: why it may not be used, or None. `members` of the group."""

    topics: dict[str, int | None]
    group: int | None
    members: int | None
    transactional_id: str | None


class Hanging(NamedTuple):
    """An open transaction: its first offset, and that record's append time (ms) if it was seen."""

    topic: str
    partition: int
    offset: int
    since_ms: int | None


def decodable() -> dict[str, str | None]:
    """By compression, why a batch of it cannot be read here, or None if it can."""
    found: dict[str, str | None] = {}
    for name, (encode, decode) in _CODECS.items():
        try:
            found[name] = None if decode(encode(_SAMPLE)) == _SAMPLE else "it comes out changed"
        except Exception as error:
            found[name] = str(error) or type(error).__name__
    return found


async def api_versions(settings: Settings) -> dict[str, tuple[Range, Range | None]]:
    """By request that a worker needs: the versions that aiokafka and that the broker speaks.
    Raises BrokerUnreachable."""
    async with open_admin(settings) as admin:
        response = await _ask(admin, ApiVersionRequest())
    theirs = {key: (low, high) for key, low, high in response.api_versions}
    found: dict[str, tuple[Range, Range | None]] = {}
    for name, request in _NEEDED.items():
        ours = spoken_versions(request)
        found[name] = (min(ours), max(ours)), theirs.get(request.API_KEY)
    return found


async def rights(settings: Settings) -> Rights:
    """What we may do, as far as the broker tells. Raises BrokerUnreachable."""
    names = {name for name, _ in Topics(settings.topic_prefix)}
    transactional_id: str | None = None
    async with open_admin(settings) as admin:
        topics: dict[str, int | None] = {}
        try:
            metadata = await _ask(admin, _MetadataRequest())
        except NotImplementedError:  # a broker before 2.3
            pass
        else:
            topics = {
                topic: _told(operations)
                for code, topic, _, _, operations in metadata.topics
                if topic in names and code == 0
            }
        group, members = await _group(admin, settings.group_id)
        try:
            await admin.find_coordinator(f"{settings.topic_prefix}-0", coordinator_type=1)
        except KafkaError as error:
            if "Authorization" in type(error).__name__:
                transactional_id = str(explain(error, settings))
    return Rights(topics, group, members, transactional_id)


async def _group(admin: AIOKafkaAdminClient, group: str) -> tuple[int | None, int | None]:
    try:
        (response,) = await admin.describe_consumer_groups(
            [group], include_authorized_operations=True
        )
    except KafkaError as error:
        return (0, None) if "Authorization" in type(error).__name__ else (None, None)
    # Only from version 3 on with operations, which aiokafka 0.14 does not always ask in.
    ((code, _, _, _, _, members, *operations),) = response.groups
    if "Authorization" in for_code(code).__name__:
        return 0, None
    return _told(operations[0]) if operations else None, len(members)


def _told(operations: int) -> int | None:
    return None if operations == _NOT_TOLD else operations


async def _ask(admin: AIOKafkaAdminClient, request: Any) -> Any:
    return await send_request(admin, request)


async def hanging(settings: Settings, partitions: Iterable[tuple[str, int]]) -> list[Hanging]:
    """The transactions that are open on `partitions` (full topic name, number) now; most of them
    are batches under way. Raises BrokerUnreachable."""
    tps = [TopicPartition(topic, number) for topic, number in partitions]
    with explained(settings):
        stable = await _ends(settings, tps, "read_committed")
        consumer = _consumer(settings, "read_uncommitted")
        try:
            await consumer.start()
            ends = await consumer.end_offsets(tps)
            return [
                Hanging(tp.topic, tp.partition, stable[tp], await _written_at(consumer, tp, stable))
                for tp in tps
                if stable[tp] < ends[tp]
            ]
        finally:
            await stop_consumer(consumer, timeout_s=_STOP_TIMEOUT_S)


async def _ends(
    settings: Settings, tps: list[TopicPartition], isolation_level: str
) -> dict[TopicPartition, int]:
    consumer = _consumer(settings, isolation_level)
    try:
        await consumer.start()
        found: dict[TopicPartition, int] = await consumer.end_offsets(tps)
        return found
    finally:
        await stop_consumer(consumer, timeout_s=_STOP_TIMEOUT_S)


async def _written_at(
    consumer: AIOKafkaConsumer, tp: TopicPartition, stable: dict[TopicPartition, int]
) -> int | None:
    """When the first record of the open transaction was appended."""
    consumer.assign([tp])
    consumer.seek(tp, stable[tp])
    for records in (await consumer.getmany(tp, timeout_ms=_POLL_MS, max_records=1)).values():
        for record in records:
            return int(record.timestamp)
    return None


def _consumer(settings: Settings, isolation_level: str) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        **connection_options(settings, "doctor"),
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level=isolation_level,
        request_timeout_ms=10_000,
    )
