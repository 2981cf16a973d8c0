"""What `taskflow verify --sink` finds: nothing in what the sink wrote, and each planted defect."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from processor.contract.topics import Topics
from processor.engine.codec import Record
from processor.sink.comparison import SinkReport, compare
from processor.sink.rows import SinkRefused
from processor.sink.sink import PostgresSink
from tests.support.builders import document
from tests.support.postgres import database, needs_postgres
from tests.support.random_histories import random_history
from tests.support.recorded_deployment import Recorded
from tests.support.recorded_reader import readable
from tests.unit.ops.verify.histories import ABOUT, ONE
from tests.unit.ops.verify.test_steps import a_history

pytestmark = needs_postgres


async def written(recorded: Recorded, dsn: str, schema: str) -> None:
    with readable(recorded, sink_schema=schema) as settings:
        await PostgresSink(settings, dsn, follow=False).run(asyncio.Event())


async def compared(recorded: Recorded, dsn: str, schema: str) -> SinkReport:
    async def read(topic: str) -> AsyncIterator[Record]:
        for partition in range(recorded.partitions):
            for record in recorded.of(topic.partition(".")[2], partition):
                yield record

    return await compare(dsn, schema, Topics(), read)


@pytest.mark.parametrize(
    "recorded", [random_history(150, seed=3), a_history()], ids=["random", "managed steps"]
)
async def test_what_the_sink_wrote_is_what_the_topics_say(
    recorded: Recorded, postgres: str, prefix: str
) -> None:
    await written(recorded, postgres, prefix)
    report = await compared(recorded, postgres, prefix)
    assert report.ok, report.shown
    flows = sum(len(recorded.owner(p).flows) for p in range(recorded.partitions))
    steps = sum(len(recorded.owner(p).steps) for p in range(recorded.partitions))
    events = sum(len(recorded.of("audit", p)) for p in range(recorded.partitions))
    assert report.compared == {"events": events, "flows": flows, "steps": steps}
    assert min(report.compared.values()) > 0
    assert (report.behind, report.changed_flows) == (0, 0)


ONE_FLOW = "id = (SELECT min(id::text)::uuid FROM taskflow_flows)"


@pytest.mark.parametrize(
    ("defect", "table", "row"),
    [
        ("DELETE FROM taskflow_events WHERE id = 3", "events", "missing"),
        (
            "INSERT INTO taskflow_events SELECT 9999, flow_id, kind, payload_json, at, revision, "
            "status, command_id, actor, source, chain FROM taskflow_events WHERE id = 3",
            *("events", "extra"),
        ),
        (
            """UPDATE taskflow_events SET payload_json = '{"x":1}' WHERE id = 3""",
            "events",
            "different",
        ),
        ("UPDATE taskflow_events SET at = at + interval '1ms' WHERE id = 3", "events", "different"),
        (f"DELETE FROM taskflow_flows WHERE {ONE_FLOW}", "flows", "missing"),
        (f"UPDATE taskflow_flows SET state_json = '7' WHERE {ONE_FLOW}", "flows", "different"),
        (f"UPDATE taskflow_flows SET goal = 'x' WHERE {ONE_FLOW}", "flows", "different"),
        (
            "INSERT INTO taskflow_steps SELECT gen_random_uuid(), flow_id, runtime, NULL, 'x', "
            "task, status, NULL, created_at, updated_at FROM taskflow_steps LIMIT 1",
            *("steps", "extra"),
        ),
        ("UPDATE taskflow_steps SET result_json = '0'", "steps", "different"),
        ("DELETE FROM taskflow_steps", "steps", "missing"),
    ],
)
async def test_a_planted_defect_is_found(
    defect: str, table: str, row: str, postgres: str, prefix: str
) -> None:
    recorded = a_history()
    await written(recorded, postgres, prefix)
    async with database(postgres, prefix) as db:
        await db.execute(defect)
    report = await compared(recorded, postgres, prefix)
    assert not report.ok
    assert {name for name, count in report.differing.items() if count} == {table}
    assert {(one["table"], one["row"]) for one in report.shown} == {(f"taskflow_{table}", row)}


async def test_flows_that_changed_since_are_not_compared(postgres: str, prefix: str) -> None:
    recorded = random_history(60)
    await written(recorded, postgres, prefix)
    recorded.send(("commands", document("create_managed", flow_id=ONE, **ABOUT)))
    recorded.send(("commands", document("start_running", flow_id=ONE)))
    report = await compared(recorded, postgres, prefix)
    assert report.ok, report.shown
    assert (report.behind, report.changed_flows) == (2, 1)


async def test_without_tables_nothing_is_compared(postgres: str, prefix: str) -> None:
    with pytest.raises(SinkRefused, match="There are no tables of a sink in schema"):
        await compared(Recorded(), postgres, prefix)
