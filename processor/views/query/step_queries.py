"""Query this worker's steps, of all flows, for given partitions."""

from collections.abc import Collection, Mapping
from typing import Any, Final

import orjson

from processor.contract.values import parse_timestamp
from processor.views.http.parameters import StepsQuery
from processor.views.model.database import Database
from processor.views.model.rows import marks
from processor.views.query.queries import cursor_of

Json = dict[str, Any]

ORDER: Final = "steps"
"""The kind of the cursor: the newest change first."""
_PARTITION_BITS: Final = 40


async def steps(
    database: Database, query: StepsQuery, partitions: Collection[int]
) -> list[tuple[tuple[int, int], Json]]:
    """Up to `limit` + 1 managed steps, the newest change first, each with its key of that order.

    Without input and result. Raises BadQuery, TooExpensive.
    """
    where = [f"(step.n >> {_PARTITION_BITS}) IN ({marks(list(partitions))})"]
    where.append("doc ->> '$.runtime' = 'managed'")
    parameters: list[Any] = [*partitions]
    source = "step"
    for name, value in (("holder", query.holder), ("task", query.task)):
        if value is not None:
            where.append(f"{name} = ?")
            parameters.append(value)
    if query.flow is not None:
        source = "flow JOIN step ON step.flow = flow.n"
        where.append("flow.id = ? AND flow.pruned = 0")
        parameters.append(query.flow)
    if query.status:
        where.append(f"step.status IN ({marks(query.status)})")
        parameters += [status.value for status in query.status]
    for sign, time in ((">", query.updated_after), ("<", query.updated_before)):
        if time is not None:
            where.append(f"step.updated_ms {sign} ?")
            parameters.append(parse_timestamp(time))
    if (key := cursor_of(query.cursor, ORDER, 2)) is not None:
        where.append("(step.updated_ms, step.n) < (?, ?)")
        parameters += key
    parameters.append(query.limit + 1)
    rows = await database.read(
        "SELECT step.updated_ms, step.n, json_remove(doc, '$.input_json', '$.result_json') "
        f"FROM {source} WHERE {' AND '.join(where)} "
        "ORDER BY step.updated_ms DESC, step.n DESC LIMIT ?",
        parameters,
    )
    return [
        ((updated_ms, row_number), {**orjson.loads(doc), "first_event_id": row_number})
        for updated_ms, row_number, doc in rows
    ]


def step_key(item: Mapping[str, Any]) -> tuple[int, int]:
    """The key of an item, in the order of `steps`."""
    return parse_timestamp(item["updated_at"]), item["first_event_id"]
