"""Dump all rows of a table at rest in the order of their keys, to compare tables or to write
`state`.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from processor.adapters.sqlite import row_codec
from processor.adapters.sqlite.errors import as_table_errors

FLOW_COLUMNS: Final = (
    *("doc", "revision", "last_event_id", "chain"),
    *("status", "owner", "updated_at", "due_ms", "steps"),
)
STEP_COLUMNS: Final = ("doc", "status", "due_ms", "input_bytes")
LEDGER_COLUMNS: Final = (
    *("at_ms", "digest", "revision", "status"),
    *("first_event_id", "event_count", "refusal"),
)
_FLOWS: Final = """
    SELECT id, doc, revision, last_event_id, lower(hex(chain)), status, owner, updated_at, due_ms,
           rtrim(steps, '0123456789')
    FROM flow ORDER BY id
"""
"""Of `steps` without the CRC at its end, which covers the row's number."""
_STEPS: Final = """
    SELECT flow_id || '/' || run_id, doc, status, due_ms, input_bytes
    FROM step ORDER BY flow_id, run_id
"""
# An found without events may name the one that would have come next, or none.
_LEDGER: Final = """
    SELECT max(n), entry, details FROM ledger GROUP BY substr(entry, 1, 16)
    ORDER BY substr(entry, 1, 16)
"""

Row = tuple[str, tuple[Any, ...]]
"""A key and its columns."""


class Dump:
    """Made by `dump`; each iterator reads as it goes, in no order but its own."""

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path

    def flows(self) -> Iterator[Row]:
        return self._rows(_FLOWS)

    def steps(self) -> Iterator[Row]:
        """By flow id and run id, joined by a slash."""
        return self._rows(_STEPS)

    def ledger_entries(self, since_ms: int) -> Iterator[Row]:
        """Of commands that were appended at `since_ms` or later."""
        with as_table_errors(self._path):
            for _, entry, details in self._db.execute(_LEDGER):
                found = row_codec.ledger_entry(entry, (details or "").encode())
                if found.at_ms >= since_ms:
                    first = found.first_event_id if found.event_count else 0
                    yield (
                        found.key.hex(),
                        (
                            *(found.at_ms, found.digest.hex(), found.revision, found.status),
                            *(first, found.event_count, details),
                        ),
                    )

    def counts(self) -> tuple[int, int, int]:
        """How many flows, steps and ledger entries."""
        with as_table_errors(self._path):
            ((flows, steps, ledger_entries),) = self._db.execute(
                "SELECT (SELECT count(*) FROM flow), (SELECT count(*) FROM step), "
                "(SELECT count(*) FROM ledger)"
            )
        return flows, steps, ledger_entries

    def _rows(self, sql: str, *parameters: Any) -> Iterator[Row]:
        with as_table_errors(self._path):
            for key, *columns in self._db.execute(sql, parameters):
                yield key, tuple(columns)


@contextmanager
def dump(path: Path) -> Iterator[Dump]:
    """The table at `path`, which must be closed. Raises TableFailed, TableCorrupt."""
    with as_table_errors(path):
        db = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro&immutable=1", uri=True)
    with closing(db):
        yield Dump(db, path)
