"""The sink against a real PostgreSQL, fed from recorded topics: rows, positions, refusals."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from processor.adapters.postgres.errors import DatabaseRefused, DatabaseUnavailable
from processor.settings import Settings
from processor.sink.rows import SinkRefused
from processor.sink.sink import PostgresSink
from tests.support.builders import document, manual
from tests.support.json_values import json_of
from tests.support.machine import patience
from tests.support.postgres import database, needs_postgres
from tests.support.random_histories import random_history
from tests.support.recorded_deployment import Recorded, edit
from tests.support.recorded_reader import readable
from tests.unit.ops.verify.histories import ABOUT, ONE, TWO
from tests.unit.ops.verify.test_steps import a_history

pytestmark = needs_postgres

FLOW = (
    "SELECT to_jsonb(f) || jsonb_build_object('created_at', round(1000 * "
    "extract(epoch FROM created_at)), 'updated_at', round(1000 * extract(epoch FROM updated_at))) "
    "FROM taskflow_flows f ORDER BY id"
)
STEP = FLOW.replace("taskflow_flows", "taskflow_steps")


@pytest.fixture
def settings(prefix: str) -> dict[str, Any]:
    return {"sink_schema": prefix}


async def write(settings: Settings, dsn: str) -> PostgresSink:
    """Write what is there."""
    sink = PostgresSink(settings, dsn, follow=False)
    await sink.run(asyncio.Event())
    return sink


async def written(dsn: str, schema: str) -> tuple[list[int], dict[str, Any], list[Any]]:
    """Event ids, flows by id, steps by (flow, run id)."""
    async with database(dsn, schema) as db:
        ids = [row[0] for row in await db.fetch("SELECT id FROM taskflow_events ORDER BY id")]
        flows = [json.loads(row[0]) for row in await db.fetch(FLOW)]
        steps = [json.loads(row[0]) for row in await db.fetch(STEP)]
    return ids, {flow["id"]: flow for flow in flows}, steps


def events_of(recorded: Recorded) -> list[dict[str, Any]]:
    parts = range(recorded.partitions)
    return [json_of(record) for p in parts for record in recorded.of("audit", p)]


def expected_flows(recorded: Recorded) -> dict[str, Any]:
    return {
        flow_id: (json.loads(row.doc), row.last_event_id)
        for p in range(recorded.partitions)
        for flow_id, row in recorded.owner(p).flows.items()
    }


async def assert_equal(recorded: Recorded, dsn: str, schema: str) -> None:
    """The tables hold all events once, and the flows and steps as their owners have them."""
    ids, flows, steps = await written(dsn, schema)
    assert ids == sorted(event["id"] for event in events_of(recorded))
    expected = expected_flows(recorded)
    assert flows.keys() == expected.keys()
    for flow_id, (flow, last_event_id) in expected.items():
        row = flows[flow_id]
        assert row["last_event_id"] == last_event_id
        same = flow.keys() - {"created_at", "updated_at"}
        assert {name: row[name] for name in same} == {name: flow[name] for name in same}
    wanted = {
        key: json.loads(row.doc)
        for p in range(recorded.partitions)
        for key, row in recorded.owner(p).steps.items()
    }
    assert {(step["flow_id"], step["run_id"]) for step in steps} == wanted.keys()
    for step in steps:
        doc = wanted[step["flow_id"], step["run_id"]]
        same = doc.keys() - {"created_at", "updated_at"}
        assert {name: step[name] for name in same} == {name: doc[name] for name in same}


@pytest.mark.parametrize("chunk", [1, 7, 1000])
async def test_all_events_flows_and_steps_are_there_once(
    postgres: str, settings: dict[str, Any], chunk: int
) -> None:
    recorded = random_history(150, seed=chunk)
    with readable(recorded, chunk=chunk, **settings) as reading:
        await write(reading, postgres)
    await assert_equal(recorded, postgres, settings["sink_schema"])


async def test_managed_steps_become_rows(postgres: str, settings: dict[str, Any]) -> None:
    recorded = a_history()
    with readable(recorded, chunk=3, **settings) as reading:
        await write(reading, postgres)
    await assert_equal(recorded, postgres, settings["sink_schema"])


async def test_it_goes_on_behind_what_is_written(postgres: str, settings: dict[str, Any]) -> None:
    recorded = random_history(60)
    with readable(recorded, **settings) as reading:
        await write(reading, postgres)
        recorded.send(("commands", document("create_managed", flow_id=ONE, **ABOUT)))
        await write(reading, postgres)
        await write(reading, postgres)
    await assert_equal(recorded, postgres, settings["sink_schema"])


async def test_a_pruned_flow_leaves_its_events_and_may_be_created_again(
    postgres: str, settings: dict[str, Any]
) -> None:
    recorded = Recorded()
    step = {"run_id": "r", "task": "t", "status": "running"}
    with readable(recorded, **settings) as reading:
        recorded.send(
            ("commands", document("create_mirrored", flow_id=ONE, **ABOUT)),
            ("commands", document("record_step_observation", flow_id=ONE, **step)),
            ("commands", document("finish", flow_id=ONE)),
        )
        await write(reading, postgres)
        recorded.send(("control", document("prune", flow_id=ONE)))
        await write(reading, postgres)
        ids, flows, steps = await written(postgres, settings["sink_schema"])
        assert (len(ids), flows, steps) == (5, {}, [])
        recorded.send(("commands", document("create_managed", flow_id=ONE, **ABOUT)))
        await write(reading, postgres)
    await assert_equal(recorded, postgres, settings["sink_schema"])


async def test_texts_with_a_nul_are_kept_with_a_replacement(
    postgres: str, settings: dict[str, Any]
) -> None:
    recorded = Recorded()
    about = {**ABOUT, "goal": "a\0b", "state_json": {"k\0": "\0", "kept": "\\u0000"}}
    recorded.send(("commands", document("create_managed", flow_id=ONE, **about)))
    with readable(recorded, **settings) as reading:
        await write(reading, postgres)
        recorded.send(("commands", document("update_state", flow_id=ONE, patch={"n": 1})))
        await write(reading, postgres)
    _, flows, _ = await written(postgres, settings["sink_schema"])
    assert flows[ONE]["goal"] == "a\ufffdb"
    assert flows[ONE]["state_json"] == {"k\ufffd": "\ufffd", "kept": "\\u0000", "n": 1}


# What is refused


@pytest.fixture
def recorded() -> Recorded:
    """Two flows of four events, of which the sink has written two."""
    recorded = Recorded()
    recorded.send(("commands", document("create_mirrored", flow_id=ONE, **ABOUT)))
    return recorded


async def refused(recorded: Recorded, dsn: str, settings: dict[str, Any]) -> str:
    """The sentence with which the sink ends; it has written nothing."""
    before = await written(dsn, settings["sink_schema"])
    refusals = (SinkRefused, DatabaseRefused)
    with readable(recorded, **settings) as reading, pytest.raises(refusals) as refusal:
        await write(reading, dsn)
    assert await written(dsn, settings["sink_schema"]) == before
    return str(refusal.value)


@pytest.fixture
async def begun(recorded: Recorded, postgres: str, settings: dict[str, Any]) -> Recorded:
    """The sink has what is recorded; then there come two more events of two flows."""
    with readable(recorded, **settings) as reading:
        await write(reading, postgres)
    recorded.send(
        ("commands", document("update_state", flow_id=ONE, patch={"n": 1})),
        ("commands", document("create_managed", flow_id=TWO, **ABOUT)),
    )
    return recorded


async def test_a_gap_is_refused(begun: Recorded, postgres: str, settings: dict[str, Any]) -> None:
    del begun.of("audit")[2]
    sentence = await refused(begun, postgres, settings)
    assert f"event 4 of flow {TWO}, but event 3 must come next" in sentence
    assert "drop the sink's tables" in sentence


async def test_an_edited_event_is_refused(
    begun: Recorded, postgres: str, settings: dict[str, Any]
) -> None:
    audit = begun.of("audit")
    audit[2] = edit(audit[2], actor="nobody")
    sentence = await refused(begun, postgres, settings)
    assert f"event 3 of flow {ONE}" in sentence
    assert "chain" in sentence


async def test_no_event_is_refused(
    begun: Recorded, postgres: str, settings: dict[str, Any]
) -> None:
    begun.append("audit", 0, b"k", b"{}", ())
    assert "is no FlowEvent" in await refused(begun, postgres, settings)


async def test_a_topic_made_anew_is_refused(
    begun: Recorded, postgres: str, settings: dict[str, Any]
) -> None:
    again = Recorded()
    sentence = await refused(again, postgres, settings)
    assert "recreated" in sentence
    again.send(("commands", document("create_mirrored", flow_id=TWO, **ABOUT)))
    sentence = await refused(again, postgres, settings)
    assert "taskflow.audit/0 does not hold event 2 at offset 1 as it was written" in sentence


async def test_an_audit_without_its_beginning_is_refused(
    begun: Recorded, postgres: str, settings: dict[str, Any]
) -> None:
    begun.starts["audit", 0] = 3
    assert "does not have the offsets" in await refused(begun, postgres, settings)


async def test_tables_of_another_prefix_are_refused(
    begun: Recorded, postgres: str, settings: dict[str, Any]
) -> None:
    sentence = await refused(begun, postgres, {**settings, "topic_prefix": "other"})
    assert "holds the events of taskflow.audit, not of other.audit" in sentence


async def test_fewer_partitions_than_are_written_are_refused(
    postgres: str, settings: dict[str, Any]
) -> None:
    with readable(random_history(50), **settings) as reading:
        await write(reading, postgres)
    sentence = await refused(Recorded(), postgres, settings)
    assert "1 partitions, but the tables hold events of partitions [1]" in sentence


async def test_tables_of_another_format_are_refused(
    begun: Recorded, postgres: str, settings: dict[str, Any]
) -> None:
    async with database(postgres, settings["sink_schema"]) as db:
        await db.execute("COMMENT ON TABLE taskflow_positions IS 'taskflow sink, format 9'")
    assert "format 9" in await refused(begun, postgres, settings)


async def test_what_is_no_address_is_refused_without_the_password(
    recorded: Recorded, settings: dict[str, Any]
) -> None:
    with readable(recorded, **settings) as reading, pytest.raises(DatabaseRefused) as refusal:
        await write(reading, "mysql://user:secret@host/db")
    assert "TASKFLOW_SINK_DSN" in str(refusal.value)
    assert "secret" not in str(refusal.value)


# Rows and positions are one transaction


async def test_without_the_position_no_row_is_written(
    begun: Recorded, postgres: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(
            "processor.sink.database._PUT_POSITION",
            "SELECT 1 / ($1::int * 0), $2::text, $3::int8, $4::int8, $5::bytea, $6::timestamptz",
        )
        assert "division by zero" in await refused(begun, postgres, settings)
    with readable(begun, **settings) as reading:
        await write(reading, postgres)
    await assert_equal(begun, postgres, settings["sink_schema"])


# More than one, and a database that goes away


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(patience(30)):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


async def test_a_second_sink_waits_until_the_first_ends(
    begun: Recorded, postgres: str, settings: dict[str, Any]
) -> None:
    with readable(begun, **settings) as reading:
        stops = asyncio.Event(), asyncio.Event(), asyncio.Event()
        sinks = [PostgresSink(reading, postgres) for _ in stops]
        first = asyncio.create_task(sinks[0].run(stops[0]))
        await until(lambda: sinks[0].state == "writing")
        second = asyncio.create_task(sinks[1].run(stops[1]))
        await until(lambda: sinks[1].state == "waiting for another sink")
        assert not sinks[1].ready
        third = asyncio.create_task(sinks[2].run(stops[2]))
        await until(lambda: sinks[2].state == "waiting for another sink")
        stops[2].set()
        await third
        stops[0].set()
        await first
        await until(lambda: sinks[1].state == "writing")
        stops[1].set()
        await second
    await assert_equal(begun, postgres, settings["sink_schema"])


async def test_it_connects_again_when_the_database_was_away(
    begun: Recorded, postgres: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.adapters.postgres.service.BACKOFF_MIN_S", 0.01)
    monkeypatch.setattr("processor.sink.sink.POLL_S", 0.01)
    with readable(begun, **settings) as reading:
        stop = asyncio.Event()
        sink = PostgresSink(reading, postgres)
        running = asyncio.create_task(sink.run(stop))
        await until(lambda: sink.state == "writing")
        async with database(postgres) as db:
            await db.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'taskflow sink'"
            )
        begun.send(("commands", document("finish", flow_id=ONE)))
        await until(lambda: sink.ready and sink.report()["partitions"]["0"]["event_id"] == 5)
        assert sink.metrics.failures._value.get() == 1
        stop.set()
        await running
    await assert_equal(begun, postgres, settings["sink_schema"])


async def test_who_does_not_answer_at_the_start_is_said(
    recorded: Recorded, settings: dict[str, Any]
) -> None:
    with readable(recorded, **settings) as reading, pytest.raises(DatabaseUnavailable):
        await write(reading, "postgresql://user@127.0.0.1:1/db")


# The documentation

PAGE = (Path(__file__).parents[2] / "processor/docs/sinking.md").read_text("utf-8")


async def test_the_queries_of_the_page_run_and_find_rows(
    postgres: str, settings: dict[str, Any]
) -> None:
    queries = re.findall(r"^```sql\n(.+?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len(queries) == 3
    recorded = a_history()
    other = "9d1c2f5e-58a7-5bb4-8d0c-2d8d3b0a4c11"
    recorded.send(
        ("commands", document("create_mirrored", flow_id=other, **ABOUT)),
        ("commands", document("set_waiting", flow_id=other, wait=manual())),
    )
    with readable(recorded, **settings) as reading:
        await write(reading, postgres)
    async with database(postgres, settings["sink_schema"]) as db:
        for query in queries:
            assert await db.fetch(query), query


async def test_the_page_has_every_column_with_its_type(
    postgres: str, settings: dict[str, Any]
) -> None:
    with readable(Recorded(), **settings) as reading:
        await write(reading, postgres)
    async with database(postgres, settings["sink_schema"]) as db:
        columns = await db.fetch(
            "SELECT table_name, column_name, replace(data_type, 'timestamp with time zone', "
            "'timestamptz') FROM information_schema.columns WHERE table_schema = $1",
            settings["sink_schema"],
        )
    documented = set()
    for table, part in re.findall(r"\*\*(taskflow_\w+)\*\*(.+?)(?=\n\*\*|\n## )", PAGE, re.DOTALL):
        for names, kind in re.findall(r"^\| (`.+?`) \| (\w+) \|", part, re.MULTILINE):
            documented |= {(table, name, kind) for name in re.findall(r"`(\w+)`", names)}
    assert documented == {tuple(column) for column in columns}
