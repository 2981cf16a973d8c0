"""A PostgreSQL of the tests' own, in a temporary directory, reached by a Unix socket."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from tests.support.machine import patience

_DEBIAN: Final = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
"""Not on the path: several versions may be installed."""
OPTIONS: Final = ("listen_addresses=", "fsync=off", "full_page_writes=off", "shared_buffers=32MB")
"""Tests need neither durability nor a port."""


def program(name: str) -> str | None:
    return shutil.which(name) or next(
        (str(folder / name) for folder in reversed(_DEBIAN) if (folder / name).exists()), None
    )


needs_postgres = pytest.mark.skipif(
    program("initdb") is None,
    reason="there is no PostgreSQL here (on Debian: apt-get install postgresql)",
)


def _account() -> str | None:
    """Whom to run it as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class PostgresServer:
    """A server with its data in a directory of its own."""

    def __init__(self, home: Path, *options: str) -> None:
        self._options = (*OPTIONS, *options)
        self.dsn = f"postgresql://taskflow@/postgres?host={home}"
        self._home = home
        self._data = str(home / "data")
        self._account = _account()
        if self._account is not None:
            shutil.chown(home, self._account)

    def initialize(self) -> None:
        self._run(
            *("initdb", "-D", self._data, "-U", "taskflow", "-A", "trust", "-E", "UTF8"),
            *("--locale=C", "--no-sync", "--no-instructions"),
        )

    def start(self) -> None:
        options = " ".join(f"-c {option}" for option in self._options)
        self._control("-l", str(self._home / "log"), "-o", f"{options} -k {self._home}", "start")

    def stop(self) -> None:
        """End it at once, with all its connections; it recovers from its log when it starts."""
        self._control("-m", "immediate", "stop")

    def _control(self, *arguments: str) -> None:
        how = ("-D", self._data, "-w", "-t", f"{patience(60):.0f}")
        self._run("pg_ctl", *how, *arguments)

    def _run(self, name: str, *arguments: str) -> None:
        path = program(name)
        assert path is not None
        done = subprocess.run(
            (path, *arguments),
            user=self._account,
            cwd=self._home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def running_server(*options: str) -> Iterator[PostgresServer]:
    """A server that ends with the block; `options` are more settings of PostgreSQL."""
    with tempfile.TemporaryDirectory(prefix="taskflow-pg") as name:
        server = PostgresServer(Path(name), *options)
        server.initialize()
        server.start()
        try:
            yield server
        finally:
            server.stop()


@contextmanager
def running_postgres() -> Iterator[str]:
    """The DSN of a server that ends with the block."""
    with running_server() as server:
        yield server.dsn


@asynccontextmanager
async def database(dsn: str, schema: str = "public") -> AsyncIterator[asyncpg.Connection]:
    """A connection beside the sink's."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": schema})
    try:
        yield connection
    finally:
        await connection.close()
