"""What the transport overrides is there in Faust, its consumer reads what is committed, and its
messages are chunks."""

import inspect
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import aiokafka
import pytest
from aiokafka.errors import KafkaConnectionError
from faust.transport.consumer import Consumer, ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from processor.views.faust import app, transport
from processor.views.faust.transport import (
    CommittedConsumer,
    CommittedThread,
    CommittedTransport,
    chunks_of,
)

LOCK = Path(__file__).parents[3] / "requirements.lock"


def parameters(function: Any) -> Any:
    return list(inspect.signature(function).parameters)


def test_the_faust_that_runs_is_the_locked_one() -> None:
    assert f"faust-streaming=={version('faust-streaming')} " in LOCK.read_text("utf-8")


def test_faust_has_what_is_overridden_with_the_same_parameters() -> None:
    for ours, theirs, name in (
        (CommittedThread, driver.AIOKafkaConsumerThread, "on_start"),
        (CommittedThread, driver.AIOKafkaConsumerThread, "_create_worker_consumer"),
        (CommittedThread, driver.AIOKafkaConsumerThread, "seek_to_committed"),
        (CommittedConsumer, driver.Consumer, "_new_consumer_thread"),
        (CommittedConsumer, driver.Consumer, "_getmany"),
        (CommittedConsumer, driver.Consumer, "_to_message"),
    ):
        base, own = getattr(theirs, name), getattr(ours, name)
        assert parameters(base) == parameters(own), name
        assert inspect.iscoroutinefunction(base) is inspect.iscoroutinefunction(own), name
        assert own is not base


def test_records_are_fetched_by_what_is_counted() -> None:
    base = driver.AIOKafkaConsumerThread._fetch_records
    assert inspect.iscoroutinefunction(base)
    assert "self._fetch_records," in inspect.getsource(driver.AIOKafkaConsumerThread.getmany)


def test_faust_makes_its_consumer_and_seeks_by_the_overridden_methods() -> None:
    thread = driver.AIOKafkaConsumerThread
    assert "_create_worker_consumer(" in inspect.getsource(thread._create_consumer)
    assert "_create_consumer(" in inspect.getsource(thread.on_start)
    assert "_new_consumer_thread(" in inspect.getsource(driver.Consumer)
    assert "self._thread.seek_to_committed(" in inspect.getsource(ThreadDelegateConsumer)
    assert issubclass(driver.Consumer, ThreadDelegateConsumer)
    for name in ("call_thread", "_ensure_consumer"):
        assert callable(getattr(thread, name))


def test_faust_hands_on_what_is_fetched_as_it_is_and_makes_messages_of_it() -> None:
    getmany = inspect.getsource(Consumer.getmany)
    assert "to_message = self._to_message" in getmany
    assert "yield tp, to_message(tp, record)" in getmany
    assert "records = await self._getmany(" in inspect.getsource(Consumer._wait_next_records)


async def test_a_broker_that_is_away_at_the_start_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    away, there = mock.AsyncMock(), mock.AsyncMock()
    away.start.side_effect = KafkaConnectionError("nobody listens")
    consumers = iter((away, away, there))
    monkeypatch.setattr(transport, "UNREACHABLE_PAUSE_S", 0)
    thread = CommittedThread(mock.MagicMock())
    thread.thread_loop.close()
    monkeypatch.setattr(thread, "_create_consumer", lambda loop: next(consumers))

    await thread.on_start()

    there.start.assert_awaited_once()
    there.stop.assert_not_awaited()
    assert away.stop.await_count == 2


def records(*sizes: Any) -> Any:
    """Of one partition, with values of these sizes; markers have taken each second offset."""
    return [
        SimpleNamespace(
            topic="taskflow.audit", partition=3, offset=2 * n, timestamp=1_500, timestamp_type=1,
            headers=(), key=b"k", value=b"x" * size, checksum=None, serialized_key_size=1,
            serialized_value_size=size,
        )
        for n, size in enumerate(sizes)
    ]  # fmt: skip


@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 6), st.integers(1, 20))
def test_chunks_are_all_records_in_order_and_none_is_too_large(
    sizes: Any, many: Any, large: Any
) -> None:
    with mock.patch.multiple(transport, CHUNK_MAX_RECORDS=many, CHUNK_MAX_BYTES=large):
        some = records(*sizes)
        chunks = list(chunks_of(some))
    assert [one for chunk in chunks for one in chunk] == some
    for chunk in chunks:
        assert 1 <= len(chunk) <= many
        assert len(chunk) == 1 or sum(len(one.value) for one in chunk) <= large
    for chunk, after in pairwise(chunks):
        size = sum(len(one.value) for one in (*chunk, after[0]))
        assert len(chunk) == many or size > large, "it ends no earlier than it must"


async def test_a_chunk_is_a_message_that_acknowledges_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tp, some = TP("taskflow.audit", 3), records(1, 2, 3)

    async def fetched(self: Any, active: Any, timeout: Any) -> Any:
        assert timeout == transport.TURN_S
        return {tp: some}

    monkeypatch.setattr(driver.Consumer, "_getmany", fetched)
    consumer = CommittedConsumer.__new__(CommittedConsumer)
    monkeypatch.setattr(consumer, "app", SimpleNamespace(consumer_generation_id=7), raising=False)
    ((chunk,),) = (await consumer._getmany({tp}, 1.0)).values()
    message = consumer._to_message(tp, chunk)
    assert list(message.value) == some
    assert (message.tp, message.offset, message.generation_id) == (tp, some[-1].offset, 7)


async def test_what_an_agent_gets_is_the_chunk_itself() -> None:
    chunk = tuple(records(1, 2))
    for agent in (app.audit, app.deadletters):
        message: Any = SimpleNamespace(key=None, value=chunk, headers={})
        event = await agent.channel.decode(message)
        assert event.value is chunk


def made_consumer(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(aiokafka, "AIOKafkaConsumer", dict)
    thread: Any = SimpleNamespace(app=app.app)
    given = CommittedTransport.__new__(CommittedTransport)
    given.settings = app.app.settings_
    return CommittedThread._create_worker_consumer(thread, given)


def test_the_consumer_reads_only_what_is_committed_and_commits_nothing_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The real one takes all these options; it would have to be connected to be asked for them.
    known = parameters(aiokafka.AIOKafkaConsumer.__init__)
    made = made_consumer(monkeypatch)
    assert made["isolation_level"] == "read_committed"
    assert made["enable_auto_commit"] is False
    assert made["auto_offset_reset"] == "earliest"
    assert made["group_id"] == app.app.conf.id
    assert made["partition_assignment_strategy"] == [app.app.assignor]
    assert made.keys() <= set(known)


def test_the_application_makes_this_transport() -> None:
    made = app.app._new_transport()
    assert isinstance(made, CommittedTransport)
    assert made.Consumer is CommittedConsumer


async def test_after_an_assignment_our_own_positions_are_sought() -> None:
    sought, partitions = (
        [],
        [TP("taskflow.audit", 0), TP("taskflow.audit", 3)],
    )
    consumer = SimpleNamespace(
        assignment=lambda: partitions, seek=lambda tp, offset: sought.append((tp, offset))
    )

    async def call_thread(function: Any) -> Any:
        return await function()

    thread = CommittedThread.__new__(CommittedThread)
    thread.__dict__ |= {
        "call_thread": call_thread,
        "_ensure_consumer": lambda: consumer,
        "transport": SimpleNamespace(position_of=lambda _, partition: 100 + partition),
        "fetched": dict.fromkeys(partitions, 7),
    }
    assert await thread.seek_to_committed() == {partitions[0]: 100, partitions[1]: 103}
    assert sought == [(partitions[0], 100), (partitions[1], 103)]
    assert thread.fetched == {}, "what was fetched before is not handed over any more"
