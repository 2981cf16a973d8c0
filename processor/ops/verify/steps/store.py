"""Keep managed steps, and the work items that they must have, in a verification's scratch file."""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from typing import Final, NamedTuple

import orjson

from processor.ops.verify.contract import Doc, canonical

SCHEMA: Final = """
    CREATE INDEX managed_step ON step (flow_id, status) WHERE status IS NOT NULL;
    CREATE TABLE offering (event_id INTEGER PRIMARY KEY, item BLOB);
    CREATE TABLE awaited (
        flow_id TEXT NOT NULL, run_id TEXT NOT NULL, event_id INTEGER NOT NULL UNIQUE,
        at_ms INTEGER NOT NULL, offset INTEGER NOT NULL, PRIMARY KEY (flow_id, run_id)
    ) WITHOUT ROWID;
"""


class Awaited(NamedTuple):
    """The newest offering of a step that is pending still, whose work item was not seen. `offset`
    is that of its event on `audit`, `at_ms` the event's time."""

    flow_id: str
    run_id: str
    event_id: int
    at_ms: int
    offset: int


class StepStore:
    """Managed steps as they are folded, of one partition at a time; offerings of all partitions."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    # Folded steps

    def get(self, flow_id: str, run_id: str) -> Doc | None:
        """A managed step; None if there is none, or only an observed one."""
        row = self._db.execute(
            "SELECT doc FROM step WHERE flow_id = ? AND run_id = ?", (flow_id, run_id)
        ).fetchone()
        if row is None or row[0] is None:
            return None
        doc: Doc = orjson.loads(row[0])
        return doc

    def put(self, step: Doc, digest: bytes) -> None:
        self._db.execute(
            "INSERT INTO step (flow_id, run_id, digest, child, created_at, status, doc) "
            "VALUES (?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (flow_id, run_id) DO UPDATE SET digest = excluded.digest, "
            "child = excluded.child, created_at = excluded.created_at, "
            "status = excluded.status, doc = excluded.doc",
            (
                *(step["flow_id"], step["run_id"], digest, step["child_session_key"]),
                *(step["created_at"], step["status"], canonical(step)),
            ),
        )

    def statuses(
        self, flow_id: str, run_ids: Sequence[str] | None, statuses: Collection[str] | None
    ) -> dict[str, int]:
        """How many managed steps of a flow there are by status: of those named, or of all."""
        where, values = "flow_id = ? AND status IS NOT NULL", [flow_id]
        for name, some in (("run_id", run_ids), ("status", statuses)):
            if some is not None:
                where += f" AND {name} IN ({','.join('?' * len(some))})"
                values += some
        return dict(
            self._db.execute(f"SELECT status, count(*) FROM step WHERE {where} GROUP BY 1", values)
        )

    def live(self) -> Iterator[Doc]:
        """The steps of the partition that are pending or running."""
        for (doc,) in self._db.execute(
            "SELECT doc FROM step WHERE status IN ('pending', 'running')"
        ):
            yield orjson.loads(doc)

    # Offerings and their work items

    def offered(self, awaited: Awaited, item: bytes | None) -> None:
        """Note an offering, which replaces the step's last one. `item` is the digest of its work
        item; None: what the item must say is not known."""
        self._db.execute("INSERT OR REPLACE INTO offering VALUES (?, ?)", (awaited.event_id, item))
        self._db.execute("INSERT OR REPLACE INTO awaited VALUES (?, ?, ?, ?, ?)", awaited)

    def taken(self, flow_id: str, run_id: str) -> None:
        """Note that a step is offered no more: it was started, or has ended."""
        self._db.execute("DELETE FROM awaited WHERE flow_id = ? AND run_id = ?", (flow_id, run_id))

    def offering(self, event_id: int) -> tuple[bool, bytes | None]:
        """Whether the event offered its step, and the digest of the work item, if it is known."""
        row = self._db.execute(
            "SELECT item FROM offering WHERE event_id = ?", (event_id,)
        ).fetchone()
        return (False, None) if row is None else (True, row[0])

    def seen(self, event_id: int) -> None:
        """Note a work item of the offering."""
        self._db.execute("DELETE FROM awaited WHERE event_id = ?", (event_id,))

    def awaited(self) -> Iterator[Awaited]:
        """The offerings whose items are awaited still, in order of their events."""
        for row in self._db.execute(
            "SELECT flow_id, run_id, event_id, at_ms, offset FROM awaited ORDER BY event_id"
        ):
            yield Awaited(*row)
