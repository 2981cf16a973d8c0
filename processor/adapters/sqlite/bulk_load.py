"""Load an empty table in bulk: rows first, indexes when all are there. An unfinished load is
discarded.

An index on random keys costs as much as the rows themselves while these come in, and a tenth of it
when it is sorted in the end. So of a key that comes twice both rows are kept until then; the newer
has the higher row number.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import orjson

from processor.adapters.sqlite import row_codec as records
from processor.adapters.sqlite import statements
from processor.adapters.sqlite.ledger import ROW_WIDTH, Ledger
from processor.engine.rows import Checkpoint, RestoreChunk

INDEXES: Final = tuple(
    statement.strip()
    for statement in "".join(
        line
        for line in Path(__file__).with_name("indexes.sql").read_text().splitlines(keepends=True)
        if not line.startswith("--")
    ).split(";")
    if statement.strip()
)
KEYS: Final = {"flow": "id", "step": "flow_id, run_id"}
"""What no two rows of a table have alike."""
GONE_REVISION: Final = -1
"""Of a row that says that its flow is gone; a step's has no document."""
# SQLite takes what repeats the document out of it, in its own thread and without the GIL: the event
# loop reads the next records meanwhile.
FLOWS: Final = """
    INSERT INTO flow
        (n, id, last_event_id, chain, crc, due_ms, doc, revision, status, owner, updated_at)
    SELECT *, json_extract(column7, '$.revision'), json_extract(column7, '$.status'),
        json_extract(column7, '$.owner_session_key'), json_extract(column7, '$.updated_at')
    FROM (VALUES :rows)
"""
FLOWS_GONE: Final = f"""
    INSERT INTO flow
        (n, id, last_event_id, chain, crc, due_ms, doc, revision, status, owner, updated_at)
    SELECT column1, column2, 0, '', 0, NULL, '', {GONE_REVISION}, '', '', '' FROM (VALUES :rows)
"""
NUL: Final = b"\\u0000"
STEPS: Final = """
    INSERT INTO step (flow_id, run_id, status, due_ms, input_bytes, crc, doc) VALUES :rows
"""
TOTALS: Final = """
    UPDATE flow SET steps = totals_doc(n, s.steps, s.live, s.bytes, s.unsuccessful)
    FROM (
        SELECT flow_id, count(*) AS steps, count(due_ms) AS live, sum(input_bytes) AS bytes,
            count(*) FILTER (WHERE status = 4 OR status = 5) AS unsuccessful
        FROM step GROUP BY flow_id
    ) AS s
    WHERE flow.id = s.flow_id
"""
LEDGER: Final = "INSERT INTO ledger (n, tag, entry, details) VALUES :rows"
SIZES: Final = (2_048, 512, 128, 32, 8, 2, 1)
"""Rows in a statement, at first as many as are read at once: at the end of each, its thread waits
for the GIL. Few sizes: a statement stays prepared, and keeps what it was given last."""
OFF: Final = 0
CHECKPOINT_TRIES: Final = 30
"""How often to wait for readers (a second each) before the restored rows are made durable."""


def prepare(db: sqlite3.Connection, unfinished: Checkpoint) -> None:
    """Remove rows and indexes; the table stands at `unfinished`, also if the power goes."""
    db.execute("BEGIN IMMEDIATE")
    for table in statements.CLEAR:
        db.execute(f"DELETE FROM {table}")
    for name in _names():
        db.execute(f"DROP INDEX IF EXISTS {name}")
    _store(db, unfinished)
    db.commit()
    if _is_durable(db):  # else a reader has the old rows, and each step is made so
        db.execute("PRAGMA synchronous = OFF")
    db.execute("PRAGMA temp_store = FILE")  # an index may be sorted that memory does not hold


def put(db: sqlite3.Connection, next_row_number: int, ledger: Ledger, chunk: RestoreChunk) -> int:
    """Add rows; the row number after the last flow's."""
    gone = list(enumerate(chunk.flows_gone, next_row_number))
    next_row_number += len(gone)
    flows = list(map(records.snapshot_values, range(next_row_number, 2**63), chunk.flows))
    db.execute("BEGIN IMMEDIATE")
    _insert(db, FLOWS_GONE, 2, gone)
    _insert(db, FLOWS, 7, flows)
    db.executemany("UPDATE flow SET owner = ? WHERE n = ?", _cut_short(chunk, next_row_number))
    _insert(db, STEPS, 7, [(*at, None, None, 0, 0, "") for at in chunk.steps_gone])
    _insert(db, STEPS, 7, list(map(records.step_snapshot_values, chunk.steps)))
    if chunk.ledger_entries:
        entries = list(chain.from_iterable(map(records.ledger_values, chunk.ledger_entries)))
        ledger.append(entries)
        _insert(db, LEDGER, ROW_WIDTH, list(zip(*[iter(entries)] * ROW_WIDTH, strict=True)))
        for statement in ledger.sealing():
            db.execute(*statement)
    db.commit()
    return next_row_number + len(flows)


def finish(db: sqlite3.Connection, after: Checkpoint) -> None:
    """Keep the newest row of each key, make the indexes, and take `after` as the position once all
    the rest is on the disk."""
    for statement in INDEXES[: len(KEYS)]:
        table = statement.partition(" ON ")[2].partition(" ")[0]
        try:
            db.execute(statement)
        except sqlite3.IntegrityError:
            _drop_older(db, table, KEYS[table])
            db.execute(statement)
    db.execute(f"DELETE FROM flow WHERE revision = {GONE_REVISION}")
    db.execute("DELETE FROM step WHERE doc = ''")
    db.create_function("totals_doc", 5, records.totals_doc, deterministic=True)
    db.execute(TOTALS)
    for statement in INDEXES[len(KEYS) :]:
        db.execute(statement)
    ((synchronous,),) = db.execute("PRAGMA synchronous").fetchall()
    if synchronous == OFF:
        _make_durable(db)
    db.execute("BEGIN IMMEDIATE")
    db.execute("DELETE FROM stored")
    _store(db, after)
    db.commit()


def ensure_indexes(db: sqlite3.Connection, _: None = None) -> None:
    """Make the indexes that an interrupted restore has left out."""
    for statement in INDEXES:
        db.execute(statement.replace(" INDEX ", " INDEX IF NOT EXISTS ", 1))


def _names() -> Iterator[str]:
    for statement in INDEXES:
        yield statement.partition("INDEX ")[2].partition(" ")[0]


def _cut_short(chunk: RestoreChunk, first_row_number: int) -> Iterator[tuple[str, int]]:
    """Owners with a NUL in them, where json_extract ends, and the numbers of their flows."""
    for row_number, snapshot in enumerate(chunk.flows, first_row_number):
        if NUL in snapshot.doc:
            yield orjson.loads(snapshot.doc)["owner_session_key"], row_number


def _insert(db: sqlite3.Connection, text: str, width: int, rows: Sequence[Sequence[Any]]) -> None:
    row = f"({','.join('?' * width)})"
    start = 0
    for size in SIZES:
        while len(rows) - start >= size:
            values = ",".join([row] * size)
            some = chain.from_iterable(rows[start : start + size])
            db.execute(text.replace(":rows", values), list(some))
            start += size


def _drop_older(db: sqlite3.Connection, table: str, key: str) -> None:
    names = key.split(", ")
    next_ = ", ".join(f"lead({name}) OVER keys AS next_{name}" for name in names)
    same = " AND ".join(f"{name} = next_{name}" for name in names)
    db.execute(f"CREATE INDEX filling ON {table} ({key})")
    db.execute(
        f"""
        DELETE FROM {table} WHERE n IN (
            SELECT n FROM (
                SELECT n, {key}, {next_} FROM {table} INDEXED BY filling
                WINDOW keys AS (ORDER BY {key}, n)
            ) WHERE {same}
        )
        """
    )
    db.execute("DROP INDEX filling")


def _store(db: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    db.execute(
        "INSERT INTO stored VALUES (1, ?, ?, ?, ?, ?, ?)", records.checkpoint_values(checkpoint)
    )


def _make_durable(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA synchronous = NORMAL")
    for _ in range(CHECKPOINT_TRIES):
        # A checkpoint waits for the disk only if it has something to write.
        db.execute("UPDATE stored SET as_of_ms = as_of_ms")
        if _is_durable(db):
            return
    raise sqlite3.OperationalError("a reader holds the table for too long: it cannot be restored")


def _is_durable(db: sqlite3.Connection) -> bool:
    """Whether everything that was committed is in the file now, and the file on the disk."""
    ((busy, *_),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    return not busy
