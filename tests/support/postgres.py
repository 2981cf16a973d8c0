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


@contextmanager
def running_postgres() -> Iterator[str]:
    """The DSN of a server that ends with the block."""
    initdb, postgres, pg_ctl = (program(name) for name in ("initdb", "postgres", "pg_ctl"))
    assert initdb is not None
    assert postgres is not None
    assert pg_ctl is not None
    account = _account()
    with tempfile.TemporaryDirectory(prefix="taskflow-pg") as name:
        home, data = Path(name), Path(name) / "data"
        if account is not None:
            shutil.chown(home, account)

        def run(*command: str) -> None:
            done = subprocess.run(
                command, user=account, cwd=home, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr

        run(
            *(initdb, "-D", str(data), "-U", "taskflow", "-A", "trust", "-E", "UTF8"),
            *("--locale=C", "--no-sync", "--no-instructions"),
        )
        options = " ".join(f"-c {option}" for option in OPTIONS)
        log = str(home / "log")
        run(pg_ctl, "-D", str(data), "-w", "-l", log, "-o", f"{options} -k {home}", "start")
        try:
            yield f"postgresql://taskflow@/postgres?host={home}"
        finally:
            run(pg_ctl, "-D", str(data), "-w", "-m", "immediate", "stop")


@asynccontextmanager
async def database(dsn: str, schema: str = "public") -> AsyncIterator[asyncpg.Connection]:
    """A connection beside the sink's."""
    connection = await asyncpg.connect(dsn, server_settings={"search_path": schema})
    try:
        yield connection
    finally:
        await connection.close()
