"""Ask a broker for what `taskflow doctor` reports: versions, rights, open transactions."""

from collections.abc import Iterable, Mapping
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
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    for_code,
)
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)

from processor.adapters.kafka.admin.topic_admin import open_admin
from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import ReadFailed, explain, explained
from processor.adapters.kafka.internals import send_request, spoken_versions
from processor.adapters.kafka.reader.log_reader import LogReaders
from processor.adapters.kafka.reader.range_reader import RangeReader
from processor.contract.rights import Operation, on_group
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
_CODECS: Final = {
    "gzip": (gzip_encode, gzip_decode),
    "snappy": (snappy_encode, snappy_decode),
    "lz4": (lz4_encode, lz4_decode),
    "zstd": (zstd_encode, zstd_decode),
}
_SAMPLE: Final = b'{"kind":"update_state","patch":{}}' * 64
_POLL_MS: Final = 200


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


async def group_members(settings: Settings) -> int | None:
    """How many members the workers' group has; None if no broker can say yet. Raises
    BrokerUnreachable, NotAuthorized."""
    group = settings.group_id
    async with open_admin(settings, on_group(Operation.DESCRIBE, group)) as admin:
        try:
            (response,) = await admin.describe_consumer_groups([group])
        except GroupCoordinatorNotAvailableError:
            return None
        ((code, _, _, _, _, members, *_),) = response.groups
        error = for_code(code)
        if error is GroupAuthorizationFailedError:
            raise error(group)
        return len(members)


async def _ask(admin: AIOKafkaAdminClient, request: Any) -> Any:
    return await send_request(admin, request)


async def hanging(settings: Settings, partitions: Iterable[tuple[str, int]]) -> list[Hanging]:
    """The transactions that are open on `partitions` (full topic name, number) now; most of them
    are batches under way. Raises BrokerUnreachable."""
    tps = [TopicPartition(topic, partition) for topic, partition in partitions]
    connection = connection_options(settings, "doctor") | {"request_timeout_ms": 10_000}
    readers = LogReaders(connection, topics=sorted({tp.topic for tp in tps}))
    try:
        with explained(settings):
            committed = await readers.consumer("read_committed")
            stable = await committed.end_offsets(tps)
            consumer = await readers.consumer("read_uncommitted")
            ends = await consumer.end_offsets(tps)
            written_at = {
                tp: await _written_at(consumer, tp, stable) for tp in tps if stable[tp] < ends[tp]
            }
            unseen = [tp for tp, at_ms in written_at.items() if at_ms is None]
            # What ended meanwhile may have left nothing but its marker.
            now = await committed.end_offsets(unseen) if unseen else {}
            return [
                Hanging(tp.topic, tp.partition, stable[tp], at_ms)
                for tp, at_ms in written_at.items()
                if now.get(tp, stable[tp]) == stable[tp]
            ]
    except ReadFailed as error:
        raise explain(error.__cause__ or error, settings) from error
    finally:
        await readers.close()


async def _written_at(
    consumer: AIOKafkaConsumer, tp: TopicPartition, stable: Mapping[TopicPartition, int]
) -> int | None:
    """When the first record of the open transaction was appended."""
    reading = RangeReader(consumer, {tp: stable[tp]})
    for records in (await reading.poll(wait_ms=_POLL_MS, max_records=1)).values():
        return int(records[0].timestamp)
    return None
