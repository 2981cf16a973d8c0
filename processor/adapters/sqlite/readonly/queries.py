"""Query tables from outside, also while a worker writes them. Read-only."""

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeVar

from pydantic import ValidationError

from processor.adapters.sqlite.errors import TableCorrupt, TableFailed, as_table_errors
from processor.adapters.sqlite.files import FORMAT
from processor.adapters.sqlite.integrity_check import CHECK, SOUND
from processor.contract.flow import Flow, FlowStatus
from processor.contract.steps import STEPS, Step
from processor.contract.values import instant
from processor.domain.waits import due_ms
from processor.errors import TableDistrusted

T = TypeVar("T")
Kind = Literal["flow", "step"]
"""Of a row, and of a record of `state`."""

BUSY_TIMEOUT_S: Final = 0.25
ATTEMPTS: Final = 3
ENDED_AT_ONCE: Final = 1000
"""Rows of a long list that are read before the table is let go again: a worker's log grows for as
long as a reader is open."""


class FlowView(NamedTuple):
    """A flow, its newest event's id and chain, and its steps in the order of their creation."""

    flow: Flow
    last_event_id: int
    chain: bytes
    steps: list[Step]


class Ended(NamedTuple):
    """A terminal flow and its last change; of its goal the beginning."""

    flow_id: str
    updated_at: str
    status: FlowStatus
    revision: int
    owner: str
    goal: str


class Progress(NamedTuple):
    """Of how many partitions a table holds one, and the next offset of `audit` it has not seen."""

    partitions: int
    audit: int


class Whole(NamedTuple):
    """A table as it is at one moment; its rows are read as they are asked for.

    `position`: next offsets of commands and control, id of the next event. Flows are (id, document,
    last event id, chain, revision, status, owner, time of the last change), steps (flow id, run id,
    document).
    """

    partitions: int
    position: tuple[int, int, int]
    restored: bool
    flows: Iterator[tuple[Any, ...]]
    steps: Iterator[tuple[Any, ...]]


def tables(state_dir: Path, prefix: str) -> dict[int, Path]:
    """The table files of `prefix`, by partition."""
    name = re.compile(re.escape(prefix) + r"-(\d+)\.db")
    found = [
        (int(match[1]), path)
        for path in (state_dir.iterdir() if state_dir.is_dir() else ())
        if (match := name.fullmatch(path.name))
    ]
    return dict(sorted(found))


def progress(path: Path) -> Progress | None:
    """How far the table at `path` is; None if it is not restored, or nothing can be read in it."""

    def look(_: Path, db: sqlite3.Connection) -> Progress | None:
        found = db.execute("SELECT partitions, audit FROM about, stored").fetchone()
        return None if found is None or found[1] < 0 else Progress(*found)

    try:
        return _look(path, look)
    except (TableFailed, TableDistrusted):
        return None


def check(path: Path) -> str | None:
    """What SQLite's check says of the file at `path`; None if it is
    sound. Reads all of it."""

    def ask(path: Path, db: sqlite3.Connection) -> str:
        ((said,),) = db.execute(CHECK)
        return str(said)

    try:
        said = _look(path, ask)
    except (TableFailed, TableDistrusted) as error:
        return str(error)
    return None if said == SOUND else said


def list_flows(
    paths: Iterable[Path],
    *,
    owner: str | None = None,
    status: FlowStatus | None = None,
    limit: int,
) -> list[Flow]:
    """Up to `limit` flows, the newest change first, then by id."""

    def newest(path: Path, db: sqlite3.Connection) -> list[Flow]:
        # The documents are read only of those that are shown.
        rows = db.execute(
            """
            SELECT doc FROM flow WHERE n IN (
                SELECT n FROM flow
                WHERE (?1 IS NULL OR owner = ?1) AND (?2 IS NULL OR status = ?2)
                ORDER BY updated_at DESC, id LIMIT ?3
            )
            """,
            (owner, None if status is None else status.value, limit),
        )
        return [_read(path, Flow.model_validate_json, doc) for (doc,) in rows]

    flows = [flow for path in paths for flow in _look(path, newest)]
    flows.sort(key=lambda flow: flow.id)
    flows.sort(key=lambda flow: flow.updated_at, reverse=True)
    return flows[:limit]


def list_waiting(paths: Iterable[Path], *, owner: str | None = None, limit: int) -> list[Flow]:
    """Up to `limit` flows that wait, by when they end by themselves, the soonest first; then
    those that do not, as each table came to know them.

    Reads the indexes of waits and no more flows than are shown; with `owner`, each flow that waits
    until enough are found.
    """

    def soonest(path: Path, db: sqlite3.Connection) -> list[Flow]:
        # One read transaction: no flow is in both lists, or in none.
        db.execute("BEGIN")
        docs: list[str] = []
        for sql in (SOONEST, OPEN):
            docs += [doc for (doc,) in db.execute(sql, (owner, limit - len(docs)))]
        return [_read(path, Flow.model_validate_json, doc) for doc in docs]

    def end(flow: Flow) -> tuple[bool, int, str]:
        at_ms = due_ms(flow)
        return (True, 0, "") if at_ms is None else (False, at_ms, flow.id)

    return list(islice(merge(*(_look(path, soonest) for path in paths), key=end), limit))


def ended(
    paths: Iterable[Path], *, before_ms: int, owner: str | None = None, limit: int | None = None
) -> Iterator[Ended]:
    """Up to `limit` (None: all) terminal flows whose last change is older than `before_ms`, the
    oldest first, then by id. Read some at a time: a million cost no memory."""

    def age(flow: Ended) -> tuple[str, str]:
        return flow.updated_at, flow.flow_id

    before = instant(before_ms)
    return islice(merge(*(_ended(path, before, owner) for path in paths), key=age), limit)


def _ended(path: Path, before: str, owner: str | None) -> Iterator[Ended]:
    after = ("", "")

    def oldest(path: Path, db: sqlite3.Connection) -> list[Ended]:
        rows = db.execute(ENDED, (*after, before, owner, ENDED_AT_ONCE)).fetchall()
        try:
            return [Ended(row[0], row[1], FlowStatus(row[2]), *row[3:]) for row in rows]
        except ValueError as error:
            raise TableCorrupt(f"{path} holds a status that was never written") from error

    while found := _look(path, oldest):
        yield from found
        after = found[-1].updated_at, found[-1].flow_id


def documents(paths: Iterable[Path], kind: Kind) -> Iterator[str]:
    """Every flow or every step, as JSON, in no order of meaning. Read some at a time: a million
    cost no memory, and what a worker writes meanwhile may be seen or not."""
    sql = f"SELECT n, doc FROM {kind} WHERE n > ? ORDER BY n LIMIT ?"
    for path in paths:
        after = 0

        def some(_: Path, db: sqlite3.Connection, after: int = 0) -> list[tuple[int, str]]:
            return db.execute(sql, (after, ENDED_AT_ONCE)).fetchall()

        while found := _look(path, partial(some, after=after)):
            yield from (doc for _, doc in found)
            after = found[-1][0]


def whole(path: Path, take: Callable[[Whole], None]) -> None:
    """Give `take` all of the table in one read transaction; again from the start, if a worker began
    to write meanwhile. Raises TableFailed or TableCorrupt.

    A worker's log grows until it is done.
    """

    def look(path: Path, db: sqlite3.Connection) -> None:
        # A byte that was flipped on disk may leave no UTF-8; it is to be seen, not to be refused.
        db.text_factory = lambda raw: raw.decode("utf-8", "replace")
        db.execute("BEGIN")
        found = db.execute(
            "SELECT partitions, commands, control, next_event_id, audit FROM about, stored"
        ).fetchone()
        if found is None:
            raise TableFailed(f"{path} is not restored yet")
        partitions, *position, audit = found
        flows = db.execute(
            "SELECT id, doc, last_event_id, chain, revision, status, owner, updated_at FROM flow"
        )
        steps = db.execute("SELECT flow_id, run_id, doc FROM step")
        take(Whole(partitions, tuple(position), audit >= 0, flows, steps))

    _look(path, look)


# A row is looked at for its owner only if one is asked for.
SOONEST: Final = """
    SELECT doc FROM flow INDEXED BY flow_due
    WHERE due_ms IS NOT NULL AND (?1 IS NULL OR owner = ?1)
    ORDER BY due_ms, id LIMIT ?2
"""
OPEN: Final = """
    SELECT doc FROM flow INDEXED BY flow_open
    WHERE status = 'waiting' AND due_ms IS NULL AND (?1 IS NULL OR owner = ?1)
    ORDER BY n LIMIT ?2
"""
GOAL_KEPT: Final = 240
"""Characters of a goal that are read: there may be a million flows."""
ENDED: Final = f"""
    SELECT id, updated_at, status, revision, owner, substr(doc ->> '$.goal', 1, {GOAL_KEPT})
    FROM flow INDEXED BY flow_ended
    WHERE (status = 'finished' OR status = 'failed' OR status = 'cancelled')
    AND (updated_at, id) > (?1, ?2) AND updated_at < ?3 AND (?4 IS NULL OR owner = ?4)
    ORDER BY updated_at, id LIMIT ?5
"""


def ids_with_prefix(paths: Iterable[Path], prefix: str) -> list[str]:
    """The ids of flows that begin with `prefix`, which holds hexadecimal digits and hyphens."""

    def some(_: Path, db: sqlite3.Connection) -> list[str]:
        # Behind every digit and the hyphen comes `g`.
        rows = db.execute("SELECT id FROM flow WHERE id >= ?1 AND id < ?1 || 'g'", (prefix,))
        return [flow_id for (flow_id,) in rows]

    return [flow_id for path in paths for flow_id in _look(path, some)]


def find_flow(paths: Iterable[Path], flow_id: str) -> FlowView | None:
    """The flow with its steps; None if no table has it."""

    def view(path: Path, db: sqlite3.Connection) -> FlowView | None:
        # One read transaction: flow and steps are of the same moment.
        db.execute("BEGIN")
        row = db.execute(
            "SELECT doc, last_event_id, chain FROM flow WHERE id = ?", (flow_id,)
        ).fetchone()
        if row is None:
            return None
        doc, last_event_id, chain = row
        docs = db.execute("SELECT doc FROM step WHERE flow_id = ?", (flow_id,)).fetchall()
        steps = [_read(path, STEPS.validate_json, doc) for (doc,) in docs]
        steps.sort(key=lambda step: (step.created_at, step.run_id))
        return FlowView(_read(path, Flow.model_validate_json, doc), last_event_id, chain, steps)

    views = (_look(path, view) for path in paths)
    return next((found for found in views if found is not None), None)


def _look(path: Path, query: Callable[[Path, sqlite3.Connection], T]) -> T:
    """What `query` finds in the table at `path`. Raises TableFailed or TableCorrupt."""
    log = path.with_name(path.name + "-wal")
    with as_table_errors(path):
        for _ in range(ATTEMPTS):
            # Opened in the usual way, a table without a log would get one. Read as if it
            # could not be written, and again if a worker began to write.
            at_rest = not log.exists()
            try:
                with closing(_open(path, "&immutable=1" if at_rest else "")) as db:
                    found = query(path, db)
            except (sqlite3.Error, TableFailed, TableCorrupt):
                if not (at_rest and log.exists()):
                    raise
            else:
                if not (at_rest and log.exists()):
                    return found
    raise TableFailed(f"{path} is just being opened by a worker; ask again")


def _open(path: Path, how: str) -> sqlite3.Connection:
    db = sqlite3.connect(
        f"{path.resolve().as_uri()}?mode=ro{how}",
        uri=True,
        isolation_level=None,
        timeout=BUSY_TIMEOUT_S,
    )
    try:
        ((version,),) = db.execute("PRAGMA user_version")
        if version != FORMAT:
            raise TableFailed(f"{path} is of format {version}, not {FORMAT}; it cannot be shown")
    except BaseException:
        db.close()
        raise
    return db


def _read(path: Path, validate: Callable[[str], T], doc: str) -> T:
    try:
        return validate(doc)
    except ValidationError as error:
        raise TableCorrupt(f"{path} holds a document that was never written") from error
