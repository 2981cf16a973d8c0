"""The sink's PostgreSQL: its tables, their positions, and one transaction for both."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from processor.adapters.postgres.connection import (
    NO_TIMEOUT_S,
    Connection,
    PostgresSchema,
    database_errors,
    format_of,
    lock,
    prepare_tables,
)
from processor.adapters.postgres.errors import DatabaseUnavailable
from processor.adapters.postgres.texts import text
from processor.engine.rows import FlowRow, StepRow
from processor.sink.rows import (
    EVENT_COLUMNS,
    FLOW_COLUMNS,
    STEP_COLUMNS,
    KnownRows,
    SinkChanges,
    SinkPosition,
    SinkRefused,
    flow_row,
    step_row,
)

FORMAT: Final = "taskflow sink, format 1"
"""The comment of `taskflow_positions`."""
_MARKED: Final = "taskflow_positions"
_SCHEMA: Final = Path(__file__).with_name("schema.sql")
_COMPARISON: Final = Path(__file__).with_name("comparison.sql")


def _instants(table: str, names: Sequence[str]) -> str:
    """The row as JSON, with times as the contract writes them."""
    times = ", ".join(
        f"'{name}', to_char({table}.{name} AT TIME ZONE 'UTC', "
        """'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
        for name in names
    )
    return f"to_jsonb({table}) || jsonb_build_object({times})"


_FLOWS: Final = (
    f"SELECT (({_instants('flow', ('created_at', 'updated_at'))}) - 'last_event_id' - 'chain')"
    "::text, last_event_id, chain FROM taskflow_flows AS flow WHERE id = ANY($1::uuid[])"
)
_STEPS: Final = (
    f"SELECT (({_instants('step', ('created_at', 'updated_at'))}) - CASE runtime WHEN 'mirrored' "
    "THEN ARRAY['input_json', 'execution'] ELSE ARRAY[]::text[] END)::text, flow_id::text, run_id "
    "FROM unnest($1::uuid[], $2::text[]) AS wanted(flow_id, run_id) "
    "JOIN taskflow_steps AS step USING (flow_id, run_id)"
)
_POSITIONS: Final = (
    "SELECT partition, topic, event_id, audit_offset, chain, event_at FROM taskflow_positions"
)
_PUT_POSITION: Final = (
    "INSERT INTO taskflow_positions (partition, topic, event_id, audit_offset, chain, event_at) "
    "VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (partition) DO UPDATE SET "
    "event_id = excluded.event_id, audit_offset = excluded.audit_offset, chain = excluded.chain, "
    "event_at = excluded.event_at, written_at = now()"
)


def put_rows(table: str, columns: Mapping[str, str]) -> str:
    """The statement that inserts or replaces the rows of a JSON array."""
    names = ", ".join(columns)
    types = ", ".join(f"{name} {kind}" for name, kind in columns.items())
    changes = ", ".join(f"{name} = excluded.{name}" for name in columns)
    return (
        f"INSERT INTO {table} ({names}) SELECT {names} FROM jsonb_to_recordset($1::jsonb) "
        f"AS given({types}) ON CONFLICT (id) DO UPDATE SET {changes}"
    )


_PUT_FLOWS: Final = put_rows("taskflow_flows", FLOW_COLUMNS)
_PUT_STEPS: Final = put_rows("taskflow_steps", STEP_COLUMNS)

_UNCHANGED: Final = {
    "events": "true",
    "flows": "NOT EXISTS (SELECT FROM changed_flows c WHERE c.flow_id = id)",
    "steps": (
        "NOT EXISTS (SELECT FROM changed_flows c "
        "WHERE c.flow_id = coalesce(written.flow_id, said.flow_id))"
    ),
}
_COMPARED: Final = {
    table: f"SELECT count(*) FROM taskflow_{table} AS written WHERE "
    + unchanged.replace("coalesce(written.flow_id, said.flow_id)", "written.flow_id")
    for table, unchanged in _UNCHANGED.items()
}
_DIFFERENCES: Final = {
    table: (
        "SELECT id::text, CASE WHEN written.id IS NULL THEN 'missing' "
        "WHEN said.id IS NULL THEN 'extra' ELSE 'different' END, count(*) OVER () "
        f"FROM taskflow_{table} AS written FULL JOIN topic_{table} AS said USING (id) "
        f"WHERE {unchanged} AND written IS DISTINCT FROM said ORDER BY id LIMIT $1"
    )
    for table, unchanged in _UNCHANGED.items()
}
"""Rows are compared as a whole, jsonb by value."""


def sink_database(dsn: str, schema: str) -> PostgresSchema:
    """Where the sink's tables are."""
    return PostgresSchema(dsn, schema, "taskflow sink", "TASKFLOW_SINK_DSN")


class SinkDatabase:
    """The tables of one schema, by one connection."""

    def __init__(self, connection: Connection, database: PostgresSchema, topic: str) -> None:
        self._connection = connection
        self._database = database
        self._schema = database.schema
        self._topic = topic

    async def prepare(self) -> None:
        """Make the tables unless they are there. Raises SinkRefused for those of another kind."""
        statements = _SCHEMA.read_text("utf-8")
        self._check_format(
            await prepare_tables(self._connection, self._database, _MARKED, statements)
        )

    def _check_format(self, found: str | None) -> None:
        if found is None:
            raise SinkRefused(
                f'There are no tables of a sink in schema "{self._schema}": start `taskflow sink '
                "postgres`, or name its TASKFLOW_SINK_SCHEMA."
            )
        if found != FORMAT:
            raise SinkRefused(
                f'The tables in schema "{self._schema}" are {found or "of no sink"!r}, but this '
                f"taskflow writes {FORMAT!r}: choose another TASKFLOW_SINK_SCHEMA, or drop them."
            )

    @asynccontextmanager
    async def comparison(self) -> AsyncIterator[None]:
        """Show the tables as of one moment, with empty ones beside them for what the topics say.

        Raises SinkRefused if there are none.
        """
        with database_errors():
            async with self._connection.transaction(isolation="repeatable_read"):
                self._check_format(await format_of(self._connection, _MARKED))
                await self._connection.execute(_COMPARISON.read_text("utf-8"))
                yield

    async def lock(self, partitions: int, *, wait: bool) -> bool:
        """Keep other sinks off these partitions for as long as the connection lives; whether they
        are ours. `wait`: until another sink lets go of them."""
        for partition in range(partitions):
            if not await lock(self._connection, self._database, partition, wait=wait):
                return False
        return True

    async def positions(self) -> dict[int, SinkPosition]:
        """How far each partition is written. Raises SinkRefused for those of another topic."""
        with database_errors():
            rows = await self._connection.fetch(_POSITIONS)
        for _, topic, *_ in rows:
            if topic != self._topic:
                raise SinkRefused(
                    f'Schema "{self._schema}" holds the events of {topic}, not of {self._topic}: '
                    "choose another TASKFLOW_SINK_SCHEMA."
                )
        return {partition: SinkPosition(*position) for partition, _, *position in rows}

    @asynccontextmanager
    async def transaction(
        self, before: Mapping[int, SinkPosition], partitions: Sequence[int]
    ) -> AsyncIterator[None]:
        """One transaction that holds the positions of `partitions`, which must be those of
        `before`. Raises DatabaseUnavailable if another sink has moved them."""
        with database_errors():
            async with self._connection.transaction():
                rows = await self._connection.fetch(
                    "SELECT partition, event_id FROM taskflow_positions "
                    "WHERE partition = ANY($1::int[]) FOR UPDATE",
                    partitions,
                )
                found = dict(rows)
                expected = {p: before[p].event_id for p in partitions if p in before}
                if found != expected:
                    raise DatabaseUnavailable(
                        f"Another sink has written: it is at events {found}, this one at "
                        f"{expected}. This one looks again."
                    )
                yield

    async def known(self, flow_ids: Sequence[str], steps: Sequence[tuple[str, str]]) -> KnownRows:
        """The rows of these flows, and of these steps (flow id, run id), that are there."""
        flows: dict[str, FlowRow] = {}
        for doc, last_event_id, chain in await self._connection.fetch(_FLOWS, flow_ids):
            row = flow_row(doc, last_event_id, chain)
            flows[row.flow.id] = row
        found: dict[tuple[str, str], StepRow] = {}
        if steps:
            names = {(flow_id, text(run_id)): run_id for flow_id, run_id in steps}
            ids, run_ids = zip(*names, strict=True)
            for doc, flow_id, run_id in await self._connection.fetch(_STEPS, ids, run_ids):
                name = names[flow_id, run_id]
                found[flow_id, name] = step_row(doc, name)
        return KnownRows(flows, found)

    async def write(self, changes: SinkChanges) -> None:
        """Write all of it, within a `transaction`."""
        connection = self._connection
        if changes.pruned:
            for statement in (
                "DELETE FROM taskflow_steps WHERE flow_id = ANY($1::uuid[])",
                "DELETE FROM taskflow_flows WHERE id = ANY($1::uuid[])",
            ):
                await connection.execute(statement, changes.pruned)
        for statement, arrays in ((_PUT_FLOWS, changes.flows), (_PUT_STEPS, changes.steps)):
            for rows in arrays:
                await connection.execute(statement, rows)
        await connection.copy_records_to_table(
            "taskflow_events", records=changes.events, columns=EVENT_COLUMNS
        )
        await connection.executemany(
            _PUT_POSITION,
            [
                (partition, self._topic, *position)
                for partition, position in changes.positions.items()
            ],
        )

    # Within a `comparison`

    async def put_topic_rows(self, table: str, arrays: Sequence[str], gone: Sequence[str]) -> None:
        """Insert or replace rows (in JSON arrays) of `topic_flows` or `topic_steps`; the rows of
        the ids in `gone` go."""
        columns = {"flows": FLOW_COLUMNS, "steps": STEP_COLUMNS}[table]
        for rows in arrays:
            await self._connection.execute(put_rows(f"topic_{table}", columns), rows)
        if gone:
            await self._connection.execute(
                f"DELETE FROM topic_{table} WHERE id = ANY($1::uuid[])", gone
            )

    async def put_topic_events(
        self, rows: Sequence[tuple[Any, ...]], changed_flows: Sequence[str]
    ) -> None:
        await self._connection.copy_records_to_table(
            "topic_events", records=rows, columns=EVENT_COLUMNS
        )
        await self._connection.execute(
            "INSERT INTO changed_flows SELECT unnest($1::uuid[]) ON CONFLICT DO NOTHING",
            changed_flows,
        )

    async def count(self, table: str) -> int:
        counted: int = await self._connection.fetchval(f"SELECT count(*) FROM {table}")
        return counted

    async def differences(
        self, table: str, shown_max: int
    ) -> tuple[int, int, list[dict[str, Any]]]:
        """How many rows of events, flows or steps were compared, how many differ from what the
        topics say, and the first of these."""
        compared = await self._connection.fetchval(_COMPARED[table], timeout=NO_TIMEOUT_S)
        rows = await self._connection.fetch(_DIFFERENCES[table], shown_max, timeout=NO_TIMEOUT_S)
        shown = [{"table": f"taskflow_{table}", "id": row[0], "row": row[1]} for row in rows]
        return compared, rows[0][2] if rows else 0, shown
