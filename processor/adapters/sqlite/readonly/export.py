"""Write the file of `taskflow export`: flows, steps and events in one SQLite database."""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import orjson

from processor.adapters.sqlite.errors import as_table_errors
from processor.contract.headers import chain_of
from processor.contract.state import CURSOR_PREFIX
from processor.engine.codec import Record
from processor.engine.ports import OffsetRange
from processor.engine.rows import Position

# Made when all is in: row by row, they would cost more than the rows.
INDEXES: Final = (
    "CREATE INDEX event_flow ON event (flow_id, id)",
    "CREATE INDEX event_at ON event (at)",
    "CREATE INDEX flow_updated ON flow (updated_at)",
    "CREATE INDEX step_task ON step (task, status)",
)


class Export:
    """Made by `exporting`; one partition after the other is put in."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def about(self, prefix: str, partitions: int, made_at: str) -> None:
        self._db.execute("INSERT INTO about VALUES (?, ?, ?)", (prefix, partitions, made_at))

    def cut(
        self, partition: int, offset_ranges: Mapping[str, OffsetRange], position: Position
    ) -> None:
        """What is put in of `partition` stands for these offsets."""
        rows = [
            (topic, partition, offset_range.start, offset_range.end)
            for topic, offset_range in offset_ranges.items()
        ]
        self._db.executemany("INSERT INTO cut VALUES (?, ?, ?, ?)", rows)
        self._db.execute("INSERT INTO position VALUES (?, ?, ?, ?)", (partition, *position))

    def state(self, partition: int, records: Iterable[Record]) -> None:
        """Snapshots in their order: the newest stands, a tombstone takes away."""
        for record in records:
            key = (record.key or b"").decode()
            if key.startswith(CURSOR_PREFIX):
                continue
            flow_id, slash, run_id = key.partition("/")
            value = None if record.value is None else orjson.loads(record.value)
            if slash:
                self._step(flow_id, run_id, value)
            else:
                self._flow(partition, flow_id, value)

    def _flow(self, partition: int, flow_id: str, value: dict[str, Any] | None) -> None:
        if value is None:
            self._db.execute("DELETE FROM flow WHERE id = ?", (flow_id,))
            return
        flow = value["flow"]
        row = (
            *(flow_id, partition, flow["status"], flow["revision"], flow["owner_session_key"]),
            *(flow["controller_id"], flow["goal"], flow["current_step"]),
            *(int(flow["cancel_requested"]), flow["created_at"], flow["updated_at"]),
            *(_text(flow["state_json"]), _or_null(flow["wait_json"])),
            *(value["last_event_id"], value["chain"], _text(flow)),
        )
        marks = ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR REPLACE INTO flow VALUES ({marks})", row)

    def _step(self, flow_id: str, run_id: str, value: dict[str, Any] | None) -> None:
        if value is None:
            sql = "DELETE FROM step WHERE flow_id = ? AND run_id = ?"
            self._db.execute(sql, (flow_id, run_id))
            return
        step = value["step"]
        names = ("runtime", "task", "status", "child_session_key", "created_at", "updated_at")
        execution = step.get("execution", {})
        row = (
            *(flow_id, run_id, *(step[name] for name in names)),
            _or_null(step["result_json"]),
            _text(step["input_json"]) if execution else None,
            *(execution.get(name) for name in ("attempt", "max_attempts", "due_at", "timeout_at")),
            *(_or_null(execution.get(name)) for name in ("progress", "last_failure")),
            _text(step),
        )
        marks = ", ".join("?" * len(row))
        self._db.execute(f"INSERT OR REPLACE INTO step VALUES ({marks})", row)

    def events(self, records: Iterable[Record]) -> None:
        names = ("id", "flow_id", "kind", "at", "revision", "status", "actor", "command_id")
        rows = []
        for record in records:
            event = orjson.loads(record.value or b"")
            chain = chain_of(record.headers).hex()
            doc = (record.value or b"").decode()
            about = (event[name] for name in names)
            rows.append((*about, record.partition, record.offset, chain, doc))
        self._db.executemany(f"INSERT INTO event VALUES ({', '.join('?' * 12)})", rows)

    def counts(self) -> dict[str, int]:
        return {
            f"{name}s": self._db.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in ("flow", "step", "event")
        }


@contextmanager
def exporting(path: Path) -> Iterator[Export]:
    """A file that is at `path` once the block has ended well, and not before; what was there is
    replaced. Raises TableFailed if it cannot be written."""
    part = path.with_name(path.name + ".part")
    with as_table_errors(part):
        part.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(part, isolation_level=None)) as db:
                # The file is not visible before it is whole, so nothing need be rolled back.
                db.execute("PRAGMA journal_mode = OFF")
                db.execute("PRAGMA synchronous = OFF")
                db.executescript(files(__package__).joinpath("export.sql").read_text("utf-8"))
                db.execute("BEGIN")
                yield Export(db)
                for index in INDEXES:
                    db.execute(index)
                db.execute("COMMIT")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _text(value: Any) -> str:
    return orjson.dumps(value).decode()


def _or_null(value: Any) -> str | None:
    return None if value is None else _text(value)
