"""Format records of a topic as rows of a terminal, as they come."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import orjson
from aiokafka import ConsumerRecord
from rich.console import Console
from rich.text import Text

from processor.cli.common.output import VERDICT_STYLES, plain, short, status_text
from processor.cli.common.rows import ID_LENGTH, Column, layout, line_of
from processor.cli.deadletters.lookup import reason_of, source_of
from processor.cli.flow.event_text import SHOWN_MAX, what_of
from processor.cli.flow.wait_format import span
from processor.contract.values import instant
from processor.ops.deadletters import dead_letter_of

Cell = str | Text


class RowKind(NamedTuple):
    """How the records of a topic are shown. `usual`: widths of cells that are seldom exceeded,
    since those that are still to come are not known. `cells` may raise what bad JSON raises."""

    columns: Sequence[Column]
    usual: Sequence[int]
    cells: Callable[[ConsumerRecord], Sequence[Cell]]


class StreamRows:
    """Prints a head, then a row for each record; the day stands on a line of its own."""

    def __init__(self, out: Console, kind: RowKind) -> None:
        self._out = out
        self._kind = kind
        self._widths = layout(kind.columns, kind.usual, out.width)
        self._day = ""

    def show_all(self, records: Sequence[ConsumerRecord]) -> None:
        """Print records that are known, each column as wide as they need it."""
        rows = [self._cells(record) for record in records]
        heads = [Text(column.name) for column in self._kind.columns]
        widest = [max(cell.cell_len for cell in one) for one in zip(heads, *rows, strict=True)]
        self._widths = layout(self._kind.columns, widest, self._out.width)
        for record in records:
            self.show(record)

    def show(self, record: ConsumerRecord) -> None:
        """Print one record."""
        at = instant(max(record.timestamp, 0))
        if at[:10] != self._day:
            if not self._day:
                self._print([Text(column.name, style="bold") for column in self._kind.columns])
            self._day = at[:10]
            self._out.print(Text(f"{self._day}, UTC", style="dim"))
        self._print(self._cells(record))

    def _cells(self, record: ConsumerRecord) -> list[Text]:
        at = instant(max(record.timestamp, 0))
        try:
            cells = [at[11:19], *self._kind.cells(record)]
        except (ValueError, LookupError, TypeError, AttributeError):
            rest = [""] * (len(self._kind.columns) - 2)
            cells = [at[11:19], *rest, short((record.value or b"").decode("utf-8", "replace"))]
        return [cell if isinstance(cell, Text) else plain(cell) for cell in cells]

    def _print(self, cells: Sequence[Text]) -> None:
        line = line_of(cells, self._widths)
        self._out.print(line, no_wrap=True, overflow="ellipsis", soft_wrap=False)


def _event(record: ConsumerRecord) -> Sequence[Cell]:
    event = orjson.loads(record.value)
    return (
        event["flow_id"][:ID_LENGTH],
        Text(event["kind"], style="bold"),
        status_text(event["status"]),
        f"r{event['revision']}",
        event["actor"],
        what_of(event),
    )


def _outcome(record: ConsumerRecord) -> Sequence[Cell]:
    outcome = orjson.loads(record.value)
    verdict = outcome["verdict"]
    word = outcome["code"] if outcome["code"] and verdict != "duplicate" else verdict
    return (
        (outcome["flow_id"] or "")[:ID_LENGTH],
        outcome["kind"] or "",
        Text(word, style=VERDICT_STYLES.get(verdict, "")),
        "" if outcome["revision"] is None else f"r{outcome['revision']}",
        outcome["message"],
    )


def _work_item(record: ConsumerRecord) -> Sequence[Cell]:
    item = orjson.loads(record.value)
    return (
        item["flow_id"][:ID_LENGTH],
        item["run_id"],
        item["task"],
        f"{item['attempt']}/{item['max_attempts']}",
        span(item["lease_ms"]),
        short(orjson.dumps(item["input_json"]).decode(), SHOWN_MAX),
    )


def _dead_letter(record: ConsumerRecord) -> Sequence[Cell]:
    dead_letter = dead_letter_of(record)
    return (
        str(dead_letter.spot),
        Text(dead_letter.facts.code, style="red"),
        source_of(dead_letter),
        short(reason_of(dead_letter), SHOWN_MAX),
    )


ROWS: Final[Mapping[str, RowKind]] = {
    "flow": RowKind(
        (
            *(Column("at"), Column("event"), Column("status", rank=1)),
            *(Column("rev", rank=2), Column("by", 8), Column("what", 34)),
        ),
        (8, 16, 9, 3, 24, SHOWN_MAX),
        lambda record: _event(record)[1:],
    ),
    "audit": RowKind(
        (
            *(Column("at"), Column("flow"), Column("event"), Column("status", rank=3)),
            *(Column("rev", rank=2), Column("by", 8, rank=1), Column("what", 30)),
        ),
        (8, ID_LENGTH, 16, 9, 3, 24, SHOWN_MAX),
        _event,
    ),
    "outcomes": RowKind(
        (
            *(Column("at"), Column("flow"), Column("command", 13), Column("verdict", 14)),
            *(Column("rev", rank=1), Column("message", 29)),
        ),
        (8, ID_LENGTH, 16, 18, 3, SHOWN_MAX),
        _outcome,
    ),
    "steps": RowKind(
        (
            *(Column("at"), Column("flow"), Column("run", 8), Column("task", 8)),
            *(Column("try"), Column("lease", rank=1), Column("input", 16)),
        ),
        (8, ID_LENGTH, 16, 16, 3, 8, SHOWN_MAX),
        _work_item,
    ),
    "deadletters": RowKind(
        (
            *(Column("at"), Column("letter"), Column("code", 12), Column("from", 12, rank=1)),
            Column("why", 28),
        ),
        (8, 6, 19, 24, SHOWN_MAX),
        _dead_letter,
    ),
}
"""By the name of the topic, without its prefix; `flow`: events of one flow."""
