"""What the transport overrides is there in Faust, and its consumer reads what is committed."""

import inspect
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import aiokafka
from faust.transport.consumer import ThreadDelegateConsumer
from faust.transport.drivers import aiokafka as driver

from processor.views import app, transport
from processor.views.transport import CommittedConsumer, CommittedThread, CommittedTransport

LOCK = Path(__file__).parents[3] / "requirements.lock"


def parameters(function):
    return list(inspect.signature(function).parameters)


def test_the_faust_that_runs_is_the_locked_one():
    assert f"faust-streaming=={version('faust-streaming')} " in LOCK.read_text("utf-8")


def test_faust_has_what_is_overridden_with_the_same_parameters():
    for ours, theirs, name in (
        (CommittedThread, driver.AIOKafkaConsumerThread, "_create_worker_consumer"),
        (CommittedThread, driver.AIOKafkaConsumerThread, "seek_to_committed"),
        (CommittedConsumer, driver.Consumer, "_new_consumer_thread"),
    ):
        base, own = getattr(theirs, name), getattr(ours, name)
        assert parameters(base) == parameters(own), name
        assert inspect.iscoroutinefunction(base) is inspect.iscoroutinefunction(own), name
        assert own is not base


def test_records_are_fetched_by_what_is_counted():
    base = driver.AIOKafkaConsumerThread._fetch_records
    assert inspect.iscoroutinefunction(base)
    assert "self._fetch_records," in inspect.getsource(driver.AIOKafkaConsumerThread.getmany)


def test_faust_makes_its_consumer_and_seeks_by_the_overridden_methods():
    thread = driver.AIOKafkaConsumerThread
    assert "_create_worker_consumer(" in inspect.getsource(thread._create_consumer)
    assert "_create_consumer(" in inspect.getsource(thread.on_start)
    assert "_new_consumer_thread(" in inspect.getsource(driver.Consumer)
    assert "self._thread.seek_to_committed(" in inspect.getsource(ThreadDelegateConsumer)
    assert issubclass(driver.Consumer, ThreadDelegateConsumer)
    for name in ("call_thread", "_ensure_consumer"):
        assert callable(getattr(thread, name))


def made_consumer(monkeypatch):
    made = {}
    monkeypatch.setattr(
        transport.aiokafka, "AIOKafkaConsumer", lambda **options: made.update(options) or made
    )
    thread = SimpleNamespace(app=app.app)
    given = CommittedTransport.__new__(CommittedTransport)
    given.settings = app.app.settings_
    CommittedThread._create_worker_consumer(thread, given)
    return made


def test_the_consumer_reads_only_what_is_committed_and_commits_nothing_by_itself(monkeypatch):
    # The real one takes all these options; it would have to be connected to be asked for them.
    known = parameters(aiokafka.AIOKafkaConsumer.__init__)
    made = made_consumer(monkeypatch)
    assert made["isolation_level"] == "read_committed"
    assert made["enable_auto_commit"] is False
    assert made["auto_offset_reset"] == "earliest"
    assert made["group_id"] == app.app.conf.id
    assert made["partition_assignment_strategy"] == [app.app.assignor]
    assert made.keys() <= set(known)


def test_the_application_makes_this_transport():
    made = app.app._new_transport()
    assert isinstance(made, CommittedTransport)
    assert made.Consumer is CommittedConsumer


async def test_after_an_assignment_our_own_positions_are_sought():
    sought, partitions = [], [driver.TP("taskflow.audit", 0), driver.TP("taskflow.audit", 3)]
    consumer = SimpleNamespace(
        assignment=lambda: partitions, seek=lambda tp, offset: sought.append((tp, offset))
    )

    async def call_thread(function):
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
