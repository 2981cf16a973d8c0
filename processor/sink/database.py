"""The sink's PostgreSQL: its tables, their positions, and one transaction for both."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg

from processor.engine.rows import FlowRow, StepRow
from processor.errors import TaskflowError
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
    text,
)

FORMAT: Final = "taskflow sink, format 1"
"""The comment of `taskflow_positions`."""
CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
STATEMENT_TIMEOUT_S: Final = 300.0
NO_TIMEOUT_S: Final = 10 * 365 * 86_400.0
"""None would be STATEMENT_TIMEOUT_S."""
_MAKING_TABLES: Final = 8249
"""The advisory lock of who makes tables; any number."""
_SCHEMA: Final = Path(__file__).with_name("schema.sql")
_COMPARISON: Final = Path(__file__).with_name("comparison.sql")
_PASSING: Final = ("08", "40", "53", "55", "57")
"""Classes of SQLSTATE that pass: connections, conflicts, resources, locks, an operator's doing."""


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


class DatabaseUnavailable(TaskflowError):
    """PostgreSQL does not answer, or not now; nothing of the batch is written."""

    retriable = True


@contextmanager
def database_errors() -> Iterator[None]:
    """Raise what PostgreSQL and the way to it raise as DatabaseUnavailable or SinkRefused."""
    try:
        yield
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        state = getattr(error, "sqlstate", None)
        message = str(error).partition("\n")[0] or type(error).__name__
        if state is None or state.startswith(_PASSING):
            raise DatabaseUnavailable(f"PostgreSQL: {message.rstrip('.')}.") from error
        raise SinkRefused(f"PostgreSQL refused ({state}): {message.rstrip('.')}.") from error


@asynccontextmanager
async def connected(dsn: str, schema: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection that finds the tables in `schema`. Raises DatabaseUnavailable, SinkRefused."""
    with database_errors():
        try:
            connection = await asyncpg.connect(
                dsn,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=STATEMENT_TIMEOUT_S,
                server_settings={
                    "search_path": f'"{schema}"',
                    "application_name": "taskflow sink",
                    "timezone": "UTC",
                },
            )
        except (ValueError, TypeError) as error:
            raise SinkRefused(f"TASKFLOW_SINK_DSN is no address of PostgreSQL: {error}.") from None
    try:
        yield connection
    finally:
        try:
            await connection.close(timeout=CLOSE_TIMEOUT_S)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            connection.terminate()


class SinkDatabase:
    """The tables of one schema, by one connection."""

    def __init__(self, connection: asyncpg.Connection, schema: str, topic: str) -> None:
        self._connection = connection
        self._schema = schema
        self._topic = topic

    async def prepare(self) -> None:
        """Make the tables unless they are there. Raises SinkRefused for those of another kind."""
        with database_errors():
            encoding = await self._connection.fetchval("SHOW server_encoding")
            if encoding != "UTF8":
                raise SinkRefused(
                    f"The database's encoding is {encoding}; the sink needs one in UTF8."
                )
            async with self._connection.transaction():
                await self._connection.execute("SELECT pg_advisory_xact_lock($1)", _MAKING_TABLES)
                found = await self._format()
                if found is None:
                    if not await self._connection.fetchval(
                        "SELECT to_regnamespace($1) IS NOT NULL", f'"{self._schema}"'
                    ):
                        await self._connection.execute(f'CREATE SCHEMA "{self._schema}"')
                    await self._connection.execute(_SCHEMA.read_text("utf-8"))
                    found = FORMAT
        self._check_format(found)

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

    async def _format(self) -> str | None:
        """The comment of the positions; None if there are none."""
        found: str | None = await self._connection.fetchval(
            "SELECT coalesce(obj_description(to_regclass('taskflow_positions')), '') "
            "WHERE to_regclass('taskflow_positions') IS NOT NULL"
        )
        return found

    @asynccontextmanager
    async def comparison(self) -> AsyncIterator[None]:
        """Show the tables as of one moment, with empty ones beside them for what the topics say.

        Raises SinkRefused if there are none.
        """
        with database_errors():
            async with self._connection.transaction(isolation="repeatable_read"):
                self._check_format(await self._format())
                await self._connection.execute(_COMPARISON.read_text("utf-8"))
                yield

    async def lock(self, partitions: int, *, wait: bool) -> bool:
        """Keep other sinks off these partitions for as long as the connection lives; whether they
        are ours. `wait`: until another sink lets go of them."""
        function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
        with database_errors():
            space = await self._connection.fetchval(
                "SELECT hashtext($1)", f"taskflow sink {self._schema}"
            )
            for partition in range(partitions):
                got = await self._connection.fetchval(
                    f"SELECT {function}($1, $2)", space, partition, timeout=NO_TIMEOUT_S
                )
                if not wait and not got:
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
