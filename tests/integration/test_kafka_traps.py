"""What aiokafka and Kafka do to who trusts them, and that we do not: each against a real broker.

The scripts that first showed these facts are gone; what they showed is in the names here.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiokafka.errors
import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.consumer.group_consumer import KafkaGroupConsumer
from processor.adapters.kafka.consumer.static_membership import StaticMembership
from processor.adapters.kafka.errors import RequestFailed
from processor.adapters.kafka.producer.transactional_producer import (
    CommitUncertain,
    KafkaTransactionalProducer,
    producers_stopped,
)
from processor.adapters.kafka.reader.log_reader import KafkaLogReader
from processor.contract.topics import MESSAGE_MAX_BYTES, Topics
from processor.embedded.broker import EmbeddedBroker
from processor.engine.batch import Outgoing, cursor_record
from processor.engine.rows import Position
from processor.errors import InstanceIdTaken, OwnershipLost, SourceFailed
from processor.settings import Settings
from processor.worker.composition import run_worker
from tests.support.machine import patience, stretched
from tests.support.observed_deployment import observing
from tests.support.proxy import END_TXN, HEARTBEAT, Fate, Proxy, proxied
from tests.support.transactions import until_ended
from tests.support.worker import running_worker
from tests.unit.commands import create, update

NOWHERE = Position(0, 0, 1)
PATIENCE_S = patience(60.0)


@pytest.fixture
async def settings(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> Settings:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=1,
        state_dir=tmp_path / "state",
        http=None,
    )
    await create_topics(settings)
    return settings


@pytest.fixture
async def proxy(
    broker: EmbeddedBroker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Proxy]:
    async with proxied(broker.bootstrap, monkeypatch) as proxy:
        yield proxy
        await producers_stopped(5.0)


def new_writer(
    settings: Settings, *, commit_timeout_s: float = patience(10.0)
) -> KafkaTransactionalProducer:
    return KafkaTransactionalProducer(
        connection_options(settings, "owner-0"),
        Topics(settings.topic_prefix),
        0,
        compression=None,
        commit_timeout_s=commit_timeout_s,
    )


@asynccontextmanager
async def started_writer(
    settings: Settings, **how: Any
) -> AsyncIterator[KafkaTransactionalProducer]:
    writer = new_writer(settings, **how)
    await writer.start()
    try:
        yield writer
    finally:
        writer.discard()
        await producers_stopped(5.0)


def audit(settings: Settings, *values: bytes) -> dict[str, list[Outgoing]]:
    return {Topics(settings.topic_prefix).audit: [Outgoing(b"k", value, ()) for value in values]}


async def committed(settings: Settings, topic: str = "audit") -> list[bytes]:
    """The committed values, once no transaction is open."""
    await until_ended(settings, f"{settings.topic_prefix}.{topic}", [0])
    return await visible(settings, topic)


async def visible(settings: Settings, topic: str) -> list[bytes]:
    """The committed values, up to the last stable offset."""
    name = f"{settings.topic_prefix}.{topic}"
    history = KafkaLogReader(connection_options(settings, "looking"), 0)
    try:
        end = await history.stable_end(name)
        return [r.value or b"" async for some in history.read(name, 0, end) for r in some]
    finally:
        await history.close()


# The producer


def test_what_the_writer_counts_is_where_it_was_in_this_version_of_aiokafka() -> None:
    from aiokafka.producer.sender import Sender

    assert version("aiokafka") == "0.14.0"
    assert inspect.iscoroutinefunction(Sender._do_txn_commit)
    assert list(inspect.signature(Sender._do_txn_commit).parameters) == ["self", "commit_result"]
    # It is looked up again for each commit, so that a counted one is met.
    assert "self._do_txn_commit(" in inspect.getsource(Sender._maybe_do_transactional_request)


async def test_a_commit_as_usual_is_sent_once(settings: Settings) -> None:
    async with started_writer(settings) as writer:
        for number in range(3):
            written = await writer.write(audit(settings, b"%d" % number))
            assert written.ends == {Topics(settings.topic_prefix).audit: 2 * number + 1}
            assert not writer.suspect

    assert await committed(settings) == [b"0", b"1", b"2"]


@pytest.mark.parametrize("fate", [Fate.CUT, Fate.HOLD])
async def test_a_commit_that_was_sent_twice_makes_the_producer_suspect(
    settings: Settings, proxy: Proxy, fate: Fate
) -> None:
    async with started_writer(settings) as writer:
        proxy.decide_once(END_TXN, fate)

        await writer.write(audit(settings, b"1"))

        assert writer.suspect
    assert await committed(settings) == [b"1"]


async def test_on_the_same_producer_a_late_commit_commits_half_of_the_next_transaction(
    settings: Settings, proxy: Proxy
) -> None:
    """The trap itself: why a suspect producer begins nothing more."""
    async with started_writer(settings) as writer:
        proxy.decide_once(END_TXN, Fate.HOLD)
        await writer.write(audit(settings, b"1"))
        producer = writer._producer
        assert producer is not None
        await producer.begin_transaction()
        topic = Topics(settings.topic_prefix).audit
        await producer.send_and_wait(topic, b"half", key=b"k", partition=0)

        response = await proxy.release()

        assert response[4:6] == b"\0\0"
        assert await committed(settings) == [b"1", b"half"]


async def test_a_replaced_producer_makes_the_late_commit_harmless(
    settings: Settings, proxy: Proxy
) -> None:
    async with started_writer(settings) as first:
        proxy.decide_once(END_TXN, Fate.HOLD)
        await first.write(audit(settings, b"1"))
    async with started_writer(settings) as second:
        producer = second._producer
        assert producer is not None
        await producer.begin_transaction()
        topic = Topics(settings.topic_prefix).audit
        await producer.send_and_wait(topic, b"half", key=b"k", partition=0)

        response = await proxy.release()

        assert int.from_bytes(response[4:6], "big") == 47  # INVALID_PRODUCER_EPOCH
        await producer.abort_transaction()
        assert await committed(settings) == [b"1"]


async def test_a_commit_without_an_answer_ends_with_its_deadline_and_the_topics_tell(
    settings: Settings, proxy: Proxy
) -> None:
    proxy.decide_once(END_TXN, Fate.SWALLOW)
    timeout_s = 1.0
    # Longer, where the machine takes longer to come to the commit: then nothing is committed.
    while not proxy.befallen["EndTxn", Fate.SWALLOW.name]:
        writer = new_writer(settings)
        await writer.start()
        writer._commit_timeout_s = timeout_s

        with pytest.raises(CommitUncertain):
            await writer.write(audit(settings, b"1"))

        writer.discard()
        timeout_s *= 2
    async with started_writer(settings) as successor:
        assert await committed(settings) == [b"1"]
        await successor.write(audit(settings, b"2"))
    assert await committed(settings) == [b"1", b"2"]


async def test_a_failed_batch_fails_the_write_although_the_commit_would_succeed(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    too_large = b"x" * (MESSAGE_MAX_BYTES + 1)
    records = {
        topics.outcomes: [Outgoing(b"k", b"good", ())],
        topics.audit: [Outgoing(b"k", too_large, ())],
    }
    writer = new_writer(settings)
    await writer.start()

    with pytest.raises(RequestFailed, match="MessageSizeTooLargeError"):
        await writer.write(records)

    writer.discard()
    async with started_writer(settings) as successor:
        assert await committed(settings, "outcomes") == []
        await successor.write(audit(settings, b"after"))
    assert await committed(settings) == [b"after"]


async def test_an_error_without_a_class_fails_the_write(settings: Settings) -> None:
    """87, a keyless record on a compacted topic, is unknown to aiokafka."""
    topics = Topics(settings.topic_prefix)
    writer = new_writer(settings)
    await writer.start()

    with pytest.raises(RequestFailed, match="a transaction of partition 0 failed: UnknownError"):
        await writer.write({topics.state: [Outgoing(None, b"no key", ())]})

    writer.discard()
    await producers_stopped(5.0)


async def test_starting_a_writer_ends_what_the_last_one_left_open(settings: Settings) -> None:
    topics = Topics(settings.topic_prefix)
    first = new_writer(settings)
    await first.start()
    assert first._producer is not None
    await first._producer.begin_transaction()
    await first._producer.send_and_wait(topics.audit, b"left", key=b"k", partition=0)
    try:
        async with started_writer(settings) as second:
            await second.write(audit(settings, b"1"))
            assert await committed(settings) == [b"1"]
            with pytest.raises(aiokafka.errors.ProducerFenced):
                await first._producer.send_and_wait(topics.audit, b"late", partition=0)
    finally:
        first.discard()
        await producers_stopped(5.0)


# The history


async def test_a_foreign_open_transaction_is_waited_for_and_the_older_cursor_not_taken(
    settings: Settings,
) -> None:
    topics = Topics(settings.topic_prefix)
    foreign = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=f"foreign-{uuid4()}"
    )
    await foreign.start()
    history = KafkaLogReader(connection_options(settings, "owner-0"), 0)
    try:
        async with started_writer(settings) as writer:
            older, newer = Position(100, 0, 1), Position(200, 0, 1)
            await writer.write({topics.state: [cursor_record(0, older)]})
            await foreign.begin_transaction()
            await foreign.send_and_wait(topics.state, b"x", key=b"foreign", partition=0)
            await writer.write({topics.state: [cursor_record(0, newer)]})
            # Acknowledged, and yet hidden behind the foreign record.
            (seen,) = [orjson.loads(value) for value in await visible(settings, "state")]
            assert seen["commands"] == 100

            settling = asyncio.ensure_future(history.settled([topics.state]))
            _, waiting = await asyncio.wait([settling], timeout=0.5)
            assert waiting
            await foreign.abort_transaction()
            offset_range = (await asyncio.wait_for(settling, PATIENCE_S))[topics.state]

            cursors = [
                orjson.loads(record.value or b"")["commands"]
                async for some in history.read(topics.state, offset_range.start, offset_range.end)
                for record in some
            ]
            assert cursors == [100, 200]
    finally:
        await history.close()
        await foreign.stop()


# The group


@asynccontextmanager
async def member(
    settings: Settings, role: str = "worker", instance_id: str | None = None, **connection: Any
) -> AsyncIterator[KafkaGroupConsumer]:
    async def nothing_pending() -> None:
        return None

    source = KafkaGroupConsumer(
        {**connection_options(settings, role), **connection},
        Topics(settings.topic_prefix),
        group_id=settings.group_id,
        instance_id=instance_id,
        session_timeout_ms=settings.session_timeout_ms,
        on_assigned=lambda partitions: None,
        on_revoked=nothing_pending,
    )
    await source.start()
    try:
        yield source
    finally:
        await source.stop(timeout_s=5.0)


async def produce(settings: Settings, topic: str, commands: Iterable[dict[str, Any]]) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all")
    await producer.start()
    try:
        for one in commands:
            await producer.send_and_wait(
                f"{settings.topic_prefix}.{topic}", orjson.dumps(one), one["flow_id"].encode()
            )
    finally:
        await producer.stop()


async def plant(settings: Settings, offset: int) -> None:
    """Commit an offset for the group that has nothing to do with what was decided."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers,
        group_id=settings.group_id,
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        tps = [
            TopicPartition(f"{settings.topic_prefix}.commands", partition)
            for partition in range(settings.partitions)
        ]
        consumer.assign(tps)
        await consumer.commit(dict.fromkeys(tps, offset))
    finally:
        await consumer.stop()


@pytest.mark.parametrize("planted", [0, 3, 1_000])
async def test_the_groups_offsets_decide_nothing(
    broker: EmbeddedBroker, settings: Settings, planted: int
) -> None:
    settings = settings.model_copy(update={"session_timeout_ms": int(stretched(6_000))})
    before = [create(n) for n in range(6)]
    after = [update(n, revision=0) for n in range(6)]
    await produce(settings, "commands", before)
    async with observing(broker.bootstrap, settings.topic_prefix, 1) as observer:
        async with running_worker(settings):
            await observer.settled(timeout_s=PATIENCE_S)
        await plant(settings, planted)
        await produce(settings, "commands", after)
        async with running_worker(settings):
            world = await observer.settled([settings.state_dir], timeout_s=PATIENCE_S)

    outcomes = [orjson.loads(record.value or b"") for record in world.all_of("outcomes")]
    assert [one["source"]["offset"] for one in outcomes] == list(range(12))
    assert {one["verdict"] for one in outcomes} == {"accepted"}


async def test_what_the_consumer_fetched_before_it_was_told_where_to_begin_reaches_nobody(
    settings: Settings,
) -> None:
    await produce(settings, "commands", [create(n) for n in range(6)])
    await plant(settings, 2)
    async with member(settings) as source:
        await asyncio.wait_for(source.assigned(0), PATIENCE_S)
        nothing = await source.fetch(0, max_records=10, timeout_s=1.0)
        source.attach(0, Position(4, 0, 1))
        fetched = await source.fetch(0, max_records=10, timeout_s=PATIENCE_S)

    assert (list(nothing.commands), list(nothing.control)) == ([], [])
    assert [record.offset for record in fetched.commands] == [4, 5]


async def test_a_member_that_lost_its_generation_confirms_nothing(settings: Settings) -> None:
    async with member(settings, "one") as source:
        await asyncio.wait_for(source.assigned(0), PATIENCE_S)
        await source.confirm(0, NOWHERE)
        # As after a sleep: the group has gone on, and we have not heard of it.
        source._consumer._coordinator.generation += 1
        with pytest.raises(OwnershipLost):
            await source.confirm(0, NOWHERE)


async def test_a_member_whose_place_another_took_confirms_nothing(settings: Settings) -> None:
    async with member(settings, "sleeper", instance_id="w") as sleeper:
        await asyncio.wait_for(sleeper.assigned(0), PATIENCE_S)
        heartbeats = sleeper._consumer._coordinator._heartbeat_task
        assert heartbeats is not None
        heartbeats.cancel()
        async with member(settings, "other", instance_id="w") as other:
            await asyncio.wait_for(other.assigned(0), PATIENCE_S)
            await other.confirm(0, NOWHERE)
            with pytest.raises(OwnershipLost):
                await sleeper.confirm(0, NOWHERE)


async def test_a_consumer_that_the_group_does_not_let_in_fails_and_does_not_join_once_more(
    settings: Settings,
) -> None:
    """aiokafka goes on joining as soon as somebody has seen its error."""
    async with member(settings) as source:
        await asyncio.wait_for(source.assigned(0), PATIENCE_S)
        coordinator = source._consumer._coordinator
        # As after a join that met another live member of our name, for which it has no error.
        error = aiokafka.errors.KafkaError("UnknownError()")
        pushing = asyncio.ensure_future(coordinator._push_error_to_user(error))

        await asyncio.wait_for(source.failed.wait(), PATIENCE_S)

        for asking in (source.undone([0]), source.fetch(0, max_records=1, timeout_s=0.1)):
            with pytest.raises(SourceFailed, match="UnknownError"):
                await asking
        assert not pushing.done()
    await asyncio.wait_for(pushing, PATIENCE_S)


async def test_a_silent_connection_to_the_coordinator_is_given_up_with_the_session(
    settings: Settings, proxy: Proxy
) -> None:
    """aiokafka waits for its request timeout, which is longer here than any test."""
    settings = settings.model_copy(update={"session_timeout_ms": 1_000})
    async with member(settings, request_timeout_ms=3_600_000) as source:
        await asyncio.wait_for(source.assigned(0), PATIENCE_S)
        proxy.decide_once(HEARTBEAT, Fate.SILENCE)
        async with asyncio.timeout(PATIENCE_S):
            while not proxy.befallen["Heartbeat", Fate.SILENCE.name]:  # noqa: ASYNC110 (a counter)
                await asyncio.sleep(0.02)
            while True:
                try:
                    await source.confirm(0, NOWHERE)
                    break
                except (OwnershipLost, RequestFailed):
                    await asyncio.sleep(0.02)
                    await source.assigned(0)


# Static members


async def decided(observer: Any, count: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while len(list((await observer.catch_up()).all_of("outcomes"))) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_a_restarted_static_worker_is_back_without_waiting_for_its_session_to_end(
    broker: EmbeddedBroker, settings: Settings
) -> None:
    settings = settings.model_copy(update={"session_timeout_ms": 600_000, "instance_id": "w"})
    async with observing(broker.bootstrap, settings.topic_prefix, 1) as observer:
        for round_ in range(3):
            # A group that waited for the old member would wait for longer than the test.
            async with running_worker(settings):
                await produce(settings, "commands", [create(round_)])
                await decided(observer, round_ + 1)


async def test_of_two_workers_that_start_with_one_instance_id_exactly_one_goes_on(
    broker: EmbeddedBroker, settings: Settings, tmp_path: Path
) -> None:
    settings = settings.model_copy(
        update={"session_timeout_ms": int(stretched(6_000)), "instance_id": "twin"}
    )
    first = settings.model_copy(update={"state_dir": tmp_path / "first"})
    second = settings.model_copy(update={"state_dir": tmp_path / "second"})
    # One for each: a worker that ends by itself sets its own.
    stops = [asyncio.Event(), asyncio.Event()]
    workers = [
        asyncio.create_task(run_worker(one, stop=stop))
        for one, stop in zip((first, second), stops, strict=True)
    ]
    try:
        # Both are young: the one that stops may be either.
        (stopped,), (goes_on,) = await asyncio.wait(
            workers, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
        )
        with pytest.raises(InstanceIdTaken, match="TASKFLOW_INSTANCE_ID 'twin'; this one"):
            stopped.result()
        async with observing(broker.bootstrap, settings.topic_prefix, 1) as observer:
            await produce(settings, "commands", [create(1), create(2)])
            await decided(observer, 2)
        assert not goes_on.done()
    finally:
        for stop in stops:
            stop.set()
        await asyncio.gather(*workers, return_exceptions=True)


async def test_a_worker_that_comes_later_with_a_name_in_use_is_the_one_that_stops(
    broker: EmbeddedBroker, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings.model_copy(
        update={"session_timeout_ms": int(stretched(6_000)), "instance_id": "twin"}
    )
    second = settings.model_copy(update={"state_dir": tmp_path / "second"})
    stays: list[StaticMembership] = []
    joined = StaticMembership.joined

    def noted(stay: StaticMembership, member_id: str) -> None:
        stays.append(stay)
        joined(stay, member_id)

    monkeypatch.setattr(StaticMembership, "joined", noted)
    async with (
        observing(broker.bootstrap, settings.topic_prefix, 1) as observer,
        running_worker(settings),
    ):
        stays[0]._since -= stretched(60)  # it holds the name for longer than a session
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(InstanceIdTaken):
                await run_worker(second, stop=asyncio.Event())
        await produce(settings, "commands", [create(1)])
        await decided(observer, 1)
