"""What the writer puts into aiokafka's record batches, past the wrapper that aiokafka offers."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import ConcurrentTransactions, IllegalOperation, KafkaError, ProducerFenced
from aiokafka.errors import TopicAuthorizationFailedError as Denied
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import RecordMetadata, TopicPartition

from processor.adapters.kafka.errors import NotAuthorized
from processor.adapters.kafka.internals import begin_sooner
from processor.adapters.kafka.producer.cloudevents import HeadersOf
from processor.adapters.kafka.producer.transactional_producer import (
    KafkaTransactionalProducer,
    RecordPack,
)
from processor.contract.topics import Topics
from processor.engine.batch import Outgoing
from processor.errors import OwnershipLost

FIRST_OFFSET = 40
TRACE = ("traceparent", b"00-1")


class Producer:
    """Builds batches of at most `size_bytes` as aiokafka's does, and keeps them."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.batches: list[list[tuple[Any, ...]]] = []
        self.counted: list[int] = []

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(self.size_bytes, 0, is_transactional=True)

    async def send_batch(
        self, batch: BatchBuilder, topic: str, *, partition: int
    ) -> asyncio.Future[RecordMetadata]:
        offset = FIRST_OFFSET + sum(self.counted)
        self.counted.append(batch.record_count())
        built = MemoryRecords(bytes(batch._build())).next_batch()
        self.batches.append([(r.offset, r.key, r.value, list(r.headers)) for r in built])
        sent: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        at = TopicPartition(topic, partition)
        sent.set_result(RecordMetadata(topic, partition, at, offset, 0, 0, 0))
        return sent


async def written(records: list[Outgoing], size_bytes: int) -> tuple[Producer, RecordMetadata]:
    producer: Any = Producer(size_bytes)
    writer = KafkaTransactionalProducer({}, Topics(), 3, compression=None, commit_timeout_s=60)
    pack = RecordPack(producer.create_batch)
    for record in records:
        pack.add(*record)
    assert len(pack) == len(records)
    return producer, await writer._send(producer, TopicPartition("a", 3), pack)


async def test_records_are_in_their_batch_with_key_value_and_headers() -> None:
    records = [Outgoing(b"k", b"v", ()), Outgoing(None, b"w", (TRACE,)), Outgoing(b"t", None, [])]
    producer, last = await written(records, 10_000)
    assert producer.batches == [
        [(0, b"k", b"v", []), (1, None, b"w", [TRACE]), (2, b"t", None, [])]
    ]
    assert producer.counted == [3]
    assert last.offset == FIRST_OFFSET + 2


async def test_records_of_some_topics_get_headers_made_of_their_values() -> None:
    producer: Any = Producer(10_000)
    more: dict[str, HeadersOf] = {"t.audit": lambda value: [("size", b"%d" % len(value))]}
    writer = KafkaTransactionalProducer(
        {}, Topics("t"), 3, compression=None, commit_timeout_s=60, headers_of=more
    )
    writer._producer = producer
    for topic in ("t.audit", "t.state"):
        pack = writer.new_pack(topic)
        pack.add(b"k", b"value", [TRACE])
        await writer._send(producer, TopicPartition(topic, 3), pack)
    assert [batch[0][2:] for batch in producer.batches] == [
        (b"value", [TRACE, ("size", b"5")]),
        (b"value", [TRACE]),
    ]


async def test_what_does_not_fit_goes_into_the_next_batch() -> None:
    records = [Outgoing(b"%d" % n, b"x" * 300, [TRACE]) for n in range(5)]
    producer, last = await written(records, 1_000)
    assert [[key for _, key, _, _ in batch] for batch in producer.batches] == [
        [b"0", b"1"],
        [b"2", b"3"],
        [b"4"],
    ]
    assert [[offset for offset, *_ in batch] for batch in producer.batches] == [[0, 1], [0, 1], [0]]
    assert producer.counted == [2, 2, 1]
    assert last.offset == FIRST_OFFSET + 4


async def test_a_transaction_begins_soon_after_the_last_ones_markers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards the private names that `begin_sooner` touches."""
    partition = TopicPartition("a", 0)
    codes = [ConcurrentTransactions.errno] * 5 + [0, ConcurrentTransactions.errno, 0]
    added: list[TopicPartition] = []
    pauses: list[float] = []

    async def find_coordinator(kind: Any, key: str) -> int:
        return 1

    async def send(node_id: int, request: Any, *, group: Any) -> Any:
        return SimpleNamespace(errors=[("a", [(0, codes.pop(0))])])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    transactions = SimpleNamespace(
        transactional_id="t",
        producer_id=1,
        producer_epoch=0,
        txn_partitions=set(),
        partition_added=added.append,
    )
    sender: Any = SimpleNamespace(
        _txn_manager=transactions,
        _find_coordinator=find_coordinator,
        _retry_backoff=0.01,
        client=SimpleNamespace(send=send),
    )
    producer: Any = SimpleNamespace(_sender=sender)
    begin_sooner(producer, 0.003)
    monkeypatch.setattr("aiokafka.producer.sender.asyncio.sleep", sleep)
    while codes:
        await sender._do_add_partitions_to_txn({partition})
    assert pauses == [0.003, 0.006, 0.012, 0.02, 0.02, 0.003]
    assert added == [partition, partition]


class Transactional(Producer):
    """Has aiokafka's own state of a transaction, and no broker."""

    def __init__(self) -> None:
        super().__init__(10_000)
        self._txn_manager = self.transactions = TransactionManager("t", 1_000)
        self.transactions.set_pid_and_epoch(1, 0)
        self.before_a_batch: Callable[[], object] = bool

    async def send_batch(
        self, batch: BatchBuilder, topic: str, *, partition: int
    ) -> asyncio.Future[RecordMetadata]:
        self.before_a_batch()
        if not self.transactions.is_in_transaction():
            raise IllegalOperation("Can't send messages while not in transaction")
        return await super().send_batch(batch, topic, partition=partition)

    async def begin_transaction(self) -> None:
        self.transactions.begin_transaction()

    async def commit_transaction(self) -> None:
        for partition in list(self.transactions.partitions_to_add()):
            self.transactions.partition_added(partition)
        self.transactions.committing_transaction()
        self.transactions.complete_transaction()


def writer_on(producer: Transactional) -> KafkaTransactionalProducer:
    connection = {"bootstrap_servers": "kafka:9092", "security_protocol": "PLAINTEXT"}
    writer = KafkaTransactionalProducer(
        connection, Topics(), 3, compression=None, commit_timeout_s=60
    )
    writer._producer = producer
    return writer


async def test_a_transaction_names_its_topics_before_there_are_records() -> None:
    producer = Transactional()
    writer = writer_on(producer)
    await writer.begin(("a", "b"))
    named = {TopicPartition("a", 3), TopicPartition("b", 3)}
    assert producer.transactions.partitions_to_add() == named
    assert producer.batches == []
    await writer.write({"a": [Outgoing(b"k", b"v", ())]})
    assert producer.batches == [[(0, b"k", b"v", [])]]
    assert not producer.transactions.is_in_transaction()


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("error", "raised"), [(ProducerFenced(), OwnershipLost), (Denied("a"), NotAuthorized)]
)
async def test_what_ends_a_transaction_before_its_records_is_raised_by_the_write(
    error: KafkaError, raised: type[Exception], later: bool
) -> None:
    """`later`: while the first of them is handed over, as the broker says it at any time."""
    producer = Transactional()
    writer = writer_on(producer)
    await writer.begin(("a",))
    transactions = producer.transactions
    ends = transactions.error_transaction if error.__class__ is Denied else transactions.fatal_error
    if later:
        producer.before_a_batch = lambda: ends(error)
    else:
        ends(error)
    with pytest.raises(raised):
        await writer.write({"a": [Outgoing(b"k", b"v", ())]})
    assert producer.batches == []
