"""Connections to PostgreSQL, tables whose comment says their format, and advisory locks."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, NamedTuple

import asyncpg

from processor.adapters.postgres.errors import DatabaseRefused, DatabaseUnavailable

Connection = asyncpg.Connection

CONNECT_TIMEOUT_S: Final = 10.0
CLOSE_TIMEOUT_S: Final = 2.0
STATEMENT_TIMEOUT_S: Final = 300.0
NO_TIMEOUT_S: Final = 10 * 365 * 86_400.0
"""asyncpg takes None as STATEMENT_TIMEOUT_S."""
_MAKING_TABLES: Final = 8249
"""The advisory lock for making tables; any number."""
_PASSING: Final = ("08", "40", "53", "55", "57")
"""SQLSTATE classes of transient errors: connections, conflicts, resources, locks, operators."""

_OF_THE_DRIVER: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError)
"""asyncpg's own errors; the second one if the server ended the connection between statements."""


class PostgresSchema(NamedTuple):
    """A schema of a PostgreSQL database, and the part of taskflow that uses it."""

    dsn: str
    schema: str
    part: str
    """The part of taskflow, as in "taskflow sink": the name of its sessions and of its locks."""
    variable: str
    """The setting that names the address, for messages."""


@contextmanager
def database_errors() -> Iterator[None]:
    """Turn errors of PostgreSQL and of its connection into DatabaseUnavailable or
    DatabaseRefused."""
    try:
        yield
    except (*_OF_THE_DRIVER, asyncpg.PostgresError, OSError) as error:
        state = getattr(error, "sqlstate", None)
        message = str(error).partition("\n")[0] or type(error).__name__
        if state is None or state.startswith(_PASSING):
            raise DatabaseUnavailable(f"PostgreSQL: {message.rstrip('.')}.") from error
        raise DatabaseRefused(f"PostgreSQL refused ({state}): {message.rstrip('.')}.") from error


@asynccontextmanager
async def connected(database: PostgresSchema) -> AsyncIterator[asyncpg.Connection]:
    """Connect, with the schema as the search path. Raises DatabaseUnavailable, DatabaseRefused."""
    with database_errors():
        try:
            connection = await asyncpg.connect(
                database.dsn,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=STATEMENT_TIMEOUT_S,
                server_settings={
                    "search_path": f'"{database.schema}"',
                    "application_name": database.part,
                    "timezone": "UTC",
                },
            )
        except asyncpg.ClientConfigurationError as error:
            raise DatabaseRefused(
                f"{database.variable} is no address of PostgreSQL: {error}."
            ) from None
        except (ValueError, TypeError):
            # Python's own words for it repeat a part of the address: that of the password before
            # its first `/`, `?` or `#`, which is taken for the port.
            raise DatabaseRefused(
                f"{database.variable} is no address of PostgreSQL, such as "
                "postgresql://user:password@host:5432/database. In user and password, write "
                "`/` as %2F, `?` as %3F, `#` as %23, and `[` as %5B."
            ) from None
    try:
        yield connection
    finally:
        try:
            await connection.close(timeout=CLOSE_TIMEOUT_S)
        except (*_OF_THE_DRIVER, asyncpg.PostgresError, OSError):
            connection.terminate()


async def format_of(connection: asyncpg.Connection, table: str) -> str | None:
    """The comment of `table`, empty if it has none; None if there is no such table."""
    found: str | None = await connection.fetchval(
        "SELECT coalesce(obj_description(to_regclass($1)), '') WHERE to_regclass($1) IS NOT NULL",
        table,
    )
    return found


async def prepare_tables(
    connection: asyncpg.Connection, database: PostgresSchema, table: str, statements: str
) -> str:
    """Create the schema and, by `statements`, the tables, unless `table` exists; return its
    comment.

    Raises DatabaseRefused if the database's encoding is not UTF8.
    """
    with database_errors():
        encoding = await connection.fetchval("SHOW server_encoding")
        if encoding != "UTF8":
            raise DatabaseRefused(
                f"The database's encoding is {encoding}; {database.part} needs one in UTF8."
            )
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MAKING_TABLES)
            if (found := await format_of(connection, table)) is not None:
                return found
            schema = f'"{database.schema}"'
            if not await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema):
                await connection.execute(f"CREATE SCHEMA {schema}")
            await connection.execute(statements)
            return await format_of(connection, table) or ""


async def lock(
    connection: asyncpg.Connection, database: PostgresSchema, key: int, *, wait: bool
) -> bool:
    """Lock `key` against other processes of this part while the connection lives; return whether it
    is locked. `wait`: until it is free."""
    function = "pg_advisory_lock" if wait else "pg_try_advisory_lock"
    with database_errors():
        got = await connection.fetchval(
            f"SELECT {function}(hashtext($1), $2)",
            f"{database.part} {database.schema}",
            key,
            timeout=NO_TIMEOUT_S,
        )
    return wait or bool(got)
