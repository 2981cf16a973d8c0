"""SQL statements for many rows at once, in a few sizes.

sqlite3 gives the GIL away at each step of a statement and has to wait for it again: up to 5 ms
each while the event loop is busy. So one statement takes many rows, and a query answers with a
single row, its parts joined by control characters, which JSON never holds unescaped. The number
of rows is one of SIZES, so that statements are prepared once; what is left over is NULL (writes)
or the last key again (reads).
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

from processor.adapters.sqlite.ledger import ROW_WIDTH

SIZES: Final = (1, 8, 64, 512)

Row = Sequence[Any]
Statement = tuple[str, list[Any]]


def _rows(width: int, size: int) -> str:
    row = f"({','.join('?' * width)})"
    return ",".join([row] * size)


def _templates(text: str, width: int) -> dict[int, str]:
    """`text` for each size, with its rows in place of `:rows`."""
    return {size: text.replace(":rows", _rows(width, size)) for size in SIZES}


def size_for(left: int) -> int:
    """The size of the next chunk: what holds all, unless more than half of it would be idle."""
    fitting = next((size for size in SIZES if size >= left), SIZES[-1])
    return fitting if fitting <= 2 * left else max(size for size in SIZES if size <= left)


class Rows:
    """A statement over rows of `width` values."""

    def __init__(self, text: str, width: int) -> None:
        self._texts = _templates(text, width)
        self.width = width

    def writing(self, values: Sequence[Any]) -> Iterator[tuple[str, Sequence[Any], int]]:
        """Statements for `values`, those of all rows in one sequence, with their parameters and how
        many rows they hold."""
        width = self.width
        for start, size in _chunks(len(values) // width):
            parameters = values[start * width : (start + size) * width]
            held = len(parameters) // width
            if held < size:
                parameters = [*parameters, *[None] * width * (size - held)]
            yield self._texts[size], parameters, held

    def reading(self, keys: Sequence[Row]) -> Iterator[Statement]:
        for start, size in _chunks(len(keys)):
            chunk = keys[start : start + size]
            parameters = list(chain.from_iterable(chunk))
            parameters.extend(list(chunk[-1]) * (size - len(chunk)))
            yield self._texts[size], parameters


def _chunks(count: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < count:
        size = size_for(count - start)
        yield start, size
        start += size


def _joined(*columns: str) -> str:
    return f"SELECT count(*), group_concat({'||char(31)||'.join(columns)}, char(30))"


FLOWS = Rows(
    _joined(
        *("n", "id", "revision", "last_event_id", "hex(chain)", "crc"),
        *("coalesce(steps, '')", "doc"),
    )
    + " FROM flow WHERE id IN (VALUES :rows)",
    1,
)
# The run id of a step is any text: it is taken from the document, or goes as hex. CROSS JOIN:
# SQLite keeps the order and seeks each key; given `(flow_id, run_id) IN` it would scan the table.
STEPS = Rows(
    _joined("crc", "doc")
    + """
    FROM (VALUES :rows) AS wanted CROSS JOIN step
    ON step.flow_id = wanted.column1 AND step.run_id = wanted.column2
    """,
    2,
)
# A padded key does not make rows come twice, as it would in a join.
LIVE_STEPS = Rows(
    _joined("crc", "doc")
    + " FROM step INDEXED BY step_live WHERE due_ms IS NOT NULL AND flow_id IN (VALUES :rows)",
    1,
)
RUN_IDS = Rows(
    _joined("flow_id", "hex(run_id)") + " FROM step WHERE flow_id IN (VALUES :rows)",
    1,
)
LEDGER = Rows(
    _joined("n", "hex(entry)", "coalesce(details, '')")
    + " FROM ledger WHERE tag IN (VALUES :rows)",
    1,
)

# By time, from behind one entry of an index on, so that many of one millisecond are read in chunks
# too. INDEXED BY: an error, should SQLite ever prefer to scan.
FIRST_DUE: Final = (-(2**63), "")
FIRST_ENDED: Final = ("", "")
DUE: Final = (
    _joined("due_ms", "id")
    + """
    FROM (
        SELECT due_ms, id FROM flow INDEXED BY flow_due
        WHERE due_ms IS NOT NULL AND (due_ms, id) > (?, ?) AND due_ms <= ?
        ORDER BY due_ms, id LIMIT ?
    )
    """
)
ARMED: Final = "SELECT count(*) FROM flow INDEXED BY flow_due WHERE due_ms IS NOT NULL"
ENDED: Final = (
    _joined("updated_at", "id")
    + """
    FROM (
        SELECT updated_at, id FROM flow INDEXED BY flow_ended
        WHERE (status = 'finished' OR status = 'failed' OR status = 'cancelled')
        AND (updated_at, id) > (?, ?) AND updated_at < ?
        ORDER BY updated_at, id LIMIT ?
    )
    """
)
FIRST_STEP: Final = (-(2**63), "", "")
PENDING, RUNNING = 1, 2
STEPS_DUE: Final = {
    status: (
        _joined("due_ms", "flow_id", "hex(run_id)")
        + f"""
        FROM (
            SELECT due_ms, flow_id, run_id FROM step INDEXED BY {index}
            WHERE status = {status} AND (due_ms, flow_id, run_id) > (?, ?, ?) AND due_ms <= ?
            ORDER BY due_ms, flow_id, run_id LIMIT ?
        )
        """
    )
    for status, index in ((PENDING, "step_pending"), (RUNNING, "step_running"))
}
COUNT_LIVE: Final = f"""
    SELECT (SELECT count(*) FROM step INDEXED BY step_pending WHERE status = {PENDING}),
           (SELECT count(*) FROM step INDEXED BY step_running WHERE status = {RUNNING})
"""
NEXT_ROW_NUMBER: Final = "SELECT coalesce(max(n), 0) + 1 FROM flow"

DELETE_FLOWS = Rows(
    """
    DELETE FROM flow WHERE n IN (
        SELECT flow.n FROM (VALUES :rows) AS was CROSS JOIN flow
        ON flow.n = was.column1 AND flow.id = was.column2
        AND flow.revision = was.column3 AND flow.last_event_id = was.column4
    )
    """,
    4,
)
DELETE_STEPS = Rows("DELETE FROM step WHERE flow_id IN (VALUES :rows)", 1)
DELETE_THESE_STEPS = Rows(
    """
    DELETE FROM step WHERE n IN (
        SELECT step.n FROM (VALUES :rows) AS v CROSS JOIN step
        ON step.flow_id = v.column1 AND step.run_id = v.column2
    )
    """,
    2,
)
UPDATE_FLOWS = Rows(
    """
    UPDATE flow SET
        revision = v.column5, last_event_id = v.column6, chain = v.column7, status = v.column8,
        updated_at = v.column9, crc = v.column10, due_ms = v.column11, steps = v.column12,
        doc = v.column13
    FROM (VALUES :rows) AS v
    WHERE flow.n = v.column1 AND flow.id = v.column2
    AND flow.revision = v.column3 AND flow.last_event_id = v.column4
    """,
    13,
)
INSERT_FLOWS = Rows(
    """
    INSERT INTO flow
        (n, id, revision, last_event_id, chain, status, owner, updated_at, crc, due_ms, steps, doc)
    SELECT * FROM (VALUES :rows) WHERE column1 IS NOT NULL
    """,
    12,
)
UPSERT_STEPS = Rows(
    """
    INSERT INTO step (flow_id, run_id, status, due_ms, input_bytes, crc, doc)
    SELECT * FROM (VALUES :rows) WHERE column1 IS NOT NULL
    ON CONFLICT (flow_id, run_id) DO UPDATE SET
        status = excluded.status, due_ms = excluded.due_ms, input_bytes = excluded.input_bytes,
        crc = excluded.crc, doc = excluded.doc
    """,
    7,
)
INSERT_LEDGER = Rows(
    """
    INSERT INTO ledger (n, tag, entry, details)
    SELECT * FROM (VALUES :rows) WHERE column1 IS NOT NULL
    """,
    ROW_WIDTH,
)

CHECKPOINT: Final = "SELECT commands, control, next_event_id, audit, outcomes, as_of_ms FROM stored"
# Both also refuse if another connection has committed since this one was opened.
STORE_FIRST: Final = """
    INSERT INTO stored (one, commands, control, next_event_id, audit, outcomes, as_of_ms)
    SELECT 1, ?, ?, ?, ?, ?, ? WHERE NOT EXISTS (SELECT 1 FROM stored)
    AND ? = (SELECT data_version FROM pragma_data_version)
"""
STORE_NEXT: Final = """
    UPDATE stored SET
        commands = ?, control = ?, next_event_id = ?, audit = ?, outcomes = ?, as_of_ms = ?
    WHERE ? = (SELECT data_version FROM pragma_data_version)
    AND commands = ? AND control = ? AND next_event_id = ?
    AND audit = ? AND outcomes = ? AND as_of_ms = ?
"""
CLEAR: Final = ("stored", "flow", "step", "ledger", "generation")
