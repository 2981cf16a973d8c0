"""Errors of the local table. The table is a cache of Kafka, so none of them loses a flow."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from processor.errors import TableDistrusted, TaskflowError

# The low byte of an extended result code is the primary one.
_PRIMARY = 0xFF
_CORRUPT = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class TableConflict(TableDistrusted):
    """The table is not what the batch was decided on; nothing of the batch was written.

    Someone else wrote it: take the partition over again.
    """


class TableCorrupt(TableDistrusted):
    """A row or the file says what was never written; nothing from it can be believed.

    The file is removed when the table closes, and the next owner starts from an empty one.
    """


class TableFailed(TaskflowError):
    """SQLite could not do it: disk full, I/O error, locked; nothing of the batch was written."""

    retriable = True


class StateDirInUse(TaskflowError):
    """Another worker holds the state directory; this one must not start on it."""


class StateDirUnusable(TaskflowError):
    """The state directory cannot be made or written, so that no worker can start on it."""


def is_corruption(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is damaged, or no database at all."""
    # Errors of the module itself, before SQLite was asked, carry no code.
    return getattr(error, "sqlite_errorcode", 0) & _PRIMARY in _CORRUPT


@contextmanager
def as_table_errors(path: Path) -> Iterator[None]:
    """Says what SQLite says in our words."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise TableConflict(f"{path} already holds what was to be inserted: {error}") from error
    except sqlite3.Error as error:
        if is_corruption(error):
            raise TableCorrupt(f"{path} is damaged: {error}") from error
        raise TableFailed(f"{path} could not be used: {error}") from error
