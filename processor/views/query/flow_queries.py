"""Query this worker's flows, by all that they are found by, for given partitions."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import orjson

from processor.contract.values import instant, parse_timestamp
from processor.ops.conditions import Condition
from processor.views.http.parameters import FlowsQuery
from processor.views.model.database import Database
from processor.views.model.meets import MEETS
from processor.views.model.rows import FLOW_COLUMNS, marks
from processor.views.query.queries import BadQuery, cursor_of
from processor.views.query.search import SCANNED_MAX, search, split_conditions

Json = dict[str, Any]

_SORTS: Final = {
    "updated": ("updated_ms", False),
    "created": ("created_ms", False),
    "wait": ("wait_ends_ms", True),
}
_SUMMARY: Final = (
    "n, partition, id, controller, goal, owner, origin, step, wait, wait_ends_ms, status, cancel, "
    "revision, created_ms, updated_ms, state_bytes"
)


async def flows(
    database: Database, query: FlowsQuery, partitions: Collection[int]
) -> tuple[list[tuple[tuple[int, int], Json]], bool]:
    """Up to `limit` + 1 flows in the order asked for, each with its key of that order; and whether
    all were looked at: False if conditions were looked for in SCANNED_MAX flows and there are more.

    Raises BadQuery, TooExpensive.
    """
    sql, parameters, scan = _flows_sql(query, partitions)
    column, _ = _SORTS[query.sort]
    place = {"updated_ms": 14, "created_ms": 13, "wait_ends_ms": 9}[column]
    rows = await database.read(sql, parameters)
    all_of = True
    if scan is not None and len(rows) <= query.limit:
        # Behind a full page its cursor goes on.
        ((found,),) = await database.read(f"SELECT count(*) FROM ({scan[0]})", scan[1])
        all_of = found <= SCANNED_MAX
    return [((row[place], row[0]), _summary(row)) for row in rows], all_of


def _flows_sql(
    query: FlowsQuery, partitions: Collection[int]
) -> tuple[str, list[Any], tuple[str, list[Any]] | None]:
    """The statement with its parameters; with conditions also one whose rows are those flows in
    which they are looked for, and one more if there are more."""
    column, ascending = _SORTS[query.sort]
    where, parameters = ["pruned = 0"], []
    source = "flow"
    indexed = False

    def equal(name: str, value: object) -> None:
        """The first of these finds the rows; the others only look at them (`+`)."""
        nonlocal indexed
        where.append(f"{'+' if indexed else ''}{name} = ?")
        parameters.append(value)
        indexed = True

    words, conditions = _asked(query.q)
    if words:
        found, values = _searched(words, partitions)
        source = f"({found}) CROSS JOIN flow"
        where.append("flow.n = found")
        parameters += values
        indexed = True
    elif query.sort != "updated":
        indexed = True
    if query.owner is not None:
        equal("owner", query.owner)
    if query.controller is not None:
        equal("controller", query.controller)
    if query.waiting not in (None, "any"):
        equal("wait_kind", query.waiting)
    elif query.waiting == "any":
        where.append("wait_kind IS NOT NULL")
    if len(query.status) == 1:
        equal("status", query.status[0].value)
    elif query.status:
        where.append(f"+status IN ({marks(query.status)})")
        parameters += [status.value for status in query.status]
    if query.cancel_requested is not None:
        where.append(f"cancel = {int(query.cancel_requested)}")  # flow_cancel's own words
        if query.cancel_requested and not indexed:
            source = "flow INDEXED BY flow_cancel"
    for name, sign, time in (
        ("wait_ends_ms", "<", query.wait_ends_before),
        ("created_ms", ">", query.created_after),
        ("created_ms", "<", query.created_before),
        ("updated_ms", ">", query.updated_after),
        ("updated_ms", "<", query.updated_before),
    ):
        if time is not None:
            where.append(f"{'' if name == column else '+'}{name} {sign} ?")
            parameters.append(parse_timestamp(time))
    if query.sort == "wait":
        where.append("wait_ends_ms IS NOT NULL")
    if (key := cursor_of(query.cursor, query.sort, 2)) is not None:
        where.append(f"({column}, n) {'>' if ascending else '<'} (?, ?)")
        parameters += key
    where.append(f"partition IN ({marks(list(partitions))})")
    parameters += partitions
    order = f"{column} {'ASC' if ascending else 'DESC'}, n {'ASC' if ascending else 'DESC'}"
    scan = None
    if conditions:
        found_by = f"FROM {source} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ?"
        scan = f"SELECT 1 {found_by}", [*parameters, SCANNED_MAX + 1]
        source = f"(SELECT flow.* {found_by})"
        where = [f"{MEETS}(?, {FLOW_COLUMNS})" for _ in conditions]
        parameters += [SCANNED_MAX, *map(str, conditions)]
    parameters.append(query.limit + 1)
    return (
        f"SELECT {_SUMMARY} FROM {source} WHERE {' AND '.join(where)} ORDER BY {order} LIMIT ?",
        parameters,
        scan,
    )


def _asked(text: str | None) -> tuple[str, list[Condition]]:
    """Raises BadQuery."""
    if text is None:
        return "", []
    try:
        words, conditions = split_conditions(text)
    except ValueError as error:
        raise BadQuery("q", str(error)) from None
    if not words and not conditions:
        raise BadQuery("q", "it has no word to look for")
    return words, conditions


def _searched(words: str, partitions: Collection[int]) -> tuple[str, list[object]]:
    """Raises BadQuery."""
    try:
        return search(words, partitions)
    except ValueError as error:
        raise BadQuery("q", str(error)) from None


def flow_key(item: Mapping[str, Any], sort: str) -> tuple[int, int]:
    """The key of a summary, in the order of `sort`."""
    field = {"updated": "updated_at", "created": "created_at", "wait": "wait_ends_at"}[sort]
    return parse_timestamp(item[field]), item["first_event_id"]


def _summary(row: Sequence[Any]) -> Json:
    return {
        "id": row[2],
        "controller_id": row[3],
        "goal": row[4],
        "owner_session_key": row[5],
        "requester_origin": row[6],
        "current_step": row[7],
        "wait_json": orjson.Fragment(row[8]),
        "wait_ends_at": None if row[9] is None else instant(row[9]),
        "status": row[10],
        "cancel_requested": bool(row[11]),
        "revision": row[12],
        "created_at": instant(row[13]),
        "updated_at": instant(row[14]),
        "partition": row[1],
        "first_event_id": row[0],
        "state_bytes": row[15],
    }
