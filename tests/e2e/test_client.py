"""FlowClient and AuditStream with the real worker."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiokafka import AIOKafkaProducer

from processor.client import AuditStream, FlowClient
from processor.client.preparation import prepare
from processor.contract import FlowEvent, Topics
from processor.contract.commands import CreateManaged, Finish, StartRunning
from processor.contract.events import CHAIN_START
from processor.embedded.broker import EmbeddedBroker
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from tests.support.transactions import until_ended
from tests.support.worker import running_worker

ME = "session-1"


@pytest.fixture
def settings(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> Settings:
    return Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=2,
        state_dir=tmp_path,
        http=None,
    )


def create(flow_id: str, **fields: Any) -> CreateManaged:
    return CreateManaged(
        command_id=str(uuid4()),
        flow_id=flow_id,
        issued_by=ME,
        controller_id="tests",
        goal="to be done",
        requester_origin="here",
        **fields,
    )


def start(flow_id: str) -> StartRunning:
    return StartRunning(command_id=str(uuid4()), flow_id=flow_id, issued_by=ME)


async def recorded(settings: Settings, flow_id: str | None = None) -> list[FlowEvent]:
    """The audit, or a flow's, once the transactions that outcomes were read from have ended on it:
    each partition gets the end of its own."""
    await until_ended(settings, Topics(settings.topic_prefix).audit, range(settings.partitions))
    async with AuditStream(settings, flow_id=flow_id, follow=False) as stream:
        return [event async for event in stream]


async def test_a_flow_from_its_creation_to_its_end(settings: Settings) -> None:
    flow_id = str(uuid4())
    async with running_worker(settings), FlowClient(settings) as client:
        created = await client.send(create(flow_id))
        started = await client.send(start(flow_id))
        finished = await client.send(
            Finish(command_id=str(uuid4()), flow_id=flow_id, issued_by=ME, final_state={"n": 1})
        )
        late = await client.send(start(flow_id))
        events = await recorded(settings, flow_id)
    assert [o.verdict for o in (created, started, finished, late)] == [
        *["accepted"] * 3,
        "rejected",
    ]
    assert late.code == "already_terminal"
    assert [e.kind for e in events] == ["created", "started", "finished"]
    assert [e.id for e in events] == created.event_ids + started.event_ids + finished.event_ids
    assert (events[-1].status, events[-1].revision) == (finished.status, finished.revision)


async def test_many_flows_at_once(settings: Settings) -> None:
    flow_ids = [str(uuid4()) for _ in range(1_000)]
    async with running_worker(settings), FlowClient(settings) as client:
        outcomes = await asyncio.gather(*(client.send(create(flow_id)) for flow_id in flow_ids))
        seen = [event.flow_id for event in await recorded(settings)]
    assert [a.flow_id for a in outcomes] == flow_ids
    assert Counter(a.verdict for a in outcomes) == {"accepted": 1_000}
    assert sorted(seen) == sorted(flow_ids)


async def test_the_same_command_again_is_a_duplicate_and_nothing_happens(
    settings: Settings,
) -> None:
    async with running_worker(settings), FlowClient(settings) as client:
        command = client.prepare(create(str(uuid4())))
        outcomes = await asyncio.gather(*(client.send(command) for _ in range(3)))
        assert len(await recorded(settings)) == 1
    assert Counter(a.verdict for a in outcomes) == {"accepted": 1, "duplicate": 2}
    assert {a.original for a in outcomes if a.verdict == "duplicate"} == {"accepted"}
    assert len({tuple(a.event_ids) for a in outcomes}) == 1


async def test_an_expired_command_is_refused(settings: Settings) -> None:
    async with running_worker(settings), FlowClient(settings) as client:
        outcome = await client.send(create(str(uuid4()), expires_at="2020-01-01T00:00:00Z"))
    assert (outcome.verdict, outcome.code) == ("rejected", "expired")


async def test_a_dry_run_changes_nothing(settings: Settings) -> None:
    flow_id = str(uuid4())
    async with running_worker(settings), FlowClient(settings) as client:
        tried = await client.send(create(flow_id, dry_run=True))
        missing = await client.send(start(flow_id))
    assert (tried.verdict, tried.dry_run, tried.revision) == ("accepted", True, 0)
    assert missing.code == "not_found"


async def test_a_command_on_the_wrong_partition_is_answered_all_the_same(
    settings: Settings,
) -> None:
    """The client itself never puts one there; another's copy of the same command may lie there."""
    flow_id = str(uuid4())
    ready = prepare(create(flow_id), now_ms=0, expires_after_ms=None)
    commands = Topics(settings.topic_prefix).commands
    wrong = 1 - partition_of(ready.key, settings.partitions)
    async with running_worker(settings), FlowClient(settings, expire=False) as client:
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            await producer.send_and_wait(commands, ready.value, ready.key, wrong)
        outcome = await client.send(ready.command)
    assert "accepted" in (outcome.verdict, outcome.original)


async def test_the_audit_shows_chain_and_trace(settings: Settings) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    audit = Topics(settings.topic_prefix).audit
    async with running_worker(settings), FlowClient(settings) as client:
        await client.send(create(str(uuid4())), traceparent=trace)
        await until_ended(settings, audit, range(settings.partitions))
        async with AuditStream(settings, follow=False) as stream:
            (record,) = [record async for record in stream.records()]
    assert record.traceparent == trace
    assert record.chain is not None
    assert len(record.chain) == len(CHAIN_START)
