"""Wrap what aiokafka 0.14.0 has no public name for.

The only file of this adapter that touches a private name of aiokafka. The version is pinned
exactly. For each wrapper: the reason, then the test that fails when the name moves, and the issue
of github.com/aio-libs/aiokafka where one was found (November 2026).

- use_record_reader: the fetcher has no setting for the class that reads record batches
  (test_record_decoder).
- RecordBatchReader: a header name that is not UTF-8 stops the public reader for good
  (test_record_decoder).
- client_of: a consumer's client can be neither given nor closed (test_kafka_traps; 1013).
- pace_metadata: metadata is asked for without a pause while a partition has no leader
  (test_metadata_backoff; 1155).
- remember_topics: a client forgets topics that no consumer is assigned (test_log_reader).
- member_id, coordination_error, raise_coordination_error: the group's verdict reaches only a
  consumer that fetches (test_kafka_traps).
- bound_heartbeats: a heartbeat on a silent connection waits for the request timeout, however short
  the session is (test_kafka_traps).
- last_fetch: position, last stable offset and high watermark without a request
  (test_kafka_traps).
- hold_fetches: the hold of a fetch is fixed when a consumer is made (test_fetch_hold).
- count_commits: a lost connection repeats EndTxn silently (test_kafka_traps).
- begin_sooner: a transaction that begins before the last one's markers are written waits 20 ms
  (test_transactional_producer).
- appender, close_batch: the public wrapper takes as long again as the record itself
  (test_transactional_producer).
- hear_denials: records are sent although their partition was denied to the transaction, and are
  refused for another reason (test_rights).
- add_partition: a transaction without a record cannot name its partitions (test_left_open).
- raise_if_ended: what fails of a transaction before its first record shows in its end alone
  (test_transactional_producer).
- quiet_failures: a producer that fails leaves errors that are logged as never retrieved, and a
  batch that waits for its retry raises KeyError (test_shutdown; 1101).
- fail_unsent, cancel_sender: `stop()` waits without limit for a broker that is away
  (test_shutdown; 1101, 512).
- AnyBrokerAdmin: the admin client asks one broker at random, also one that was just lost
  (faults/test_cluster).
- send_request, spoken_versions: the admin client sends only what it knows (test_inspection).
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import ConnectionGroup, CoordinationType
from aiokafka.conn import CloseReason
from aiokafka.consumer import fetcher
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    ProducerClosed,
    RequestTimedOutError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.sender import BACKOFF_OVERRIDE, AddPartitionsToTxnHandler
from aiokafka.protocol.api import Request
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.util import decode_varint_py

Headers = list[tuple[str, bytes | None]]
AskForMetadata = Callable[[Any, Collection[str] | None], Awaitable[bool]]

BATCH_HEADER_BYTES = int(_DefaultRecordBatchPy.HEADER_STRUCT.size)


def use_record_reader(reader: type) -> None:
    """Have every consumer of this process read fetched bytes with `reader`.

    Changes the process: only a program calls this, when it starts, never a library on import.
    """
    fetcher.MemoryRecords = reader


class RecordBatchReader(_DefaultRecordBatchPy):  # type: ignore[misc]
    """aiokafka's reader in Python of one uncompressed record batch, that takes any header name.

    The reader in C does not ask where the buffer ends.
    """

    _pos: int
    _num_records: int
    _buffer: bytearray

    @property
    def record_count(self) -> int:
        return self._num_records

    @property
    def data(self) -> bytearray:
        return self._buffer

    @property
    def position(self) -> int:
        """Where in `data` the next record begins."""
        return self._pos

    def read(self) -> Any:
        return self._read_msg()

    def record(self, index: int, key: bytes | None, value: bytes | None) -> Any:
        """Make the record with this number in the batch."""
        return _DefaultRecordPy(
            self.base_offset + index, self.max_timestamp, self.timestamp_type, key, value, []
        )

    def _read_msg(self, *_unused: Any) -> Any:
        buffer = self._buffer
        length, at = decode_varint_py(buffer, self._pos)
        end = at + length
        _, at = decode_varint_py(buffer, at)  # attributes
        later_ms, at = decode_varint_py(buffer, at)
        offset_delta, at = decode_varint_py(buffer, at)
        key, at = read_bytes(buffer, at)
        value, at = read_bytes(buffer, at)
        count, at = decode_varint_py(buffer, at)
        headers = []
        for _ in range(count):
            name, at = read_bytes(buffer, at)
            content, at = read_bytes(buffer, at)
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), content))
        self._pos = end
        appended = self.timestamp_type == self.LOG_APPEND_TIME
        return _DefaultRecordPy(
            self.base_offset + offset_delta,
            self.max_timestamp if appended else self.first_timestamp + later_ms,
            self.timestamp_type,
            key,
            value,
            headers,
        )


def read_bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    """Read a length and as many bytes at `at`; return them and the place behind them."""
    size, at = decode_varint_py(buffer, at)
    if size < 0:
        return None, at
    return bytes(buffer[at : at + size]), at + size


def client_of(consumer: AIOKafkaConsumer) -> Any:
    return consumer._client


def pace_metadata(client: Any, wrap: Callable[[AskForMetadata], AskForMetadata]) -> None:
    """Replace the step by which `client` asks for metadata by what `wrap` makes of it.

    The client's own task runs the step, so it ends with the client.
    """
    client._metadata_update = wrap(client._metadata_update)


def keep_topics(client: Any) -> None:
    """Have `client` keep each topic that it was asked for.

    aiokafka forgets all but those that a consumer is assigned, and learns of the others again, with
    a pause of 0.1 s, when their offsets are asked for.
    """
    set_topics = client.set_topics
    client.set_topics = lambda topics: set_topics({*client._topics, *topics})


def member_id(consumer: AIOKafkaConsumer) -> str:
    """Return the id that the group gave this member; "" if it is in none."""
    return str(consumer._coordinator.member_id)


def coordination_error(consumer: AIOKafkaConsumer) -> KafkaError | None:
    """Return the error with which coordination has given up, and leave it to be raised."""
    return consumer._coordinator._pending_exception


def raise_coordination_error(consumer: AIOKafkaConsumer) -> None:
    """Raise the error with which coordination has given up; coordination then tries again."""
    consumer._coordinator.check_errors()


def bound_heartbeats(consumer: AIOKafkaConsumer, session_s: float) -> None:
    """Have a started consumer give up its connection to the group's coordinator when a heartbeat
    has no response within the session.

    Nothing is lost by it: the next heartbeat would be sent after the response, so the session is
    over unless the coordinator still gets to this one. If it does, the member id stays valid, and
    the next connection continues with it. JoinGroup, which the coordinator may hold for longer, is
    never sent beside a heartbeat. Java's client does the same.
    """
    coordinator = consumer._coordinator
    beat: Callable[[], Awaitable[bool]] = coordinator._do_heartbeat

    async def bounded() -> bool:
        node = coordinator.coordinator_id
        try:
            async with asyncio.timeout(session_s):
                return await beat()
        except TimeoutError:
            connection = client_of(consumer)._conns.get((node, ConnectionGroup.COORDINATION))
            if connection is not None:
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
            coordinator.coordinator_dead()
            return False

    coordinator._do_heartbeat = bounded


class Fetch(NamedTuple):
    """A partition as the last fetch had it; None where unknown."""

    position: int | None
    stable_end: int | None
    end: int | None


def last_fetch(consumer: AIOKafkaConsumer, partition: TopicPartition) -> Fetch:
    """Return position, last stable offset and high watermark."""
    subscription = consumer._subscription.subscription
    assignment = subscription.assignment if subscription is not None else None
    if assignment is None or partition not in assignment.tps:
        return Fetch(None, None, None)
    state = assignment.state_value(partition)
    position = state.position if state.has_valid_position else None
    return Fetch(position, state.lso, state.highwater)


def hold_fetches(consumer: AIOKafkaConsumer, hold_ms: int) -> None:
    """Have the broker hold each further fetch of a started consumer that finds nothing so long."""
    consumer._fetcher._fetch_max_wait_ms = hold_ms


def count_commits(producer: AIOKafkaProducer, attempted: Callable[[], None]) -> None:
    """Call `attempted` each time that EndTxn is sent.

    aiokafka repeats it silently after a lost connection, and the late first request would end half
    of the next transaction.
    """
    step = producer._sender._do_txn_commit

    async def counted(commit_result: Any) -> Any:
        attempted()
        return await step(commit_result)

    producer._sender._do_txn_commit = counted


class _SoonerBegin(AddPartitionsToTxnHandler):  # type: ignore[misc]
    pause_s = BACKOFF_OVERRIDE

    def handle_response(self, resp: Any) -> float | None:
        pause_s: float | None = super().handle_response(resp)
        return self.pause_s if pause_s == BACKOFF_OVERRIDE else pause_s


def begin_sooner(producer: AIOKafkaProducer, pause_s: float) -> None:
    """While the broker still writes the markers of the last transaction, have `producer` ask again
    after `pause_s`, twice as long each time, up to the 20 ms that aiokafka waits."""
    sender = producer._sender
    refusals = 0

    async def add_partitions(partitions: Any) -> bool:
        nonlocal refusals
        node_id = await sender._find_coordinator(
            CoordinationType.TRANSACTION, sender._txn_manager.transactional_id
        )
        adding = _SoonerBegin(sender, partitions)
        adding.pause_s = min(pause_s * 2**refusals, BACKOFF_OVERRIDE)
        added: bool = await adding.do(node_id)
        refusals = 0 if added else min(refusals + 1, 10)
        return added

    sender._do_add_partitions_to_txn = add_partitions


def appender(batch: BatchBuilder) -> Callable[..., object | None]:
    """What appends a record (its number in the batch, None, key, value, a list of headers) to
    `batch`; it returns None where the record does not fit."""
    append: Callable[..., object | None] = batch._builder.append
    return append


def close_batch(batch: BatchBuilder, count: int) -> None:
    """Count `count` appended records in `batch`."""
    batch._relative_offset = count


def add_partition(producer: AIOKafkaProducer, partition: TopicPartition) -> None:
    """Add `partition` to the open transaction without writing a record to it."""
    producer._txn_manager.maybe_add_partition_to_txn(partition)


def raise_if_ended(producer: AIOKafkaProducer) -> None:
    """Raise what has ended the transaction that was begun, if something has."""
    transactions = producer._txn_manager
    if not transactions.is_in_transaction():
        transactions.wait_for_transaction_end().result()


class _Batches(set[Any]):
    """Batches under way. One that waits for its retry is not among them, and ends all the same."""

    remove = set.discard


def quiet_failures(producer: AIOKafkaProducer) -> None:
    """Let a failure of `producer` reach those who wait for it, and the log once.

    When it is fenced or closed, aiokafka fails every batch and the transaction. What is not awaited
    is then logged by asyncio, and a batch that waits for its retry raises KeyError.
    """
    accumulator, transactions = producer._message_accumulator, producer._txn_manager
    fail_all = accumulator.fail_all

    def fail_quietly(error: BaseException) -> None:
        unsent = [
            *accumulator._pending_batches,
            *(batch for batches in accumulator._batches.values() for batch in batches),
        ]
        fail_all(error)
        for batch in unsent:
            _retrieve(batch.future)
            _retrieve(batch._drain_waiter)

    accumulator._pending_batches = _Batches(accumulator._pending_batches)
    accumulator.fail_all = fail_quietly
    if transactions is not None:
        fail = transactions.fatal_error

        def fail_transaction(error: BaseException) -> None:
            fail(error)
            _retrieve(transactions._transaction_waiter)

        transactions.fatal_error = fail_transaction


def _retrieve(future: "asyncio.Future[Any]") -> None:
    """Mark the error of `future` as seen. Raised to those who wait it is all the same."""
    if future.done() and not future.cancelled():
        future.exception()


def fail_unsent(producer: AIOKafkaProducer) -> None:
    """Fail what is unsent with ProducerClosed, as `stop()` would if it did not wait for it."""
    quiet_failures(producer)
    producer._message_accumulator.fail_all(ProducerClosed())


def cancel_sender(producer: AIOKafkaProducer) -> None:
    """End the task that goes on connecting to a broker that is away."""
    if (sender := producer._sender.sender_task) is not None:
        sender.cancel()


def watch_denials(producer: AIOKafkaProducer, denied: Callable[[KafkaError], None]) -> None:
    """Call `denied` when the broker does not let a transaction have a partition.

    aiokafka notes it for the commit, and goes on to send records, which are refused for the
    transaction's state; what it noted is then overwritten.
    """
    transactions = producer._txn_manager
    step = transactions.error_transaction

    def noting(error: KafkaError) -> None:
        if transactions.is_in_transaction():
            denied(error)
            step(error)
            transactions._transaction_waiter.exception()  # retrieved, so that asyncio is silent

    transactions.error_transaction = noting


class AnyBrokerAdmin(AIOKafkaAdminClient):  # type: ignore[misc]
    """An admin client that asks the next broker where one does not take a request.

    Until the controller misses a broker that was lost, metadata still names it.
    """

    async def _send_request(self, request: Any, node_id: int | None = None) -> Any:
        nodes: list[int | None] = [node_id]
        if node_id is None:
            known = [broker.nodeId for broker in self._client.cluster.brokers()]
            nodes = random.sample(known, len(known)) or nodes
        for node in nodes[:-1]:
            with suppress(NodeNotReadyError, KafkaConnectionError, RequestTimedOutError):
                return await super()._send_request(request, node)
        return await super()._send_request(request, nodes[-1])


async def send_request(admin: AIOKafkaAdminClient, request: Any, node_id: int | None = None) -> Any:
    return await admin._send_request(request, node_id)


def spoken_versions(request: type[Request[Any]]) -> list[int]:
    """Return the versions of `request` that aiokafka speaks."""
    return [struct.API_VERSION for struct in request._CLASSES]
