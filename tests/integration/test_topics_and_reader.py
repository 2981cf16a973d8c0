"""The seven topics on a real broker, and reading one of them to its exact end."""

import asyncio
import time

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import MessageSizeTooLargeError

from processor.adapters.kafka.admin.topic_admin import (
    Mismatch,
    check_topics,
    create_topics,
    ensure_topics,
    partition_counts,
    topic_configs,
)
from processor.adapters.kafka.client_config import client_id, connection_options, ensure_reachable
from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable, TopicsWrong
from processor.adapters.kafka.reader.topic_reader import read, time_of
from processor.client.kafka.command_producer import CommandProducer
from processor.contract.topics import SPECS, Topics
from processor.embedded.broker import EmbeddedBroker
from processor.engine.ports import Start
from processor.settings import BadSetting, Settings
from tests.support.machine import patience
from tests.support.topics import set_compression


@pytest.fixture
def settings(broker: EmbeddedBroker, prefix: str) -> Settings:
    return Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=3)


async def values(settings: Settings, topic: str, start: Start = "beginning") -> list[bytes]:
    return [record.value or b"" async for record in read(settings, topic, start=start)]


async def test_the_topics_are_made_once_and_are_as_they_must_be(settings: Settings) -> None:
    names = [name for name, _ in Topics(settings.topic_prefix)]

    assert await create_topics(settings) == names
    assert await create_topics(settings) == []
    assert await check_topics(settings) == []
    assert await ensure_topics(settings) == []
    counts = await partition_counts(settings, [name for name, _ in Topics(settings.topic_prefix)])
    assert {counts[name] for name in names} == {3}


async def test_looking_for_topics_makes_none(settings: Settings) -> None:
    mismatches = await check_topics(settings)

    assert [mismatch.what for mismatch in mismatches] == ["topic"] * len(SPECS)
    with pytest.raises(TopicsWrong, match="taskflow topics create"):
        await ensure_topics(settings)
    assert not await partition_counts(settings, [name for name, _ in Topics(settings.topic_prefix)])


async def test_every_difference_is_named(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    audit = Topics(settings.topic_prefix).audit
    wrong = {"cleanup.policy": "compact", "retention.ms": "1000", "max.message.bytes": "1000"}
    await admin.create_topics([NewTopic(audit, 2, 1, topic_configs=wrong)])
    await admin.close()
    made = await create_topics(settings)

    mismatches = await check_topics(settings)

    assert len(made) == len(SPECS) - 1
    assert {mismatch.topic for mismatch in mismatches} == {audit}
    assert {mismatch.what: mismatch.found for mismatch in mismatches} == {
        "partitions": "2",
        "cleanup.policy": "compact",
        "message.timestamp.type": "CreateTime",
        "retention.ms": "1000",
        "max.message.bytes": "1000",
    }
    assert Mismatch(audit, "retention.ms", "-1 (without end)", "1000") in mismatches
    with pytest.raises(TopicsWrong, match=r"partitions is 2, must be 3.*taskflow topics check"):
        await ensure_topics(settings)


async def test_topics_of_before_take_compressed_batches_and_are_told_how_not_to(
    settings: Settings,
) -> None:
    names = Topics(settings.topic_prefix)
    await create_topics(settings)
    assert await compression(settings) == {"commands": "uncompressed", "control": "uncompressed"}
    await set_compression(settings, "producer")

    mismatches = await ensure_topics(settings)  # a worker starts all the same

    assert mismatches == await check_topics(settings)
    found = [(one.topic, one.what, one.expected, one.found, one.fatal) for one in mismatches]
    assert found == [
        (names.commands, "compression.type", "uncompressed", "producer", False),
        (names.control, "compression.type", "uncompressed", "producer", False),
    ]
    assert f"--entity-name {names.commands} --add-config compression.type=uncompressed`" in (
        mismatches[0].cure
    )
    await set_compression(settings, "uncompressed")
    assert await check_topics(settings) == []


SOURCES = ("commands", "control")


async def compression(settings: Settings) -> dict[str, str]:
    topics = {name: f"{settings.topic_prefix}.{name}" for name in SOURCES}
    configs = await topic_configs(settings, [*topics.values()])
    return {name: configs[topic]["compression.type"] for name, topic in topics.items()}


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
@pytest.mark.parametrize(
    ("count", "value"), [(150_000, None), (4, b"x" * 400_000)], ids=["records", "bytes"]
)
async def test_the_broker_refuses_a_compressed_batch_that_holds_more_than_a_topic_takes(
    settings: Settings, codec: str, count: int, value: bytes | None
) -> None:
    await create_topics(settings)
    topic = Topics(settings.topic_prefix).commands
    bombs = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        compression_type=codec,
        max_batch_size=64 * 1024 * 1024,
        max_request_size=64 * 1024 * 1024,
    )
    await bombs.start()
    try:
        batch = bombs.create_batch()
        for _ in range(count):
            assert batch.append(timestamp=None, key=None, value=value) is not None
        with pytest.raises(MessageSizeTooLargeError):
            await (await bombs.send_batch(batch, topic, partition=0))
        # What fits is taken, compressed or not.
        await bombs.send_and_wait(topic, b"x" * 600_000, b"k", partition=0)
    finally:
        await bombs.stop()


@pytest.mark.parametrize("codec", ["none", "gzip", "snappy", "lz4", "zstd"])
async def test_our_client_sends_in_each_compression(settings: Settings, codec: str) -> None:
    settings = settings.model_copy(update={"compression": codec})
    await create_topics(settings)
    topic = Topics(settings.topic_prefix).commands
    producer = CommandProducer(settings)
    await producer.start()
    try:
        values = [b"%d" % n * 1_000 for n in range(500)]
        await asyncio.gather(
            *(
                producer.send(topic, b"k", value, (), partition=0, handed_over=lambda: None)
                for value in values
            )
        )
    finally:
        await producer.close()

    read_back = [record.value async for record in read(settings, topic)]
    assert sorted(read_back) == sorted(values)


async def test_a_record_without_key_and_value_can_be_sent_back(settings: Settings) -> None:
    await create_topics(settings)
    topic = Topics(settings.topic_prefix).commands
    producer = CommandProducer(settings)
    await producer.start()
    try:
        headers = [("mine", None)]
        written = await producer.send(
            topic, None, None, headers, partition=2, handed_over=lambda: None
        )
    finally:
        await producer.close()

    (record,) = [record async for record in read(settings, topic)]
    assert (record.partition, record.offset) == (written.partition, written.offset) == (2, 0)
    assert (record.key, record.value, list(record.headers)) == (None, None, headers)


async def test_a_refusal_of_the_broker_is_a_sentence(settings: Settings) -> None:
    greedy = settings.model_copy(update={"replication_factor": 3})
    with pytest.raises(TopicsWrong, match=r"did not make .*commands: Unable to replicate"):
        await create_topics(greedy)


async def test_reading_ends_behind_aborted_records_and_markers(settings: Settings) -> None:
    await create_topics(settings)
    audit = Topics(settings.topic_prefix).audit
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=settings.topic_prefix
    )
    await producer.start()
    for kept in (True, False):
        await producer.begin_transaction()
        for number in range(30):
            value = b"%d" % number if kept else b"never"
            await producer.send_and_wait(audit, value, partition=number % 3)
        await (producer.commit_transaction() if kept else producer.abort_transaction())
    await producer.stop()

    read_values = await asyncio.wait_for(values(settings, audit), patience(20))

    assert sorted(read_values) == sorted(b"%d" % number for number in range(30))
    assert await values(settings, audit, "end") == []
    assert sorted(await values(settings, audit, time_of(0))) == sorted(read_values)
    assert await values(settings, audit, time_of(int(time.time() * 1000) + 60_000)) == []
    only = [record.value async for record in read(settings, audit, partitions=[1])]
    assert only == [b"%d" % number for number in range(1, 30, 3)]


async def test_following_hears_what_is_written_after_it_began(settings: Settings) -> None:
    await create_topics(settings)
    control = Topics(settings.topic_prefix).control
    ready = asyncio.Event()
    records = read(settings, control, start="end", follow=True, ready=ready.set)
    first = asyncio.ensure_future(anext(records))
    await asyncio.wait_for(ready.wait(), patience(20))

    async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
        await producer.send_and_wait(control, b"now", partition=2)

    assert (await asyncio.wait_for(first, patience(20))).value == b"now"
    await records.aclose()


async def test_a_topic_that_is_not_there_is_a_sentence(settings: Settings) -> None:
    with pytest.raises(TopicsWrong, match="does not exist"):
        await values(settings, f"{settings.topic_prefix}.audit")


async def test_an_absent_broker_is_a_sentence_within_the_patience() -> None:
    began = time.monotonic()
    with pytest.raises(
        BrokerUnreachable, match=r"^No Kafka broker answers at 127\.0\.0\.1:1 \(connection refused"
    ):
        await ensure_reachable(Settings(bootstrap_servers="127.0.0.1:1"), patience_s=1)
    assert time.monotonic() - began < patience(10)


async def test_one_address_that_answers_is_enough(settings: Settings) -> None:
    two = f"127.0.0.1:1,{settings.bootstrap_servers}"
    await ensure_reachable(settings.model_copy(update={"bootstrap_servers": two}))


async def test_a_broker_that_does_not_let_us_in_is_a_sentence_without_the_secret(
    settings: Settings,
) -> None:
    stranger = Settings(
        bootstrap_servers=settings.bootstrap_servers,
        security_protocol="SASL_PLAINTEXT",
        sasl_username="alice",
        sasl_password="hunter2",
    )
    with pytest.raises(AccessDenied, match="does not let us in as 'alice'") as no:
        await ensure_reachable(stranger)

    assert "hunter2" not in repr(no.value) + repr(connection_options(stranger, "test"))


async def test_a_server_that_is_no_tls_server_is_a_sentence() -> None:
    async def not_tls(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(not_tls, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(AccessDenied, match=r"The TLS handshake with 127\.0\.0\.1:\d+ failed"):
            await ensure_reachable(
                Settings(bootstrap_servers=f"127.0.0.1:{port}", security_protocol="SSL")
            )


def test_a_tls_file_that_cannot_be_used_is_a_sentence() -> None:
    missing = Settings(security_protocol="SSL", ssl_cafile="/nowhere/ca.pem")
    with pytest.raises(BadSetting, match=r"TASKFLOW_SSL_CAFILE is '/nowhere/ca.pem'.*no such file"):
        connection_options(missing, "test")


def test_a_client_keeps_its_name_over_a_restart() -> None:
    assert client_id(Settings(), "worker") == client_id(Settings(), "worker")
    assert client_id(Settings(state_dir="elsewhere"), "worker") != client_id(Settings(), "worker")
    assert client_id(Settings(instance_id="w-1"), "worker") == "taskflow-worker-w-1"
