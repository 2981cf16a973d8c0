"""Compare the sink's rows with the topics: events with `audit`, flows and steps with `state`.

PostgreSQL compares: what the topics say is copied into temporary tables there. What `state` has
was folded by the workers, and not by the sink.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from processor.adapters.postgres.connection import connected
from processor.contract.topics import Topics
from processor.domain.decide_steps import step_id
from processor.engine.codec import Record
from processor.sink.database import SinkDatabase, sink_database
from processor.sink.rows import event_row, flow_json, json_arrays, read_events

CHUNK_RECORDS: Final = 1000
SHOWN_MAX: Final = 20
"""Differences of a table that are named; all are counted."""
TABLES: Final = ("events", "flows", "steps")

ReadTopic = Callable[[str], AsyncIterator[Record]]
"""The committed records of a topic, from its beginning to what is its end when it is called."""


@dataclass(slots=True)
class SinkReport:
    """How the tables differ from the topics."""

    event_ids: dict[int, int]
    """Partition → the newest event that is written."""
    compared: dict[str, int] = field(default_factory=dict)
    """By table: the rows of it, but for those of flows that changed meanwhile."""
    differing: dict[str, int] = field(default_factory=dict)
    shown: list[dict[str, Any]] = field(default_factory=list)
    """The first of each table."""
    behind: int = 0
    """Events of the topic that are not written yet."""
    changed_flows: int = 0
    """Flows with such events, which are not compared."""

    @property
    def ok(self) -> bool:
        return not any(self.differing.values())

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "event_ids": {str(p): event_id for p, event_id in sorted(self.event_ids.items())},
            "compared": self.compared,
            "differing": self.differing,
            "differences": self.shown,
            "behind": self.behind,
            "changed_flows": self.changed_flows,
        }


async def compare(dsn: str, schema: str, topics: Topics, read: ReadTopic) -> SinkReport:
    """Compare all rows, as of one moment, with the topics; the sink may go on meanwhile.

    Raises SinkRefused if there are no tables of this sink, DatabaseUnavailable.
    """
    where = sink_database(dsn, schema)
    async with connected(where) as connection:
        database = SinkDatabase(connection, where, topics.audit)
        async with database.comparison():
            positions = await database.positions()
            report = SinkReport({p: position.event_id for p, position in positions.items()})
            # First: what it shows of a flow is then on the audit as well, which is read after it.
            async for records in _chunks(read(topics.state)):
                await _put_state(database, records)
            async for records in _chunks(read(topics.audit)):
                report.behind += await _put_events(database, records, report.event_ids)
            report.changed_flows = await database.count("changed_flows")
            for table in TABLES:
                compared, differing, shown = await database.differences(table, SHOWN_MAX)
                report.compared[table], report.differing[table] = compared, differing
                report.shown += shown
    return report


async def _put_state(database: SinkDatabase, records: list[Record]) -> None:
    """The last value of each key, in the order of the topic."""
    flows: dict[str, bytes | None] = {}
    steps: dict[str, bytes | None] = {}
    for record in records:
        flow_id, _, run_id = (record.key or b"").decode().partition("/")
        if flow_id == "cursor":
            continue
        value = None if record.value is None else orjson.loads(record.value)
        if run_id:
            doc = None if value is None else orjson.dumps(value["step"])
            steps[step_id(flow_id, run_id)] = doc
        else:
            flows[flow_id] = value and flow_json(
                orjson.dumps(value["flow"]), value["last_event_id"], bytes.fromhex(value["chain"])
            )
    for table, rows in (("flows", flows), ("steps", steps)):
        gone = [row_id for row_id, doc in rows.items() if doc is None]
        await database.put_topic_rows(
            table, json_arrays(doc for doc in rows.values() if doc is not None), gone
        )


async def _put_events(
    database: SinkDatabase, records: list[Record], event_ids: dict[int, int]
) -> int:
    """Return how many of them are not written yet."""
    written, later = [], set()
    events = read_events(records)
    for record, event in events:
        if event["id"] <= event_ids.get(record.partition, 0):
            written.append(event_row(record, event))
        else:
            later.add(event["flow_id"])
    await database.put_topic_events(written, sorted(later))
    return len(events) - len(written)


async def _chunks(records: AsyncIterator[Record]) -> AsyncIterator[list[Record]]:
    chunk: list[Record] = []
    async for record in records:
        chunk.append(record)
        if len(chunk) == CHUNK_RECORDS:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
