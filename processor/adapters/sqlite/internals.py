"""Wrap what aiosqlite 0.22 has no public name for.

The only file of this adapter that touches a private name of aiosqlite. The reason: each statement
takes a turn of the connection's thread, and each turn waits for the event loop to come round; a
whole transaction takes one. `test_table` fails when the names move. The upstream discussion is
github.com/omnilib/aiosqlite issue 19.
"""

import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar

import aiosqlite

A = TypeVar("A")
R = TypeVar("R")


async def run_in_thread(
    connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection, A], R], what: A
) -> R:
    """Run `work` with SQLite's own connection and `what`, in the connection's thread."""
    turn: Callable[..., Awaitable[R]] = connection._execute
    return await turn(work, connection._conn, what)


async def data_version(connection: aiosqlite.Connection) -> int:
    """A number that changes when another connection has committed."""
    ((version,),) = await connection.execute_fetchall("PRAGMA data_version")
    return int(version)
