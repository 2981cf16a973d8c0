"""The outbox's table in PostgreSQL: read rows without an outcome, write outcomes."""

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

from processor.adapters.postgres.connection import (
    Connection,
    PostgresSchema,
    database_errors,
    lock,
    prepare_tables,
)
from processor.errors import TaskflowError
from processor.outbox.rows import OutboxRow, RowOutcome, SentRow, time_of

TABLE: Final = "taskflow_outbox"
CHANNEL: Final = "taskflow_outbox"
"""The channel that the table's trigger notifies, with the name of its schema."""
FORMAT: Final = "taskflow outbox, format 1"
"""The comment of the table."""
DELETED_AT_ONCE: Final = 10_000
"""Rows that one statement deletes; it holds their locks for some ten milliseconds."""
_SCHEMA: Final = Path(__file__).with_name("schema.sql")

_ROW: Final = (
    "id, flow_id::text, command_id::text, command::text, traceparent, "
    "(extract(epoch FROM sent_at) * 1000)::bigint, "
    "(extract(epoch FROM expires_at) * 1000)::bigint, outcomes_offset"
)
# A step of the recursion is one index lookup, however many rows a flow has.
_FIRST: Final = f"""
WITH RECURSIVE first(flow_id, id, nth) AS (
    (SELECT flow_id, id, 1 FROM {TABLE} WHERE outcome_at IS NULL AND flow_id >= $1
     ORDER BY flow_id, id LIMIT 1)
    UNION ALL
    SELECT next.flow_id, next.id, first.nth + 1
    FROM first CROSS JOIN LATERAL (
        SELECT flow_id, id FROM {TABLE} WHERE outcome_at IS NULL AND flow_id > first.flow_id
        ORDER BY flow_id, id LIMIT 1
    ) AS next
    WHERE first.nth < $2
)
SELECT {_ROW} FROM {TABLE} WHERE id IN (SELECT id FROM first) ORDER BY flow_id
"""
_SENT: Final = f"SELECT {_ROW}, topic FROM {TABLE} WHERE outcome_at IS NULL AND sent_at IS NOT NULL"
_MARK_SENT: Final = (
    f"UPDATE {TABLE} SET topic = $2, sent_at = $3, expires_at = $4, outcomes_offset = $5 "
    "WHERE id = $1"
)
_RENEW: Final = (
    f"UPDATE {TABLE} SET command_id = renewed.id, "
    "command = command || jsonb_build_object('command_id', renewed.id), "
    "topic = NULL, sent_at = NULL, expires_at = NULL, outcomes_offset = NULL "
    "FROM (SELECT gen_random_uuid() AS id) AS renewed "
    "WHERE taskflow_outbox.id = $1 AND outcome_at IS NULL"
)
_PUT_OUTCOME: Final = (
    f"UPDATE {TABLE} SET outcome_at = now(), verdict = $2, code = $3, message = $4, "
    "revision = $5, status = $6, allowed = $7, event_ids = $8, details = $9::jsonb "
    "WHERE id = $1 AND outcome_at IS NULL"
)
_BACKLOG: Final = (
    "SELECT count(*), coalesce(extract(epoch FROM now() - min(created_at)), 0)::float8 "
    f"FROM {TABLE} WHERE outcome_at IS NULL"
)
_DELETE_OLD: Final = (
    f"DELETE FROM {TABLE} WHERE id IN (SELECT id FROM {TABLE} "
    "WHERE outcome_at < now() - $1::interval ORDER BY outcome_at LIMIT $2)"
)


class OutboxRefused(TaskflowError):
    """This relay cannot serve the table; nothing is sent."""


class Backlog(NamedTuple):
    """The rows without an outcome: how many, and the age of the oldest."""

    rows: int
    oldest_s: float


def outbox_database(dsn: str, schema: str) -> PostgresSchema:
    """The schema of the outbox's table."""
    return PostgresSchema(dsn, schema, "taskflow outbox", "The outbox's DSN")


def statements() -> str:
    """The DDL of the table, for the schema that comes first in the search path."""
    return _SCHEMA.read_text("utf-8")


class OutboxDatabase:
    """The table of one schema, on one connection, for one caller at a time."""

    def __init__(self, connection: Connection, database: PostgresSchema) -> None:
        self._connection = connection
        self._database = database

    async def prepare(self) -> None:
        """Create the table unless it exists. Raises OutboxRefused if it has another format."""
        found = await prepare_tables(self._connection, self._database, TABLE, statements())
        if found != FORMAT:
            raise OutboxRefused(
                f'The table {TABLE} in schema "{self._database.schema}" is '
                f"{found or 'no outbox'!r}, but this taskflow serves {FORMAT!r}: choose another "
                "TASKFLOW_OUTBOX_SCHEMA, or drop it."
            )

    async def lock(self, *, wait: bool) -> bool:
        """Lock the table against other relays; whether it is locked. `wait`: until it is free."""
        return await lock(self._connection, self._database, 0, wait=wait)

    async def listen(self, woken: Callable[[], object]) -> None:
        """Call `woken` after each commit of rows."""

        def notified(_connection: Any, _pid: int, _channel: str, schema: str) -> None:
            if schema == self._database.schema:
                woken()

        with database_errors():
            await self._connection.add_listener(CHANNEL, notified)

    async def sent(self, topic: str) -> list[OutboxRow]:
        """The rows that were sent to `topic` and have no outcome. Raises OutboxRefused if some were
        sent to another topic."""
        with database_errors():
            rows = await self._connection.fetch(_SENT)
        others = sorted({row[-1] for row in rows} - {topic})
        if others:
            raise OutboxRefused(
                f'{TABLE} in schema "{self._database.schema}" holds rows that were sent to '
                f"{', '.join(others)} and have no outcome, but this relay sends to {topic}: let "
                "the relay of that prefix finish first, or choose another TASKFLOW_OUTBOX_SCHEMA."
            )
        return [OutboxRow(*row[:-1]) for row in rows]

    async def first_of_flows(self, start: UUID, flows_max: int) -> list[OutboxRow]:
        """The first row without an outcome of each flow, for at most `flows_max` flows from id
        `start` on, in the order of their ids."""
        with database_errors():
            rows = await self._connection.fetch(_FIRST, start, flows_max)
        return [OutboxRow(*row) for row in rows]

    async def mark_sent(self, topic: str, rows: Iterable[SentRow]) -> None:
        """Mark rows before they are sent, so that another relay can continue."""
        await self._all(
            _MARK_SENT,
            [
                (row.id, topic, time_of(row.sent_ms), time_of(row.expires_ms), row.outcomes_offset)
                for row, _ in rows
                if row.sent_ms is not None and row.expires_ms is not None
            ],
        )

    async def put(self, outcomes: Sequence[RowOutcome], renewed: Sequence[int] = ()) -> None:
        """Write outcomes into their rows, and give the rows `renewed` new command ids so that they
        are sent again: in one transaction."""
        with database_errors():
            async with self._connection.transaction():
                await self._connection.executemany(_PUT_OUTCOME, outcomes)
                await self._connection.executemany(_RENEW, [(row_id,) for row_id in renewed])

    async def backlog(self) -> Backlog:
        with database_errors():
            return Backlog(*await self._connection.fetchrow(_BACKLOG))

    async def delete_older(self, retain_ms: int) -> int:
        """Delete up to DELETED_AT_ONCE rows whose outcome is older; return their number."""
        with database_errors():
            done: str = await self._connection.execute(
                _DELETE_OLD, timedelta(milliseconds=retain_ms), DELETED_AT_ONCE
            )
        return int(done.removeprefix("DELETE "))

    async def _all(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with database_errors():
            await self._connection.executemany(statement, rows)
