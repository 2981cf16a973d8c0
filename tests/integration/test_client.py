"""FlowClient and AuditStream on a real broker, before a processor that does as it is told."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid4

import orjson
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka.errors import KafkaError

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.adapters.kafka.metadata_backoff import back_off_metadata
from processor.adapters.kafka.reader.topic_reader import TopicReader
from processor.adapters.kafka.shutdown import stop_producer
from processor.client import (
    AuditGap,
    AuditStream,
    BrokerUnreachable,
    CommandNotSent,
    FlowClient,
    InvalidCommand,
    OutcomeTimeout,
    TopicsWrong,
    UnreadableEvent,
)
from processor.contract import Outcome, Topics, instant
from processor.contract.events import CHAIN_HEADER, TRACEPARENT_HEADER
from processor.contract.values import EVENTS_PER_PARTITION
from processor.embedded.broker import EmbeddedBroker, embedded_broker
from processor.engine.codec import command_digest
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.own_loop import on_a_loop_of_its_own
from tests.support.transactions import until_ended

PARTITIONS = 3
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
async def settings(broker: EmbeddedBroker, prefix: str) -> Settings:
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    return settings


@pytest.fixture(scope="module")
def own_broker() -> Iterator[EmbeddedBroker]:
    """One to kill: the shared one recovers the logs of all topics that the session has made."""
    with on_a_loop_of_its_own(embedded_broker()) as broker:
        yield broker


@pytest.fixture
async def own_settings(own_broker: EmbeddedBroker, prefix: str) -> Settings:
    settings = Settings(
        bootstrap_servers=own_broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    return settings


class Scripted(NamedTuple):
    """An outcome and the partition that it stands on."""

    partition: int
    outcome: dict[str, Any]


def outcome(record: ConsumerRecord, **fields: Any) -> dict[str, Any]:
    command = orjson.loads(record.value)
    return {
        "command_id": command["command_id"],
        "flow_id": command["flow_id"],
        "kind": command["kind"],
        "verdict": "accepted",
        "code": None,
        "message": "As you wish.",
        "revision": 0,
        "status": "created",
        "event_ids": [],
        "allowed": [],
        "details": {},
        "dry_run": False,
        "command_digest": command_digest(command),
        "source": {"topic": record.topic, "partition": record.partition, "offset": record.offset},
        "at": instant(record.timestamp),
        **fields,
    }


def accept(record: ConsumerRecord) -> list[Scripted]:
    return [Scripted(record.partition, outcome(record))]


class Dedupe:
    """Accepts a command once, and answers `duplicate` from then on."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def __call__(self, record: ConsumerRecord) -> list[Scripted]:
        command_id = orjson.loads(record.value)["command_id"]
        first = self._seen.setdefault(command_id, record.offset)
        if first == record.offset:
            return accept(record)
        duplicate = outcome(record, verdict="duplicate", original="accepted")
        return [Scripted(record.partition, duplicate)]


@asynccontextmanager
async def processor(
    settings: Settings, script: Callable[[ConsumerRecord], list[Scripted]] = accept
) -> AsyncIterator[None]:
    """Reads `commands` and `control` from now on, and answers each batch in one transaction."""
    topics = Topics(settings.topic_prefix)
    readers = [TopicReader(settings, topic) for topic in (topics.commands, topics.control)]
    for reader in readers:
        await reader.open(range(PARTITIONS), "end")

    async def work(reader: TopicReader) -> None:
        while True:
            records = await reader.poll(wait_s=0.2)
            outcomes = [a for record in records for a in script(record)]
            written = not outcomes
            while not written:
                try:
                    await write(
                        settings,
                        topics.outcomes,
                        [
                            (a.partition, a.outcome["flow_id"], orjson.dumps(a.outcome), [])
                            for a in outcomes
                        ],
                        transactional_id=f"answers-{reader._topic}",
                    )
                    written = True
                # The broker is away; or it starts and knows no broker yet, not even itself, for
                # which aiokafka has an assertion. Answer once more.
                except (AssertionError, KafkaError, TimeoutError):
                    await asyncio.sleep(0.2)

    tasks = [asyncio.create_task(work(reader)) for reader in readers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for reader in readers:
            await reader.close()
    for task in tasks:
        if not task.cancelled():
            task.result()


async def write(
    settings: Settings,
    topic: str,
    records: Iterable[tuple[int, str, bytes, list[tuple[str, bytes]]]],
    *,
    abort: bool = False,
    transactional_id: str | None = None,
) -> None:
    """Write (partition, key, value, headers) in one transaction.

    Whoever tries again gives a `transactional_id`, so that the broker ends what the last try left
    open; otherwise it would hide everything behind it until the transaction timed out.
    """
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        transactional_id=transactional_id or f"{topic}-{uuid4()}",
        request_timeout_ms=int(patience(5_000)),
    )
    back_off_metadata(producer.client)
    try:
        async with asyncio.timeout(patience(10)):
            await producer.start()
            await producer.begin_transaction()
            sent = [
                await producer.send(topic, value, key.encode(), partition, headers=headers)
                for partition, key, value, headers in records
            ]
            await asyncio.gather(*sent)
            await (producer.abort_transaction() if abort else producer.commit_transaction())
    finally:
        await stop_producer(producer, timeout_s=5)


async def without_outcome(client: FlowClient) -> OutcomeTimeout:
    """Send a command that no worker decides, with a timeout of 1 s, or more on a machine that needs
    longer to write it."""
    timeout_s = 1.0
    while True:
        try:
            await client.send(create(), timeout_s=timeout_s)
        except OutcomeTimeout as unanswered:
            if unanswered.receipt is not None:
                return unanswered
        except CommandNotSent:
            pass
        assert timeout_s < patience(60), "a command is written in less"
        timeout_s *= 2


def create(**fields: Any) -> dict[str, Any]:
    return {
        "kind": "create_managed",
        "flow_id": str(uuid4()),
        "issued_by": "session-1",
        "controller_id": "tests",
        "goal": "to be answered",
        "requester_origin": "here",
        **fields,
    }


# --- FlowClient ---------------------------------------------------------------------------


async def test_a_command_is_answered(settings: Settings) -> None:
    flow_id = str(uuid4())
    async with processor(settings), FlowClient(settings) as client:
        outcome = await client.send(create(flow_id=flow_id))
    assert outcome.verdict == "accepted"
    assert outcome.flow_id == flow_id
    assert outcome.source.topic == Topics(settings.topic_prefix).commands
    assert outcome.source.partition == partition_of(flow_id.encode(), PARTITIONS)


async def test_nothing_is_left_running(settings: Settings) -> None:
    before = asyncio.all_tasks()
    async with FlowClient(settings) as client, AuditStream(settings) as stream:
        await without_outcome(client)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 1)
    assert asyncio.all_tasks() == before


async def test_a_thousand_commands_at_once_are_each_answered_by_their_own(
    settings: Settings,
) -> None:
    async with processor(settings), FlowClient(settings) as client:
        commands = [client.prepare(create()) for _ in range(1_000)]
        outcomes = await asyncio.gather(*map(client.send, commands))
    assert [a.command_id for a in outcomes] == [c.command_id for c in commands]
    assert {a.verdict for a in outcomes} == {"accepted"}
    assert len(client._pending) == 0


async def test_more_than_may_be_in_flight_wait_for_their_turn(settings: Settings) -> None:
    async with processor(settings), FlowClient(settings, in_flight_max=7) as client:
        outcomes = await asyncio.gather(*(client.send(create()) for _ in range(50)))
    assert len({a.command_id for a in outcomes}) == 50


async def test_control_has_a_topic_of_its_own(settings: Settings) -> None:
    async with processor(settings), FlowClient(settings) as client:
        outcome = await client.send(
            {"kind": "prune", "flow_id": str(uuid4()), "issued_by": "operator:o"}, control=True
        )
    assert outcome.source.topic == Topics(settings.topic_prefix).control


async def test_a_forwarded_command_is_answered_by_its_copy(settings: Settings) -> None:
    def forward(record: ConsumerRecord) -> list[Scripted]:
        elsewhere = (record.partition + 1) % PARTITIONS
        nothing_yet = {"verdict": "forwarded", "revision": None, "status": None, "allowed": None}
        copy = {"topic": record.topic, "partition": elsewhere, "offset": 12345}
        return [
            Scripted(record.partition, outcome(record, **nothing_yet)),
            Scripted(elsewhere, outcome(record, source=copy)),
        ]

    async with processor(settings, forward), FlowClient(settings) as client:
        outcomes = await asyncio.gather(*(client.send(create()) for _ in range(20)))
    assert {(a.verdict, a.source.offset) for a in outcomes} == {("accepted", 12345)}


async def test_one_command_sent_twice_at_once_is_accepted_once_and_duplicate_once(
    settings: Settings,
) -> None:
    async with processor(settings, Dedupe()), FlowClient(settings) as client:
        command = client.prepare(create())
        outcomes = await asyncio.gather(client.send(command), client.send(command))
        later = await client.send(command)
    assert sorted(a.verdict for a in outcomes) == ["accepted", "duplicate"]
    assert later.verdict == "duplicate"


async def test_two_clients_with_the_same_command_are_both_answered(settings: Settings) -> None:
    async with (
        processor(settings, Dedupe()),
        FlowClient(settings) as one,
        FlowClient(settings) as other,
    ):
        command = one.prepare(create())
        outcomes = await asyncio.gather(one.send(command), other.send(command))
    assert sorted(a.verdict for a in outcomes) == ["accepted", "duplicate"]


async def test_a_quarantined_command_without_ids_is_known_by_its_source(settings: Settings) -> None:
    def quarantine(record: ConsumerRecord) -> list[Scripted]:
        lost = outcome(record, verdict="quarantined", code="internal_error", command_id=None)
        return [Scripted(record.partition, lost)]

    async with processor(settings, quarantine), FlowClient(settings) as client:
        received = await client.send(create())
    assert received.verdict == "quarantined"
    assert received.code == "internal_error"


async def test_without_an_answer_the_command_may_be_sent_again(settings: Settings) -> None:
    async with FlowClient(settings) as client:
        unanswered = await without_outcome(client)
        assert "may still be applied" in str(unanswered)
        assert unanswered.retriable
        async with processor(settings, Dedupe()):
            outcome = await client.send(unanswered.command)
    assert outcome.command_id == unanswered.command.command_id


async def test_publishing_answers_where_the_command_lies_and_reads_no_outcomes(
    settings: Settings,
) -> None:
    reader = TopicReader(settings, Topics(settings.topic_prefix).commands)
    await reader.open(range(PARTITIONS), "end")
    async with FlowClient(settings) as client:
        receipt = await client.publish(create(), traceparent=TRACE)
        assert client._following is None
    found: list[ConsumerRecord] = []
    while not found:
        found = await reader.poll(wait_s=0.5)
    await reader.close()
    (record,) = found
    assert (record.topic, record.partition, record.offset) == (
        receipt.topic,
        receipt.partition,
        receipt.offset,
    )
    assert orjson.loads(record.value)["command_id"] == receipt.command_id
    assert record.key.decode() == receipt.command.flow_id
    assert dict(record.headers) == {TRACEPARENT_HEADER: TRACE.encode()}


async def test_what_the_processor_could_not_read_is_not_sent(settings: Settings) -> None:
    async with FlowClient(settings) as client:
        with pytest.raises(InvalidCommand, match="goal"):
            await client.send(create(goal=""))


class Silence:
    """Takes one command and says nothing."""

    def __init__(self) -> None:
        self.received: asyncio.Future[ConsumerRecord] = asyncio.get_running_loop().create_future()

    def __call__(self, record: ConsumerRecord) -> list[Scripted]:
        self.received.set_result(record)
        return []


async def test_aborted_outcomes_are_not_seen(settings: Settings) -> None:
    async with processor(settings, silence := Silence()), FlowClient(settings) as client:
        sending = asyncio.create_task(client.send(create()))
        record = await silence.received
        topic = Topics(settings.topic_prefix).outcomes
        key = record.key.decode()
        lie = orjson.dumps(outcome(record, verdict="rejected", code="expired"))
        await write(settings, topic, [(record.partition, key, lie, [])], abort=True)
        truth = orjson.dumps(outcome(record))
        await write(settings, topic, [(record.partition, key, truth, [])])
        assert (await sending).verdict == "accepted"


async def test_without_topics_nothing_is_sent(broker: EmbeddedBroker, prefix: str) -> None:
    settings = Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix)
    async with FlowClient(settings) as client:
        with pytest.raises(TopicsWrong, match="topics create"):
            await client.send(create())
        with pytest.raises(TopicsWrong, match="topics create"):
            await client.publish(create())


async def test_without_a_broker_both_say_so() -> None:
    nobody = Settings(bootstrap_servers="127.0.0.1:1")
    before = asyncio.all_tasks()

    async def enter(context: FlowClient | AuditStream) -> None:
        with pytest.raises(BrokerUnreachable, match="No Kafka broker answers"):
            await context.__aenter__()

    await asyncio.gather(enter(FlowClient(nobody)), enter(AuditStream(nobody)))
    assert asyncio.all_tasks() == before


async def test_a_closed_client_tells_those_who_wait(settings: Settings) -> None:
    async with processor(settings, silence := Silence()):
        async with FlowClient(settings) as client:
            waiting = asyncio.create_task(client.send(create()))
            await silence.received
        with pytest.raises(OutcomeTimeout, match="closed"):
            await waiting
    with pytest.raises(CommandNotSent, match="closed"):
        await client.send(create())


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "gently",
    [pytest.param(True, id="restarted", marks=pytest.mark.soak), pytest.param(False, id="killed")],
)
async def test_a_broker_that_goes_and_comes_back_in_mid_flight_loses_no_answer_and_no_event(
    own_broker: EmbeddedBroker, own_settings: Settings, gently: bool
) -> None:
    async with (
        processor(own_settings, Dedupe()),
        FlowClient(own_settings) as client,
        AuditStream(own_settings) as stream,
    ):
        assert (await client.send(create())).verdict == "accepted"
        await write_audit(own_settings, event(1))
        assert (await anext(stream)).id == 1
        sent: list[asyncio.Task[Outcome]] = []

        async def keep_sending() -> None:
            while True:
                sent.append(asyncio.create_task(client.send(create(), timeout_s=patience(170))))
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(keep_sending())
        await asyncio.sleep(1)
        await (own_broker.stop() if gently else own_broker.kill())
        await asyncio.sleep(1)
        await own_broker.start()
        await asyncio.sleep(1)
        sending.cancel()
        outcomes = await asyncio.gather(*sent)
        await write_audit(own_settings, event(2))
        async with asyncio.timeout(patience(60)):
            assert (await anext(stream)).id == 2
    assert {a.verdict for a in outcomes} <= {"accepted", "duplicate"}
    assert len({a.command_id for a in outcomes}) == len(sent)


async def test_a_client_whose_broker_is_gone_can_be_closed(
    own_broker: EmbeddedBroker, own_settings: Settings
) -> None:
    """The last test of this broker."""
    before = asyncio.all_tasks()
    async with FlowClient(own_settings) as client:
        await without_outcome(client)
        await own_broker.kill()
        with pytest.raises(OutcomeTimeout, match="may still be applied") as unheard:
            await client.send(create(), timeout_s=1)
        began = time.monotonic()
    assert time.monotonic() - began < patience(20)
    assert asyncio.all_tasks() == before
    assert unheard.value.receipt is None


# --- AuditStream ---------------------------------------------------------------------------


def event(number: int, partition: int = 0, flow_id: str | None = None) -> tuple[int, str, bytes]:
    flow_id = flow_id or str(uuid4())
    return (
        partition,
        flow_id,
        orjson.dumps(
            {
                "id": partition * EVENTS_PER_PARTITION + number,
                "flow_id": flow_id,
                "kind": "started",
                "payload_json": {},
                "at": "2026-11-22T21:02:08.123Z",
                "revision": 1,
                "status": "running",
                "command_id": str(uuid4()),
                "actor": "session-1",
                "source": {"topic": "t.commands", "partition": partition, "offset": number},
                "schema_version": 1,
            }
        ),
    )


async def write_audit(
    settings: Settings,
    *events: tuple[int, str, bytes],
    abort: bool = False,
    headers: list[tuple[str, bytes]] | None = None,
) -> None:
    """Return once it can be read."""
    topic = Topics(settings.topic_prefix).audit
    await write(settings, topic, [(*e, headers or []) for e in events], abort=abort)
    await until_ended(settings, topic, [partition for partition, *_ in events])


async def numbers(stream: AuditStream) -> list[tuple[int, int]]:
    return [divmod(found.id, EVENTS_PER_PARTITION) async for found in stream]


async def test_the_audit_is_read_from_the_beginning_to_its_end(settings: Settings) -> None:
    await write_audit(settings, *(event(n, p) for n in range(1, 51) for p in range(PARTITIONS)))
    async with AuditStream(settings, follow=False) as stream:
        found = await numbers(stream)
    assert sorted(found) == [(p, n) for p in range(PARTITIONS) for n in range(1, 51)]
    assert stream.position == dict.fromkeys(range(PARTITIONS), 51)  # 50 events and a marker


async def test_an_empty_audit_ends_at_once(settings: Settings) -> None:
    async with AuditStream(settings, follow=False) as stream:
        assert await numbers(stream) == []
    assert stream.position == dict.fromkeys(range(PARTITIONS), 0)


async def test_a_stored_position_goes_on_behind_the_event_in_hand(settings: Settings) -> None:
    await write_audit(settings, *(event(n) for n in range(1, 11)))
    async with AuditStream(settings, follow=False) as stream:
        async for found in stream:
            if found.id == 4:
                break
        saved = stream.position
    async with AuditStream(settings, start=saved, follow=False) as stream:
        assert await numbers(stream) == [(0, n) for n in range(5, 11)]


async def test_the_audit_is_read_since_a_time(settings: Settings) -> None:
    await write_audit(settings, event(1), event(2))
    await asyncio.sleep(0.05)
    since = datetime.now(UTC)
    await asyncio.sleep(0.05)
    async with AuditStream(settings, start=since, follow=False) as stream:
        assert await numbers(stream) == []
    await write_audit(settings, event(3), event(4))
    async with AuditStream(settings, start=since, follow=False) as stream:
        assert await numbers(stream) == [(0, 3), (0, 4)]


def test_a_time_without_a_zone_is_no_time() -> None:
    with pytest.raises(ValueError, match="time zone"):
        AuditStream(Settings(), start=datetime(2026, 11, 22))


async def test_following_goes_on_with_what_is_written_later(settings: Settings) -> None:
    await write_audit(settings, event(1))
    async with AuditStream(settings, start="end") as stream:
        await write_audit(settings, event(2), event(3))
        async with asyncio.timeout(patience(30)):
            assert [(await anext(stream)).id, (await anext(stream)).id] == [2, 3]


async def test_what_is_written_after_the_opening_is_not_in_a_replay(settings: Settings) -> None:
    await write_audit(settings, event(1))
    async with AuditStream(settings, follow=False) as stream:
        await write_audit(settings, event(2))
        assert await numbers(stream) == [(0, 1)]
        assert stream.position[0] == 2
        assert await numbers(stream) == []


async def test_aborted_events_are_not_seen_and_leave_no_gap(settings: Settings) -> None:
    await write_audit(settings, event(1))
    await write_audit(settings, event(2), event(3), abort=True)
    await write_audit(settings, event(2))
    await write_audit(settings, event(3), abort=True)
    async with AuditStream(settings, follow=False) as stream:
        assert await numbers(stream) == [(0, 1), (0, 2)]
    assert stream.position[0] == 9


@pytest.mark.parametrize("flow_id", [None, "8f14e45f-ceea-467f-9575-0cb0a9b1c8a1"])
async def test_a_missing_event_stops_the_stream(settings: Settings, flow_id: str | None) -> None:
    partition = partition_of(flow_id.encode(), PARTITIONS) if flow_id else 1
    await write_audit(
        settings,
        event(1, partition, flow_id),
        event(2, partition),
        event(4, partition),
        event(5, partition, flow_id),
    )
    async with AuditStream(settings, follow=False, flow_id=flow_id) as stream:
        with pytest.raises(AuditGap, match="must come next"):
            await numbers(stream)
        assert stream.position[partition] == 2
        with pytest.raises(AuditGap):
            await anext(stream)


async def test_a_repeated_event_stops_the_stream(settings: Settings) -> None:
    await write_audit(settings, event(1), event(2), event(2))
    async with AuditStream(settings, follow=False) as stream:
        with pytest.raises(AuditGap):
            await numbers(stream)


async def test_a_position_that_the_topic_never_had_is_a_gap(settings: Settings) -> None:
    await write_audit(settings, event(1))
    with pytest.raises(AuditGap, match="ends before"):
        async with AuditStream(settings, start={0: 1000}):
            pass


async def test_a_record_that_is_no_event_stops_the_stream(settings: Settings) -> None:
    await write_audit(settings, event(1), (0, "x", b"{}"))
    async with AuditStream(settings, follow=False) as stream:
        with pytest.raises(UnreadableEvent, match="offset 1"):
            await numbers(stream)


async def test_one_flow_alone(settings: Settings) -> None:
    flow_id = str(uuid4())
    partition = partition_of(flow_id.encode(), PARTITIONS)
    await write_audit(
        settings,
        *(event(n, partition, flow_id if n % 2 else None) for n in range(1, 7)),
        event(1, (partition + 1) % PARTITIONS),
    )
    async with AuditStream(settings, flow_id=flow_id, follow=False) as stream:
        assert await numbers(stream) == [(partition, n) for n in (1, 3, 5)]
        assert stream.position == {partition: 7}


async def test_a_record_shows_its_chain_and_its_trace(settings: Settings) -> None:
    headers = [(CHAIN_HEADER, bytes(range(16))), (TRACEPARENT_HEADER, TRACE.encode())]
    await write_audit(settings, e := event(1, 2), headers=headers)
    async with AuditStream(settings, follow=False) as stream:
        (record,) = [record async for record in stream.records()]
    assert record.event.id == 2 * EVENTS_PER_PARTITION + 1
    assert (record.partition, record.offset, record.value) == (2, 0, e[2])
    assert (record.chain, record.traceparent) == (bytes(range(16)), TRACE)
