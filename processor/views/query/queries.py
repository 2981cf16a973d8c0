"""Query this worker's database for given partitions."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from processor.contract.values import EVENTS_PER_PARTITION
from processor.domain.evolve import PRUNED, STEP_KINDS, evolve, evolve_step
from processor.domain.flow import Flow
from processor.domain.step import Step
from processor.domain.transitions import OWNER, allowed_from
from processor.engine.codec import fact_of
from processor.engine.encoding import step_doc
from processor.views.http.pagination import BadCursor, keyset, read_keyset
from processor.views.http.parameters import (
    EVENTS_BYTES,
    STEPS_BYTES,
    DeadLettersQuery,
    EventsQuery,
    HistoryQuery,
)
from processor.views.model.database import Database
from processor.views.model.reader_pool import ViewReader
from processor.views.model.rows import FLOW_COLUMNS, flow_of, marks
from processor.views.query.search import SCANNED_MAX

Json = dict[str, Any]

STEPS_MAX: Final = 1000
FOLDED_AT_ONCE: Final = 500
_LAST: Final = 2**62


class BadQuery(ValueError):
    """A parameter has a meaning of its own that it does not keep. `field`, and a sentence."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(problem)
        self.field = field


class RevisionUnknown(LookupError):
    """The flow never had this revision, or does not have it yet."""


def cursor_of(text: str | None, kind: str, length: int) -> tuple[int, ...] | None:
    """Raises BadQuery."""
    try:
        return None if text is None else read_keyset(text, kind, length)
    except BadCursor:
        raise BadQuery("cursor", "it is no `next_cursor` of this question") from None


# One flow


async def flow(database: Database, flow_id: str, revision: int | None) -> Json | None:
    """The flow with its steps, without `view`; None if there is none.

    Raises RevisionUnknown, TooExpensive.
    """
    async with database.reading() as reader:
        rows = await reader.rows(
            f"SELECT n, partition, events, last_event_id, pruned, revision, {FLOW_COLUMNS} "
            "FROM flow WHERE id = ? ORDER BY n DESC LIMIT 1",
            (flow_id,),
        )
        if not rows or (rows[0][4] and revision is None):
            return None
        row_number, partition, events, last_event_id, _, newest, *row = rows[0]
        if revision is None:
            found = flow_of(row)
            steps, total = await _steps(reader, row_number)
            return _flow_body(found, steps, total, partition, events, last_event_id)
        if revision > newest:
            raise RevisionUnknown(f"The flow is at revision {newest}.")
        return await _as_it_was(reader, row_number, partition, revision)


def _flow_body(
    found: Flow, steps: list[Any], total: int, partition: int, events: int, last_event_id: int
) -> Json:
    return {
        "flow": found.document(),
        "steps": steps,
        "steps_total": total,
        "allowed": allowed_from(found.status, found.cancel_requested, OWNER),
        "partition": partition,
        "events": events,
        "last_event_id": last_event_id,
    }


async def _steps(reader: ViewReader, row_number: int) -> tuple[list[Any], int]:
    ((total,),) = await reader.rows("SELECT count(*) FROM step WHERE flow = ?", (row_number,))
    rows = await reader.rows(
        "SELECT doc FROM step WHERE flow = ? ORDER BY doc ->> 'created_at', run_id LIMIT ?",
        (row_number, STEPS_MAX),
    )
    return [orjson.Fragment(doc) for doc in _within([(len(r[0]), r[0]) for r in rows])], total


async def _as_it_was(reader: ViewReader, row_number: int, partition: int, revision: int) -> Json:
    """Folds the flow's events up to the last one at `revision`."""
    found: Flow | None = None
    steps: dict[str, Step] = {}
    count, last = 0, 0
    while True:
        rows = await reader.rows(
            "SELECT id, doc FROM event WHERE flow = ? AND id > ? AND revision <= ? AND kind <> ? "
            "ORDER BY id LIMIT ?",
            (row_number, last, revision, PRUNED.value, FOLDED_AT_ONCE),
        )
        for last, doc in rows:  # noqa: B007  the last one counts
            fact = fact_of(orjson.loads(doc))
            found = evolve(found, fact)
            if fact.kind in STEP_KINDS:
                run_id = fact.payload.get("run_id") or fact.payload["step"]["run_id"]
                steps[run_id] = evolve_step(steps.get(run_id), fact)
        count += len(rows)
        if len(rows) < FOLDED_AT_ONCE:
            break
    if found is None or found.revision != revision:
        raise RevisionUnknown("The flow never had this revision.")
    ordered = sorted(steps.values(), key=lambda step: (step.created_at, step.run_id))[:STEPS_MAX]
    docs = [step_doc(step) for step in ordered]
    shown = [orjson.Fragment(doc) for doc in _within([(len(doc), doc) for doc in docs])]
    return _flow_body(found, shown, len(steps), partition, count, last)


def _within(sized: Iterable[tuple[int, Any]], limit_bytes: int = STEPS_BYTES) -> list[Any]:
    """As many as fit into `limit_bytes`; the first one always does."""
    taken: list[Any] = []
    left = limit_bytes
    for size, value in sized:
        left -= size
        if taken and left < 0:
            break
        taken.append(value)
    return taken


# Events


async def history(
    database: Database, flow_id: str, query: HistoryQuery
) -> tuple[list[Any], str | None] | None:
    """A page of the flow's events and the next cursor; None if there never was such a flow.

    Raises BadQuery, TooExpensive.
    """
    ascending = query.order == "asc"
    kind = f"history-{query.order}"
    (behind,) = cursor_of(query.cursor, kind, 1) or (0 if ascending else _LAST,)
    async with database.reading() as reader:
        rows = await reader.rows(
            "SELECT event.id, length(doc) FROM event "
            "WHERE flow IN (SELECT n FROM flow WHERE flow.id = ?) "
            f"AND event.id {'>' if ascending else '<'} ? "
            f"ORDER BY event.id {'ASC' if ascending else 'DESC'} LIMIT ?",
            (flow_id, behind, query.limit + 1),
        )
        if not rows and not await reader.rows("SELECT 1 FROM flow WHERE id = ?", (flow_id,)):
            return None
        ids = _within(((size, event_id) for event_id, size in rows[: query.limit]), EVENTS_BYTES)
        items = await _docs(reader, ids)
    return items, keyset(kind, ids[-1]) if len(ids) < len(rows) else None


async def _docs(reader: ViewReader, ids: Sequence[int]) -> list[Any]:
    """The events with these ids, in their order."""
    rows = await reader.rows(f"SELECT id, doc FROM event WHERE id IN ({marks(ids)})", ids)
    docs = dict(rows)
    return [orjson.Fragment(docs[event_id]) for event_id in ids]


async def events(
    database: Database, query: EventsQuery, tops: Mapping[int, int]
) -> tuple[list[tuple[tuple[int, int], Any]], dict[int, int]]:
    """The newest events below `tops` (partition → event id), each with its time and id, and down
    to where each partition was looked at: partition → the lowest id, 0 at its beginning.

    Raises TooExpensive.
    """
    found: list[tuple[tuple[int, int], int]] = []
    floors: dict[int, int] = {}
    kinds = [kind.value for kind in query.kind]
    filters = f" AND kind IN ({marks(kinds)})" if kinds else ""
    if query.owner is not None:
        filters += " AND (SELECT owner FROM flow WHERE n = event.flow) = ?"
    async with database.reading() as reader:
        for partition, top in tops.items():
            first = partition * EVENTS_PER_PARTITION + 1
            low = max(first, top - SCANNED_MAX)
            rows = await reader.rows(
                f"SELECT id, at_ms, length(doc) FROM event WHERE id >= ? AND id < ?{filters} "
                "ORDER BY id DESC LIMIT ?",
                (
                    *(low, top, *kinds),
                    *(() if query.owner is None else (query.owner,)),
                    query.limit,
                ),
            )
            found += [((at_ms, event_id), size) for event_id, at_ms, size in rows]
            low = rows[-1][0] if len(rows) == query.limit else low
            floors[partition] = 0 if low == first else low
        found.sort(reverse=True)
        taken = _within(((size, key) for key, size in found[: query.limit]), EVENTS_BYTES)
        for _, cut_id in (key for key, _ in found[len(taken) :]):
            partition = cut_id // EVENTS_PER_PARTITION
            floors[partition] = max(floors[partition], cut_id + 1)
        docs = await _docs(reader, [event_id for _, event_id in taken])
    return list(zip(taken, docs, strict=True)), floors


async def events_after(
    database: Database,
    partition: int,
    after: int,
    upto: int,
    *,
    flow_id: str | None,
    owner: str | None,
    limit: int,
    limit_bytes: int,
) -> tuple[list[tuple[int, str, bytes]], int]:
    """Events of a partition behind id `after`, oldest first: id, owner, document; and the id up to
    which all that were asked for are among them. Raises TooExpensive."""
    upto = min(upto, after + SCANNED_MAX)
    filters = ""
    parameters: list[Any] = [after, upto]
    if flow_id is not None:
        filters += " AND event.flow IN (SELECT n FROM flow WHERE id = ?)"
        parameters.append(flow_id)
    if owner is not None:
        filters += " AND flow.owner = ?"
        parameters.append(owner)
    async with database.reading(stream=True) as reader:
        sized = await reader.rows(
            "SELECT event.id, length(doc) FROM event CROSS JOIN flow ON flow.n = event.flow "
            f"WHERE event.id > ? AND event.id <= ?{filters} ORDER BY event.id LIMIT ?",
            (*parameters, limit + 1),
        )
        ids = _within(((size, event_id) for event_id, size in sized[:limit]), limit_bytes)
        rows = await reader.rows(
            "SELECT event.id, owner, doc FROM event CROSS JOIN flow ON flow.n = event.flow "
            f"WHERE event.id IN ({marks(ids)}) ORDER BY event.id",
            ids,
        )
    return rows, ids[-1] if len(ids) < len(sized) else upto


# Dead letters


async def dead_letters(
    database: Database, query: DeadLettersQuery, partitions: Collection[int]
) -> list[tuple[tuple[int, int, int], Any]]:
    """Up to `limit` + 1, newest first, with their keys. Raises BadQuery, TooExpensive."""
    where = [f"partition IN ({marks(list(partitions))})"]
    parameters: list[Any] = list(partitions)
    if query.code is not None:
        where.append("code = ?")
        parameters.append(query.code.value)
    if (key := cursor_of(query.cursor, "letters", 3)) is not None:
        where.append('(at_ms, partition, "offset") < (?, ?, ?)')
        parameters += key
    rows = await database.read(
        f'SELECT at_ms, partition, "offset", doc FROM letter WHERE {" AND ".join(where)} '
        'ORDER BY at_ms DESC, partition DESC, "offset" DESC LIMIT ?',
        (*parameters, query.limit + 1),
    )
    return [((row[0], row[1], row[2]), orjson.Fragment(row[3])) for row in rows]
