"""The outbox's relay between a real PostgreSQL and the engine in memory: rows, order, outcomes, and
what a crash leaves at each step. tests/faults/test_outbox.py has a real Kafka."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from processor.adapters.postgres.errors import DatabaseRefused, DatabaseUnavailable
from processor.client.connection import connect
from processor.client.errors import CommandNotSent
from processor.contract.values import instant
from processor.outbox.database import OutboxRefused, statements
from processor.outbox.relay import OutboxRelay
from processor.outbox.rows import time_of
from processor.settings import Settings
from processor.testing.fake import TaskflowFake
from processor.testing.fake.connection import FakeProducer
from tests.support.machine import patience
from tests.support.postgres import database, needs_postgres

pytestmark = needs_postgres
pytest_plugins = ("processor.testing.plugin",)

CREATE = {
    "kind": "create_managed",
    "issued_by": "shop",
    "controller_id": "orders",
    "goal": "Deliver an order",
    "requester_origin": "web",
}
START = {"kind": "start_running", "issued_by": "shop"}


class Outbox:
    """The producer's side: its table, in a schema of this test's own."""

    def __init__(self, db: Any) -> None:
        self.db = db

    async def insert(self, flow_id: str, *commands: Any, **columns: Any) -> list[int]:
        """Rows of one transaction; their ids."""
        names, values = ["flow_id", "command", *columns], list(columns.values())
        places = ", ".join(f"${n + 1}" for n in range(len(names)))
        async with self.db.transaction():
            return [
                await self.db.fetchval(
                    f"INSERT INTO taskflow_outbox ({', '.join(names)}) VALUES ({places}) "
                    "RETURNING id",
                    UUID(flow_id),
                    json.dumps(command),
                    *values,
                )
                for command in commands
            ]

    async def row(self, row_id: int) -> dict[str, Any]:
        return dict(await self.db.fetchrow("SELECT * FROM taskflow_outbox WHERE id = $1", row_id))

    async def verdicts(self) -> list[tuple[str | None, str | None]]:
        """Verdict and code of each row, in the order of their ids."""
        rows = await self.db.fetch("SELECT verdict, code FROM taskflow_outbox ORDER BY id")
        return [tuple(row) for row in rows]


async def until(holds: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(patience(30)):
        while True:
            found = holds()
            if found if isinstance(found, bool) else await found:
                return
            await asyncio.sleep(0.01)


@pytest.fixture
def settings(taskflow_fake: TaskflowFake, prefix: str) -> Settings:
    return taskflow_fake.settings.model_copy(update={"outbox_schema": prefix})


@pytest.fixture
async def outbox(postgres: str, prefix: str) -> AsyncIterator[Outbox]:
    """The table, made by its DDL as a producer's migration makes it."""
    async with database(postgres, prefix) as db:
        await db.execute(f"CREATE SCHEMA {prefix}")
        await db.execute(statements())
        yield Outbox(db)


async def relay(settings: Settings, dsn: str) -> OutboxRelay:
    """Relay until all rows have outcomes."""
    one = OutboxRelay(settings, dsn, follow=False)
    async with asyncio.timeout(patience(30)):
        await one.run(asyncio.Event())
    return one


@asynccontextmanager
async def relaying(settings: Settings, dsn: str) -> AsyncIterator[OutboxRelay]:
    """A relay that goes on until the block ends."""
    stop, one = asyncio.Event(), OutboxRelay(settings, dsn)
    running = asyncio.create_task(one.run(stop))
    try:
        await until(lambda: one.ready or running.done())
        yield one
    finally:
        stop.set()
        await running


# Rows and outcomes


async def test_rows_of_a_flow_are_applied_in_their_order_and_get_their_outcomes(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    flow_id = str(uuid4())
    traced = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    created, started, again = await outbox.insert(flow_id, CREATE, START, START, traceparent=traced)
    await relay(settings, postgres)
    assert await outbox.verdicts() == [
        ("accepted", None),
        ("accepted", None),
        ("rejected", "illegal_transition"),
    ]
    row = await outbox.row(started)
    assert (row["revision"], row["status"], row["message"]) == (
        1,
        "running",
        "The flow is running.",
    )
    assert "finish" in row["allowed"]
    (event,) = (e for e in taskflow_fake.events(flow_id) if e.kind == "started")
    assert row["event_ids"] == [event.id]
    assert event.command_id == str(row["command_id"])
    assert json.loads((await outbox.row(again))["details"]) == {"from": "running", "to": "running"}
    assert (await outbox.row(created))["status"] == "created"
    kafka = taskflow_fake.kafka
    sent = kafka.log(kafka.topics.commands, 0)
    assert {r.headers for r in sent.committed(0, sent.end)} == {(("traceparent", traced.encode()),)}


async def test_rows_of_many_flows_are_relayed_page_by_page(
    postgres: str,
    outbox: Outbox,
    settings: Settings,
    taskflow_fake: TaskflowFake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each page and the room under way are smaller than the flows, and each flow has three rows."""
    monkeypatch.setattr("processor.outbox.exchange.FLOWS_AT_ONCE", 3)
    monkeypatch.setattr("processor.outbox.exchange.IN_FLIGHT_MAX", 5)
    flows = [str(uuid4()) for _ in range(14)]
    edges = ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]
    for flow_id in (*flows, *edges):
        await outbox.insert(flow_id, CREATE, START, {"kind": "finish", "issued_by": "shop"})
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("accepted", None)] * 48
    for flow_id in (*flows, *edges):
        kinds = [str(event.kind) for event in taskflow_fake.events(flow_id)]
        assert kinds == ["created", "started", "finished"]


async def test_once_ends_only_when_all_rows_have_outcomes(
    postgres: str, outbox: Outbox, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last page of flows may be empty while rows of others are under way."""
    monkeypatch.setattr("processor.outbox.exchange.FLOWS_AT_ONCE", 2)
    send = FakeProducer.send

    async def slow(self: FakeProducer, *record: Any, **more: Any) -> Any:
        await asyncio.sleep(0.2)
        return await send(self, *record, **more)

    monkeypatch.setattr(FakeProducer, "send", slow)
    for _ in range(4):
        await outbox.insert(str(uuid4()), CREATE)
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("accepted", None)] * 4


async def test_what_is_no_command_is_refused_in_its_row_and_holds_up_no_other(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    flow_id = str(uuid4())
    ids = await outbox.insert(flow_id, [1], {"kind": "no such"}, CREATE, {**START, "flow_id": "x"})
    await relay(settings, postgres)
    assert await outbox.verdicts() == [
        ("refused", "malformed"),
        ("refused", "invalid_command"),
        ("accepted", None),
        ("refused", "invalid_command"),
    ]
    refused = await outbox.row(ids[1])
    assert json.loads(refused["details"])["errors"][0]["field"] == "kind"
    assert refused["sent_at"] is None
    assert len(taskflow_fake.outcomes()) == 1
    assert taskflow_fake.dead_letters() == []


async def test_a_command_has_its_ids_in_itself_when_it_is_inserted(outbox: Outbox) -> None:
    """As Debezium sends it."""
    flow_id, own = str(uuid4()), uuid4()
    first, second = (
        (await outbox.insert(flow_id, START))[0],
        (await outbox.insert(flow_id, {**START, "flow_id": flow_id}, command_id=own))[0],
    )
    row = await outbox.row(first)
    assert json.loads(row["command"]) == {
        **START,
        "flow_id": flow_id,
        "command_id": str(row["command_id"]),
    }
    assert json.loads((await outbox.row(second))["command"])["command_id"] == str(own)


async def test_a_commit_wakes_the_relay(
    postgres: str,
    outbox: Outbox,
    settings: Settings,
    taskflow_fake: TaskflowFake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("processor.outbox.exchange.POLL_S", 3600.0)
    async with relaying(settings, postgres):
        await outbox.insert(str(uuid4()), CREATE)
        await until(lambda: len(taskflow_fake.outcomes()) == 1)


async def test_without_the_trigger_it_looks_by_itself(
    postgres: str, outbox: Outbox, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.outbox.exchange.POLL_S", 0.01)
    await outbox.db.execute("DROP TRIGGER taskflow_outbox_wake ON taskflow_outbox")
    async with relaying(settings, postgres) as one:
        await outbox.insert(str(uuid4()), CREATE)
        await until(lambda: one.metrics.outcomes.labels("accepted")._value.get() == 1)


async def test_rows_are_deleted_when_their_outcomes_are_old(
    postgres: str, outbox: Outbox, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.outbox.exchange.DELETED_AT_ONCE", 2)
    monkeypatch.setattr("processor.outbox.database.DELETED_AT_ONCE", 2)
    for _ in range(5):
        await outbox.insert(str(uuid4()), CREATE)
    await relay(settings, postgres)
    await outbox.db.execute(
        "UPDATE taskflow_outbox SET outcome_at = now() - interval '8 days' "
        "WHERE id <> (SELECT max(id) FROM taskflow_outbox)"
    )
    async with relaying(settings, postgres) as one:
        await until(lambda: one.metrics.deleted._value.get() == 4)
    assert await outbox.verdicts() == [("accepted", None)]


# Sent again


async def as_sent(
    outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake, row_id: int, **changed: Any
) -> None:
    """Leave the row as a relay leaves it that was killed after it was marked."""
    now = taskflow_fake.now
    marked = {
        "topic": f"{settings.topic_prefix}.commands",
        "sent_at": now,
        "expires_at": now + timedelta(minutes=30),
        "outcomes_offset": 0,
        **changed,
    }
    names = ", ".join(f"{name} = ${n + 2}" for n, name in enumerate(marked))
    await outbox.db.execute(
        f"UPDATE taskflow_outbox SET {names} WHERE id = $1", row_id, *marked.values()
    )


async def publish(outbox: Outbox, settings: Settings, row_id: int) -> None:
    """Write the row's command, as that relay may have done."""
    row = await outbox.row(row_id)
    expires_ms = round(row["expires_at"].timestamp() * 1000)
    command = {**json.loads(row["command"]), "expires_at": instant(expires_ms)}
    producer = connect(settings).producer()
    await producer.start()
    await producer.send(
        f"{settings.topic_prefix}.commands",
        str(row["flow_id"]).encode(),
        json.dumps(command).encode(),
        (),
        handed_over=lambda: None,
    )
    await producer.close()


async def test_a_row_that_was_marked_and_not_sent_is_sent(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    (row_id,) = await outbox.insert(str(uuid4()), CREATE)
    await as_sent(outbox, settings, taskflow_fake, row_id)
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("accepted", None)]


async def test_an_outcome_that_came_meanwhile_is_read_and_nothing_is_sent(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    """However long the relay was away."""
    (row_id,) = await outbox.insert(str(uuid4()), CREATE)
    await as_sent(outbox, settings, taskflow_fake, row_id)
    await publish(outbox, settings, row_id)
    await taskflow_fake.settle()
    await taskflow_fake.advance(timedelta(days=3))
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("accepted", None)]
    assert len(taskflow_fake.outcomes()) == 1


async def test_a_second_copy_within_the_window_is_a_duplicate(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    """The first one's outcome lies before what the relay reads, as after a rewind."""
    flow_id = str(uuid4())
    (row_id,) = await outbox.insert(flow_id, CREATE)
    await as_sent(outbox, settings, taskflow_fake, row_id)
    await publish(outbox, settings, row_id)
    await taskflow_fake.settle()
    log = taskflow_fake.kafka.log(f"{settings.topic_prefix}.outcomes", 0)
    await outbox.db.execute("UPDATE taskflow_outbox SET outcomes_offset = $1", log.end)
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("accepted", None)]
    assert [o.verdict.value for o in taskflow_fake.outcomes()] == ["accepted", "duplicate"]


async def test_a_copy_past_the_window_is_not_applied_and_the_first_outcome_counts(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    """As when no worker ran for hours: the first outcome is not there when the second copy goes."""
    flow_id = str(uuid4())
    update = {"kind": "update_state", "issued_by": "shop", "patch": {"n": 1}}
    await outbox.insert(flow_id, CREATE)
    await relay(settings, postgres)
    (row_id,) = await outbox.insert(flow_id, update)
    end = taskflow_fake.kafka.log(f"{settings.topic_prefix}.outcomes", 0).end
    await as_sent(outbox, settings, taskflow_fake, row_id, outcomes_offset=end)
    await publish(outbox, settings, row_id)
    await taskflow_fake.advance(timedelta(hours=3))
    await publish(outbox, settings, row_id)
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("accepted", None), ("accepted", None)]
    codes = [outcome.code and outcome.code.value for outcome in taskflow_fake.outcomes()]
    assert codes == [None, None, "expired"]
    flow = taskflow_fake.flow(flow_id)
    assert flow is not None
    assert flow.revision == 1


async def test_a_row_that_came_to_kafka_too_late_is_sent_anew(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    """Kafka was away for longer than half a window: no copy was in time, nothing was applied."""
    flow_id = str(uuid4())
    created, _ = await outbox.insert(flow_id, CREATE, START)
    before = (await outbox.row(created))["command_id"]
    await as_sent(outbox, settings, taskflow_fake, created)
    await taskflow_fake.advance(timedelta(days=2))
    one = await relay(settings, postgres)
    assert await outbox.verdicts() == [("accepted", None), ("accepted", None)]
    row = await outbox.row(created)
    assert row["command_id"] != before
    assert json.loads(row["command"])["command_id"] == str(row["command_id"])
    assert one.metrics.renewed._value.get() == 1
    codes = [outcome.code and outcome.code.value for outcome in taskflow_fake.outcomes()]
    assert codes == ["expired", None, None]
    assert [str(event.kind) for event in taskflow_fake.events(flow_id)] == ["created", "started"]


async def test_the_producers_own_bound_is_the_last_word(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    past = instant(round(taskflow_fake.now.timestamp() * 1000) - 1000)
    await outbox.insert(str(uuid4()), {**CREATE, "expires_at": past})
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("rejected", "expired")]


async def test_what_was_sent_longer_ago_than_outcomes_are_kept_is_left_to_people(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    (row_id,) = await outbox.insert(str(uuid4()), CREATE)
    ago = taskflow_fake.now - timedelta(days=40)
    await as_sent(outbox, settings, taskflow_fake, row_id, sent_at=ago, expires_at=ago)
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("unknown", "expired")]


async def test_a_relay_that_has_ended_shows_no_rows(
    postgres: str, outbox: Outbox, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may stand by from now on, and an alert looks at the age of the oldest row."""

    async def pend(*_: Any, **__: Any) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeProducer, "send", pend)
    await outbox.insert(str(uuid4()), CREATE)
    async with relaying(settings, postgres) as one:
        await until(lambda: one.metrics.pending._value.get() == 1)
    gauges = (one.metrics.pending, one.metrics.oldest_seconds, one.metrics.in_flight)
    assert [gauge._value.get() for gauge in gauges] == [0, 0, 0]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[bytes]]:
    """Make Kafka refuse the next commands, as after a change of the topic's limits; returns the
    list to which the refused ones are added."""

    def refuse(times: int) -> list[bytes]:
        values: list[bytes] = []
        send = FakeProducer.send

        async def sending(self: FakeProducer, *record: Any, **more: Any) -> Any:
            if len(values) == times:
                return await send(self, *record, **more)
            values.append(record[2])
            raise CommandNotSent("Kafka refused the command: it is too large.")

        monkeypatch.setattr(FakeProducer, "send", sending)
        return values

    return refuse


async def test_a_row_whose_first_copy_kafka_refuses_is_refused(
    postgres: str, outbox: Outbox, settings: Settings, refused: Callable[[int], list[bytes]]
) -> None:
    await outbox.insert(str(uuid4()), CREATE)
    copies = refused(1)
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("refused", None)]
    assert len(copies) == 1


async def test_a_row_whose_second_copy_kafka_refuses_gets_the_outcome_of_the_first(
    postgres: str,
    outbox: Outbox,
    settings: Settings,
    taskflow_fake: TaskflowFake,
    refused: Callable[[int], list[bytes]],
) -> None:
    """The first copy is decided after the second was refused."""
    (row_id,) = await outbox.insert(str(uuid4()), CREATE)
    await as_sent(outbox, settings, taskflow_fake, row_id)
    copies = refused(1)
    async with relaying(settings, postgres) as one:
        await until(lambda: len(copies) == 1)
        await publish(outbox, settings, row_id)
        await until(lambda: one.metrics.outcomes.labels("accepted")._value.get() == 1)
    assert await outbox.verdicts() == [("accepted", None)]


async def test_a_row_whose_copies_kafka_refuses_twice_is_unknown_and_the_next_one_follows(
    postgres: str,
    outbox: Outbox,
    settings: Settings,
    taskflow_fake: TaskflowFake,
    refused: Callable[[int], list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("processor.outbox.exchange.POLL_S", 0.01)
    first, _ = await outbox.insert(str(uuid4()), CREATE, START)
    await as_sent(outbox, settings, taskflow_fake, first)
    copies = refused(2)
    async with relaying(settings, postgres) as one:
        await until(lambda: len(copies) == 1)
        assert await outbox.verdicts() == [(None, None)] * 2
        taskflow_fake.kafka.now_ms += 31 * 60_000
        await until(lambda: one.metrics.outcomes.labels("rejected")._value.get() == 1)
    assert copies[0] == copies[1]
    assert await outbox.verdicts() == [("unknown", None), ("rejected", "not_found")]
    assert "An earlier copy was sent" in (await outbox.row(first))["message"]


async def test_a_row_that_was_edited_beyond_reading_after_it_was_sent_is_unknown(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    (row_id,) = await outbox.insert(str(uuid4()), CREATE)
    await as_sent(outbox, settings, taskflow_fake, row_id)
    await outbox.db.execute("UPDATE taskflow_outbox SET command = '[]'")
    await relay(settings, postgres)
    assert await outbox.verdicts() == [("unknown", "malformed")]


async def test_a_row_without_an_outcome_is_sent_again_after_half_a_window(
    postgres: str,
    outbox: Outbox,
    settings: Settings,
    taskflow_fake: TaskflowFake,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As when Kafka has lost a record that it had acknowledged; what comes then is too late."""
    monkeypatch.setattr("processor.outbox.exchange.POLL_S", 0.01)
    lost, send, kafka = asyncio.Event(), FakeProducer.send, taskflow_fake.kafka

    async def lose(self: FakeProducer, *record: Any, **more: Any) -> Any:
        if lost.is_set():
            return await send(self, *record, **more)
        return lost.set()

    monkeypatch.setattr(FakeProducer, "send", lose)
    async with relaying(settings, postgres) as one:
        await outbox.insert(str(uuid4()), CREATE)
        await lost.wait()
        kafka.now_ms += 29 * 60_000
        await asyncio.sleep(0.1)
        assert taskflow_fake.outcomes() == []
        kafka.now_ms += 2 * 60_000
        await until(lambda: one.metrics.outcomes.labels("accepted")._value.get() == 1)
    assert one.metrics.renewed._value.get() == 1


# One at a time, and what goes away


async def test_a_second_relay_waits_until_the_first_ends(
    postgres: str, outbox: Outbox, settings: Settings
) -> None:
    first_stop, second_stop = asyncio.Event(), asyncio.Event()
    first, second = OutboxRelay(settings, postgres), OutboxRelay(settings, postgres)
    one = asyncio.create_task(first.run(first_stop))
    await until(lambda: first.ready)
    two = asyncio.create_task(second.run(second_stop))
    await until(lambda: second.state == "waiting for another relay")
    assert not second.ready
    first_stop.set()
    await one
    await until(lambda: second.ready)
    await outbox.insert(str(uuid4()), CREATE)
    await until(lambda: second.metrics.outcomes.labels("accepted")._value.get() == 1)
    second_stop.set()
    await two


async def test_it_connects_again_when_the_database_was_away(
    postgres: str, outbox: Outbox, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.adapters.postgres.service.BACKOFF_MIN_S", 0.01)
    monkeypatch.setattr("processor.outbox.exchange.POLL_S", 0.01)
    async with relaying(settings, postgres) as one:
        async with database(postgres) as db:
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'taskflow outbox'"
            )
        await until(lambda: one.metrics.failures._value.get() == 1)
        await until(lambda: one.ready)
        await outbox.insert(str(uuid4()), CREATE)
        await until(lambda: one.metrics.outcomes.labels("accepted")._value.get() == 1)


async def test_who_does_not_answer_at_the_start_is_said(settings: Settings) -> None:
    with pytest.raises(DatabaseUnavailable):
        await relay(settings, "postgresql://user@127.0.0.1:1/db")


async def test_what_is_no_address_is_refused_without_the_password(settings: Settings) -> None:
    with pytest.raises(DatabaseRefused) as refusal:
        await relay(settings, "mysql://user:secret@host/db")
    assert "secret" not in str(refusal.value)


async def test_a_table_of_another_format_is_refused(
    postgres: str, outbox: Outbox, settings: Settings
) -> None:
    await outbox.db.execute("COMMENT ON TABLE taskflow_outbox IS 'taskflow outbox, format 9'")
    with pytest.raises(OutboxRefused, match="format 9"):
        await relay(settings, postgres)


async def test_rows_under_way_to_another_prefix_are_refused(
    postgres: str, outbox: Outbox, settings: Settings, taskflow_fake: TaskflowFake
) -> None:
    (row_id,) = await outbox.insert(str(uuid4()), CREATE)
    await as_sent(outbox, settings, taskflow_fake, row_id, topic="other.commands")
    with pytest.raises(OutboxRefused, match=r"sent to other\.commands"):
        await relay(settings, postgres)


async def test_a_missing_table_is_made(postgres: str, prefix: str, settings: Settings) -> None:
    await relay(settings, postgres)
    async with database(postgres, prefix) as db:
        await Outbox(db).insert(str(uuid4()), CREATE)
        await relay(settings, postgres)
        assert await Outbox(db).verdicts() == [("accepted", None)]


# The documentation

PAGE = (Path(__file__).parents[2] / "processor/docs/outbox.md").read_text("utf-8")


async def test_the_statements_of_the_page_run(outbox: Outbox) -> None:
    blocks = re.findall(r"^```sql\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    await outbox.db.execute("CREATE TABLE orders (id text PRIMARY KEY, flow_id uuid)")
    for block in blocks:
        await outbox.db.execute(block)
    assert await outbox.db.fetchval("SELECT count(*) FROM taskflow_outbox") == 2


async def test_the_page_has_every_column_with_its_type(outbox: Outbox, prefix: str) -> None:
    columns = await outbox.db.fetch(
        "SELECT column_name, CASE data_type WHEN 'timestamp with time zone' THEN 'timestamptz' "
        "WHEN 'ARRAY' THEN ltrim(udt_name, '_') || '[]' ELSE data_type END "
        "FROM information_schema.columns WHERE table_schema = $1 AND table_name = "
        "'taskflow_outbox'",
        prefix,
    )
    found = {(name, kind.replace("int8", "bigint")) for name, kind in columns}
    documented = {
        (name, kind)
        for names, kind in re.findall(r"^\| (`.+?`) \| ([\w\[\]]+) \|", PAGE, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", names)
    }
    assert documented == found


def test_times_are_kept_to_the_millisecond() -> None:
    assert time_of(1_795_000_000_123) == datetime.fromtimestamp(1_795_000_000, UTC) + timedelta(
        milliseconds=123
    )
