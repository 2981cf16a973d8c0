"""Keep a verification's working state in a temporary SQLite file: memory stays bounded for any
number of flows.
"""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import orjson

from processor.errors import TaskflowError
from processor.ops.verify.contract import Doc, canonical
from processor.ops.verify.steps.store import SCHEMA as _MANAGED_STEPS
from processor.ops.verify.steps.store import StepStore

PAGES_KIB: Final = 32 * 1024
CACHED_FLOWS: Final = 4_000
CACHED_BYTES: Final = 16 * 1024 * 1024
FORGET_AFTER: Final = 50_000
"""How many outcomes come in before those that are too old are looked for."""

_SEEN: Final = """
    CREATE TABLE {0}_flow (
        n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, signature BLOB NOT NULL,
        revision INTEGER, status TEXT, last_event_id INTEGER, chain BLOB, place INTEGER
    );
    CREATE TABLE {0}_step (
        n INTEGER PRIMARY KEY, flow_id TEXT NOT NULL, run_id TEXT NOT NULL, digest BLOB NOT NULL,
        place INTEGER, UNIQUE (flow_id, run_id)
    );
"""
_SCHEMA: Final = f"""
    CREATE TABLE flow (
        n INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, last_event_id INTEGER NOT NULL,
        chain BLOB NOT NULL, whole INTEGER NOT NULL, doc BLOB
    );
    CREATE TABLE step (
        n INTEGER PRIMARY KEY, flow_id TEXT NOT NULL, run_id TEXT NOT NULL, digest BLOB NOT NULL,
        child TEXT, created_at TEXT, status TEXT, doc BLOB, UNIQUE (flow_id, run_id)
    );
    {_MANAGED_STEPS}
    CREATE TABLE answer (
        n INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, at_ms INTEGER NOT NULL,
        command TEXT, answer BLOB NOT NULL
    );
    CREATE TABLE copy (n INTEGER PRIMARY KEY, origin TEXT NOT NULL, digest BLOB NOT NULL);
    CREATE TABLE forwarded (
        n INTEGER PRIMARY KEY, origin TEXT NOT NULL, digest BLOB NOT NULL, home INTEGER NOT NULL,
        at_ms INTEGER NOT NULL, partition INTEGER NOT NULL, offset INTEGER NOT NULL, flow_id TEXT
    );
    {_SEEN.format("state")}
"""
_OF_A_PARTITION: Final = ("flow", "step", "answer", "state_flow", "state_step")


class ScratchFailed(TaskflowError):
    """The temporary file could not be written, for want of room for instance; nothing was
    verified. TMPDIR chooses another place."""


class FoldedFlow:
    """A flow as folded so far. `doc` None: it is gone, which is kept only where the fold did
    not begin at the beginning. Not `whole`: its first events were not seen, and `doc` holds the
    fields that are known."""

    __slots__ = ("chain", "dirty", "doc", "last_event_id", "weight", "whole")

    def __init__(
        self, doc: Doc | None, last_event_id: int, chain: bytes, whole: bool, weight: int
    ) -> None:
        self.doc = doc
        self.last_event_id = last_event_id
        self.chain = chain
        self.whole = whole
        self.weight = weight
        self.dirty = False


class SeenFlow(NamedTuple):
    """A flow as `state` or a table has it."""

    flow_id: str
    signature: bytes
    revision: int | None
    status: str | None
    last_event_id: int
    chain: bytes
    place: int


class SeenStep(NamedTuple):
    flow_id: str
    run_id: str
    digest: bytes
    place: int


class SeenOutcome(NamedTuple):
    """The first outcome of a command: its time, its command's digest, and what a resend repeats."""

    at_ms: int
    command: str | None
    repeated: bytes


class Forwarded(NamedTuple):
    """What a forwarded outcome promises."""

    origin: str
    digest: bytes
    home: int
    at_ms: int
    partition: int
    offset: int
    flow_id: str | None


@contextmanager
def open_scratch(directory: Path | None = None) -> Iterator["ScratchStore"]:
    """An empty one, removed in the end. Raises ScratchFailed, also out of the block."""
    try:
        with TemporaryDirectory(prefix="taskflow-verify-", dir=directory) as home:
            db = sqlite3.connect(Path(home) / "scratch.db", isolation_level=None)
            try:
                yield ScratchStore(db)
            finally:
                db.close()
    except sqlite3.Error as error:
        raise ScratchFailed(f"The temporary file in {directory or 'TMPDIR'}: {error}.") from error


class ScratchStore:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        for setting in (
            *("journal_mode = OFF", "synchronous = OFF", "locking_mode = EXCLUSIVE"),
            *("temp_store = FILE", f"cache_size = -{PAGES_KIB}"),
        ):
            db.execute(f"PRAGMA {setting}")
        db.executescript(_SCHEMA)
        self.managed = StepStore(db)
        # One transaction that never ends: nothing of this is to survive.
        db.execute("BEGIN")
        self._flows: OrderedDict[str, FoldedFlow | None] = OrderedDict()
        self._weight = 0
        self._outcomes = 0
        self._forget_at = FORGET_AFTER
        self._snapshots: list[str] = []

    def next_partition(self) -> None:
        """Forget the last one."""
        self._flows.clear()
        self._weight = self._outcomes = 0
        self._forget_at = FORGET_AFTER
        for name in _OF_A_PARTITION:
            self._db.execute(f"DELETE FROM {name}")
        for snapshot in self._snapshots:
            self.clear_seen(snapshot)

    def place(self, nth: int) -> str:
        """The name of the place for the nth table of a partition, which is empty."""
        while len(self._snapshots) <= nth:
            self._snapshots.append(f"image{len(self._snapshots)}")
            for statement in _SEEN.format(self._snapshots[-1]).split(";"):
                self._db.execute(statement)
        return self._snapshots[nth]

    # Folded flows

    def flow(self, flow_id: str) -> FoldedFlow | None:
        if flow_id in self._flows:
            self._flows.move_to_end(flow_id)
            return self._flows[flow_id]
        row = self._db.execute(
            "SELECT last_event_id, chain, whole, doc FROM flow WHERE id = ?", (flow_id,)
        ).fetchone()
        entry = None
        if row is not None:
            last_event_id, chain, whole, doc = row
            known = None if doc is None else orjson.loads(doc)
            entry = FoldedFlow(known, last_event_id, chain, bool(whole), len(doc or b""))
        self._keep(flow_id, entry)
        return entry

    def put_flow(self, flow_id: str, entry: FoldedFlow) -> None:
        self._forget(flow_id)
        entry.dirty = True
        self._keep(flow_id, entry)

    def drop_flow(self, flow_id: str) -> None:
        """The flow, but not its steps."""
        self._forget(flow_id)
        self._db.execute("DELETE FROM flow WHERE id = ?", (flow_id,))

    def _forget(self, flow_id: str) -> None:
        old = self._flows.pop(flow_id, None)
        self._weight -= old.weight if old else 0

    def _keep(self, flow_id: str, entry: FoldedFlow | None) -> None:
        self._flows[flow_id] = entry
        self._weight += entry.weight if entry else 0
        if len(self._flows) > CACHED_FLOWS or self._weight > CACHED_BYTES:
            self.flush()
            while len(self._flows) > CACHED_FLOWS // 2 or self._weight > CACHED_BYTES // 2:
                _, old = self._flows.popitem(last=False)
                self._weight -= old.weight if old else 0

    def flush(self) -> None:
        """Write what was changed."""
        rows = []
        for flow_id, entry in self._flows.items():
            if entry is not None and entry.dirty:
                doc = None if entry.doc is None else canonical(entry.doc)
                if doc is not None:
                    self._weight += len(doc) - entry.weight
                    entry.weight = len(doc)
                entry.dirty = False
                rows.append((flow_id, entry.last_event_id, entry.chain, entry.whole, doc))
        self._db.executemany(
            "INSERT INTO flow (id, last_event_id, chain, whole, doc) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (id) DO UPDATE SET last_event_id = excluded.last_event_id, "
            "chain = excluded.chain, whole = excluded.whole, doc = excluded.doc",
            rows,
        )

    # Folded steps

    def step(self, flow_id: str, run_id: str) -> tuple[str | None, str | None] | None:
        """`child_session_key` and `created_at` of a step; None if there is no such step."""
        row: tuple[str | None, str | None] | None = self._db.execute(
            "SELECT child, created_at FROM step WHERE flow_id = ? AND run_id = ?",
            (flow_id, run_id),
        ).fetchone()
        return row

    def step_digest(self, flow_id: str, run_id: str) -> bytes | None:
        """The digest of a step; None if there is no such step."""
        row = self._db.execute(
            "SELECT digest FROM step WHERE flow_id = ? AND run_id = ?", (flow_id, run_id)
        ).fetchone()
        return None if row is None else row[0]

    def put_step(
        self, flow_id: str, run_id: str, digest: bytes, child: str | None, created_at: str | None
    ) -> None:
        self._db.execute(
            "INSERT INTO step (flow_id, run_id, digest, child, created_at) VALUES (?, ?, ?, ?, ?) "
            "ON CONFLICT (flow_id, run_id) DO UPDATE SET digest = excluded.digest, "
            "child = excluded.child, created_at = excluded.created_at",
            (flow_id, run_id, digest, child, created_at),
        )

    def drop_steps(self, flow_id: str) -> None:
        self._db.execute("DELETE FROM step WHERE flow_id = ?", (flow_id,))

    def counts(self) -> tuple[int, int]:
        """Flows and steps that are."""
        self.flush()
        ((flows,),) = self._db.execute("SELECT count(*) FROM flow WHERE doc IS NOT NULL")
        ((steps,),) = self._db.execute("SELECT count(*) FROM step")
        return flows, steps

    # Outcomes

    def outcome(self, key: bytes) -> SeenOutcome | None:
        row = self._db.execute(
            "SELECT at_ms, command, answer FROM answer WHERE key = ?", (key,)
        ).fetchone()
        return None if row is None else SeenOutcome(*row)

    def put_outcome(self, key: bytes, outcome: SeenOutcome) -> None:
        self._outcomes += 1
        self._db.execute("INSERT OR REPLACE INTO answer VALUES (NULL, ?, ?, ?, ?)", (key, *outcome))

    def forget_outcomes(self, before_ms: int) -> None:
        """Drop those that are older; seldom enough that it costs each outcome next to nothing."""
        if self._outcomes >= self._forget_at:
            self._db.execute("DELETE FROM answer WHERE at_ms < ?", (before_ms,))
            ((self._outcomes,),) = self._db.execute("SELECT count(*) FROM answer")
            self._forget_at = max(2 * self._outcomes, FORGET_AFTER)

    # What state and a table say

    def put_seen(
        self, where: str, flows: Iterable[SeenFlow] = (), steps: Iterable[SeenStep] = ()
    ) -> None:
        """`where`: `state`, or what `image` names."""
        try:
            self._db.executemany(
                f"INSERT OR REPLACE INTO {where}_flow VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", flows
            )
            self._db.executemany(
                f"INSERT OR REPLACE INTO {where}_step VALUES (NULL, ?, ?, ?, ?)", steps
            )
        except sqlite3.Error as error:  # not to be taken for one of the table that is copied
            raise ScratchFailed(f"The temporary file: {error}.") from error

    def drop_seen(self, where: str, flows: Iterable[str], steps: Iterable[tuple[str, str]]) -> None:
        self._db.executemany(f"DELETE FROM {where}_flow WHERE id = ?", ((f,) for f in flows))
        self._db.executemany(f"DELETE FROM {where}_step WHERE flow_id = ? AND run_id = ?", steps)

    def clear_seen(self, where: str) -> None:
        self._db.execute(f"DELETE FROM {where}_flow")
        self._db.execute(f"DELETE FROM {where}_step")

    def flow_pairs(self, where: str) -> Iterator[tuple[str, FoldedFlow, SeenFlow | None]]:
        """Each folded flow with what is seen of it."""
        self.flush()
        for row in self._db.execute(
            f"SELECT f.id, f.doc, f.last_event_id, f.chain, f.whole, s.id, s.signature, s.revision,"
            f" s.status, s.last_event_id, s.chain, s.place "
            f"FROM flow f LEFT JOIN {where}_flow s ON s.id = f.id"
        ):
            flow_id, doc, last_event_id, chain, whole, *seen = row
            known = None if doc is None else orjson.loads(doc)
            entry = FoldedFlow(known, last_event_id, chain, bool(whole), 0)
            yield flow_id, entry, None if seen[0] is None else SeenFlow(*seen)

    def flows_only(self, where: str) -> Iterator[SeenFlow]:
        """What is seen of flows that the fold does not know."""
        self.flush()
        for row in self._db.execute(
            f"SELECT id, signature, revision, status, last_event_id, chain, place "
            f"FROM {where}_flow s WHERE NOT EXISTS (SELECT 1 FROM flow f WHERE f.id = s.id)"
        ):
            yield SeenFlow(*row)

    def unequal_steps(self, where: str) -> Iterator[tuple[str, str, int]]:
        """Flow, run id and place (-1: nowhere) of each folded step that is not seen as it is."""
        yield from self._db.execute(
            f"SELECT f.flow_id, f.run_id, coalesce(s.place, -1) FROM step f "
            f"LEFT JOIN {where}_step s ON s.flow_id = f.flow_id AND s.run_id = f.run_id "
            f"WHERE s.digest IS NULL OR s.digest <> f.digest"
        )

    def steps_only(self, where: str) -> Iterator[tuple[str, str, int]]:
        """Flow, run id and place of each step that is seen and not folded."""
        yield from self._db.execute(
            f"SELECT flow_id, run_id, place FROM {where}_step s WHERE NOT EXISTS "
            f"(SELECT 1 FROM step f WHERE f.flow_id = s.flow_id AND f.run_id = s.run_id)"
        )

    # What crosses partitions

    def put_copy(self, origin: str, digest: bytes) -> None:
        self._db.execute("INSERT INTO copy VALUES (NULL, ?, ?)", (origin, digest))

    def put_forwarded(self, one: Forwarded) -> None:
        self._db.execute("INSERT INTO forwarded VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", one)

    def forward_pairs(self) -> Iterator[tuple[Forwarded, bool | None]]:
        """Each forwarded record, and whether one of its copies is the same; None if there is none.
        Any sender may write a record that says it is one."""
        self._db.execute("CREATE INDEX IF NOT EXISTS copy_origin ON copy (origin)")
        for row in self._db.execute(
            "SELECT f.origin, f.digest, f.home, f.at_ms, f.partition, f.offset, f.flow_id, "
            "max(c.digest = f.digest) FROM forwarded f "
            "LEFT JOIN copy c ON c.origin = f.origin GROUP BY f.n"
        ):
            yield Forwarded(*row[:-1]), None if row[-1] is None else bool(row[-1])
