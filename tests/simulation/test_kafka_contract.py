"""Simulated Kafka and the real one, each through what an owner uses of it, held to the same
scenarios: what one hides, refuses or completes, so does the other."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from contextvars import Context
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.consumer.group_consumer import KafkaGroupConsumer
from processor.adapters.kafka.producer.transactional_producer import (
    KafkaTransactionalProducer,
    producers_stopped,
)
from processor.adapters.kafka.reader.log_reader import KafkaLogReader
from processor.contract.topics import Topics
from processor.engine.batch import Outgoing
from processor.engine.ports import GroupConsumer, LogReader, OffsetRange, TransactionalProducer
from processor.engine.rows import Position
from processor.settings import Settings
from processor.testing.memory.kafka import Transaction, TxnState
from tests.simulation.group import GroupMember, RebalancingGroup
from tests.simulation.kafka import HistoryKafka
from tests.simulation.ports import Calm, SimHistory, SimWriter
from tests.support.machine import patience

PATIENCE_S: Final = patience(60.0)


class Cluster(Protocol):
    """A Kafka with the seven topics, of one partition each."""

    topics: Topics

    async def writer(self) -> TransactionalProducer:
        """A producer under the partition's transactional id, not started."""

    def history(self) -> LogReader: ...
    async def append(self, topic: str, *values: bytes) -> None:
        """By a plain producer."""

    async def begin(self, topic: str, value: bytes) -> Any:
        """A transaction of somebody else's, left open with one record in it."""

    async def end(self, foreign: Any, *, commit: bool) -> None: ...
    async def leave_open(self, writer: Any, topic: str, value: bytes) -> None:
        """The writer's worker dies in a transaction, with one record in it."""

    async def member(self) -> GroupConsumer:
        """The only member of a group, once it was given the partition."""


class CalmMember(Calm):
    """A worker that runs for as long as its test does."""

    listens = True
    context: Context | None = None


class Simulated:
    def __init__(self) -> None:
        self.topics = Topics()
        self._kafka = HistoryKafka(self.topics, 1, asyncio.get_running_loop().time)
        self._life = CalmMember()
        self._tasks: list[asyncio.Task[None]] = []

    async def writer(self) -> SimWriter:
        return SimWriter(self._kafka, self._life, 0)

    def history(self) -> SimHistory:
        return SimHistory(self._kafka, self._life, 0)

    async def append(self, topic: str, *values: bytes) -> None:
        for value in values:
            self._kafka.append(topic, 0, b"k", value)

    async def begin(self, topic: str, value: bytes) -> Any:
        foreign = Transaction()
        self._kafka.append(topic, 0, b"k", value, (), foreign)
        return foreign

    async def end(self, foreign: Any, *, commit: bool) -> None:
        self._kafka.end(foreign, TxnState.COMMITTED if commit else TxnState.ABORTED)

    async def leave_open(self, writer: Any, topic: str, value: bytes) -> None:
        writer._produce(topic, [Outgoing(b"k", value, ())])

    async def member(self) -> GroupMember:
        group = RebalancingGroup(self._kafka, self._life.rng)
        self._tasks.append(asyncio.create_task(group.run()))

        async def nothing_pending() -> None:
            return None

        member = GroupMember(
            group, self._kafka, self._life, lambda partitions: None, nothing_pending
        )
        await member.start()
        await asyncio.wait_for(member.assigned(0), PATIENCE_S)
        return member

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class Real:
    def __init__(self, settings: Settings) -> None:
        self.topics = Topics(settings.topic_prefix)
        self._settings = settings
        self._open = AsyncExitStack()

    async def writer(self) -> KafkaTransactionalProducer:
        writer = KafkaTransactionalProducer(
            connection_options(self._settings, "owner-0"),
            self.topics,
            0,
            compression=None,
            commit_timeout_s=patience(10.0),
        )
        self._open.callback(writer.discard)
        return writer

    def history(self) -> KafkaLogReader:
        history = KafkaLogReader(connection_options(self._settings, "looking"), 0)
        self._open.push_async_callback(history.close)
        return history

    async def _producer(self, **how: Any) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(bootstrap_servers=self._settings.bootstrap_servers, **how)
        await producer.start()
        self._open.push_async_callback(producer.stop)
        return producer

    async def append(self, topic: str, *values: bytes) -> None:
        producer = await self._producer()
        for value in values:
            await producer.send_and_wait(topic, value, b"k", partition=0)

    async def begin(self, topic: str, value: bytes) -> Any:
        foreign = await self._producer(transactional_id=f"{self.topics.prefix}-foreign")
        await foreign.begin_transaction()
        await foreign.send_and_wait(topic, value, b"k", partition=0)
        return foreign

    async def end(self, foreign: Any, *, commit: bool) -> None:
        await (foreign.commit_transaction() if commit else foreign.abort_transaction())

    async def leave_open(self, writer: Any, topic: str, value: bytes) -> None:
        await writer._producer.begin_transaction()
        await writer._producer.send_and_wait(topic, value, b"k", partition=0)

    async def member(self) -> KafkaGroupConsumer:
        async def nothing_pending() -> None:
            return None

        source = KafkaGroupConsumer(
            connection_options(self._settings, "worker"),
            self.topics,
            group_id=self._settings.group_id,
            instance_id=None,
            session_timeout_ms=self._settings.session_timeout_ms,
            on_assigned=lambda partitions: None,
            on_revoked=nothing_pending,
        )
        await source.start()
        self._open.push_async_callback(source.stop, timeout_s=5.0)
        await asyncio.wait_for(source.assigned(0), PATIENCE_S)
        return source

    async def close(self) -> None:
        await self._open.aclose()
        await producers_stopped(5.0)


@pytest.fixture(params=["simulated", "real"])
async def cluster(
    request: pytest.FixtureRequest, prefix: str, tmp_path: Path
) -> AsyncIterator[Cluster]:
    opened: Simulated | Real = Simulated()
    if request.param == "real":
        settings = Settings(
            bootstrap_servers=request.getfixturevalue("broker").bootstrap,
            topic_prefix=prefix,
            partitions=1,
            state_dir=tmp_path,
            http=None,
        )
        await create_topics(settings)
        opened = Real(settings)
    yield opened
    await opened.close()


def batch(topic: str, *values: bytes) -> Mapping[str, Sequence[Outgoing]]:
    return {topic: [Outgoing(b"k", value, ()) for value in values]}


async def started(cluster: Cluster) -> TransactionalProducer:
    writer = await cluster.writer()
    await writer.start()
    return writer


async def read(cluster: Cluster, topic: str, start: int = 0) -> list[tuple[int, bytes]]:
    """Offset and value of what can be seen, once no transaction is open: a broker acknowledges its
    end before the marker is there."""
    async with asyncio.timeout(PATIENCE_S):
        await cluster.history().settled([topic])
    return await visible(cluster, topic, start)


async def visible(cluster: Cluster, topic: str, start: int = 0) -> list[tuple[int, bytes]]:
    """Offset and value of what can be seen now."""
    history = cluster.history()
    end = await history.stable_end(topic)
    return [
        (r.offset, r.value or b"") async for some in history.read(topic, start, end) for r in some
    ]


async def test_a_marker_takes_an_offset(cluster: Cluster) -> None:
    audit = cluster.topics.audit
    writer = await started(cluster)

    first = await writer.write(batch(audit, b"1", b"2"))
    second = await writer.write(batch(audit, b"3"))

    assert (first.ends[audit], second.ends[audit]) == (2, 4)
    assert not writer.suspect
    assert await read(cluster, audit) == [(0, b"1"), (1, b"2"), (3, b"3")]
    assert await cluster.history().offset_range(audit) == OffsetRange(0, 5)


async def test_a_transaction_tells_the_brokers_time_and_each_topics_end(cluster: Cluster) -> None:
    topics = cluster.topics
    writer = await started(cluster)

    written = await writer.write({**batch(topics.audit, b"1", b"2"), **batch(topics.state, b"3")})

    assert written.ends == {topics.audit: 2, topics.state: 1}
    history = cluster.history()
    await asyncio.wait_for(history.settled([topics.audit]), PATIENCE_S)
    assert await history.offset_at(topics.audit, written.at_ms - 60_000) == 0
    assert await history.offset_at(topics.audit, written.at_ms + 60_000) is None


async def test_what_a_dead_writer_left_open_is_aborted_by_the_next(cluster: Cluster) -> None:
    audit = cluster.topics.audit
    first = await started(cluster)
    await first.write(batch(audit, b"1"))
    await cluster.leave_open(first, audit, b"left")
    assert await cluster.history().stable_end(audit) == 2
    assert await cluster.history().offset_range(audit) == OffsetRange(0, 3)

    second = await started(cluster)

    await second.write(batch(audit, b"2"))
    assert await read(cluster, audit) == [(0, b"1"), (4, b"2")]


async def test_a_late_writer_is_refused_and_nothing_of_its_shows(cluster: Cluster) -> None:
    audit = cluster.topics.audit
    late = await started(cluster)
    await late.write(batch(audit, b"1"))
    next_one = await started(cluster)

    with pytest.raises(Exception, match=r"(?i)fenced|epoch"):
        await late.write(batch(audit, b"late"))

    await next_one.write(batch(audit, b"2"))
    assert [value for _, value in await read(cluster, audit)] == [b"1", b"2"]


@pytest.mark.parametrize("commit", [True, False])
async def test_an_open_transaction_hides_what_comes_after_it(
    cluster: Cluster, commit: bool
) -> None:
    state = cluster.topics.state
    await cluster.append(state, b"1")
    foreign = await cluster.begin(state, b"2")
    await cluster.append(state, b"3")
    assert await visible(cluster, state) == [(0, b"1")]
    history = cluster.history()
    settling = asyncio.ensure_future(history.settled([state]))
    _, waiting = await asyncio.wait([settling], timeout=0.3)
    assert waiting

    await cluster.end(foreign, commit=commit)

    assert await asyncio.wait_for(settling, PATIENCE_S) == {state: OffsetRange(0, 3)}
    shown = [(0, b"1"), (1, b"2"), (2, b"3")]
    assert await read(cluster, state) == (shown if commit else [shown[0], shown[2]])


async def test_a_read_may_begin_and_end_anywhere(cluster: Cluster) -> None:
    audit = cluster.topics.audit
    writer = await started(cluster)
    for value in (b"1", b"2", b"3"):
        await writer.write(batch(audit, value))

    assert await read(cluster, audit, 1) == [(2, b"2"), (4, b"3")]
    assert await read(cluster, audit, 5) == []
    history = cluster.history()
    some = [r.offset async for records in history.read(audit, 0, 3) for r in records]
    assert some == [0, 2]


async def test_a_member_fetches_from_where_it_was_told_to_and_steps_over_markers(
    cluster: Cluster,
) -> None:
    commands = cluster.topics.commands
    await cluster.append(commands, b"1", b"2")
    foreign = await cluster.begin(commands, b"never")
    member = await cluster.member()
    await member.confirm(0, Position(0, 0, 1))

    member.attach(0, Position(1, 0, 1))
    fetched = await member.fetch(0, max_records=10, timeout_s=PATIENCE_S)
    assert [(r.offset, r.value) for r in fetched.commands] == [(1, b"2")]
    assert list(fetched.control) == []

    await cluster.end(foreign, commit=False)
    async with asyncio.timeout(PATIENCE_S):
        while member.ahead(0) != Position(4, 0, 0):
            nothing = await member.fetch(0, max_records=10, timeout_s=0.1)
            assert (list(nothing.commands), list(nothing.control)) == ([], [])
    assert member.lags(0) == (0, 0)


async def test_a_member_is_given_no_more_than_it_asks_for_and_nothing_twice(
    cluster: Cluster,
) -> None:
    commands = cluster.topics.commands
    await cluster.append(commands, *(b"%d" % n for n in range(5)))
    member = await cluster.member()
    member.attach(0, Position(0, 0, 1))
    offsets: list[int] = []

    async with asyncio.timeout(PATIENCE_S):
        while len(offsets) < 5:
            fetched = await member.fetch(0, max_records=2, timeout_s=1.0)
            assert len(fetched.commands) <= 2
            offsets += [record.offset for record in fetched.commands]

    assert offsets == [0, 1, 2, 3, 4]
