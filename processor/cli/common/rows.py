"""Lay rows out on a terminal: one line each, and room for the columns that matter most."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from rich.console import Console
from rich.text import Text

from processor.cli.common.output import Row, plain

GAP: Final = 2
ID_LENGTH: Final = 8
"""Characters of a flow id that are shown, unless two flows of a table begin alike."""
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


class Column(NamedTuple):
    """A column of a table.

    `least`: the width in characters that it keeps when room is short; 0: its cells are never cut.
    `rank`: columns with a higher one are left out first; one with rank 0 never is.
    """

    name: str
    least: int = 0
    rank: int = 0


def layout(columns: Sequence[Column], widest: Sequence[int], room: int) -> dict[int, int]:
    """The widths of the columns that are shown, by index. `widest`: of each, its longest cell.

    Columns are left out until each of the others has its least width; what is then too wide is
    cut, the widest first. What cannot be cut may still be wider than `room`.
    """
    shown = list(range(len(columns)))

    def least(index: int) -> int:
        return min(columns[index].least or widest[index], widest[index])

    while sum(map(least, shown)) + GAP * (len(shown) - 1) > room:
        last = max(reversed(shown), key=lambda index: columns[index].rank)
        if not columns[last].rank:
            break
        shown.remove(last)
    widths = {index: widest[index] for index in shown}
    while sum(widths.values()) + GAP * (len(shown) - 1) > room:
        wide = max(shown, key=lambda index: (widths[index] > least(index), widths[index]))
        if widths[wide] <= least(wide):
            break
        widths[wide] -= 1
    return widths


def print_rows(out: Console, columns: Sequence[Column | str], rows: Sequence[Row]) -> None:
    """Print a head, and each row on one line no wider than the terminal."""
    for line in lines_of(columns, rows, out.width):
        out.print(line, no_wrap=True, overflow="ellipsis", soft_wrap=False)


def lines_of(columns: Sequence[Column | str], rows: Iterable[Row], width: int) -> list[Text]:
    """A head and a line for each row, laid out for a terminal of `width` columns."""
    named = [Column(column) if isinstance(column, str) else column for column in columns]
    cells = [[cell if isinstance(cell, Text) else plain(cell) for cell in row] for row in rows]
    head = [Text(column.name, style="bold") for column in named]
    widest = [max(cell.cell_len for cell in column) for column in zip(head, *cells, strict=True)]
    widths = layout(named, widest, width)
    return [line_of(row, widths) for row in (head, *cells)]


def line_of(cells: Sequence[Text], widths: dict[int, int]) -> Text:
    """One line, each cell cut or padded to its width."""
    line = Text()
    for index, width in widths.items():
        cell = cells[index].copy()
        cell.truncate(width, overflow="ellipsis", pad=True)
        line.append_text(cell).append(" " * GAP)
    line.rstrip()
    return line


def moment(at: str) -> str:
    """A time as people see it, UTC, to the second: `2026-11-30 20:11:01`. Options take it, too."""
    return at[:19].replace("T", " ")


def age(at: str, now_ms: int) -> str:
    """How long ago that was, in the largest unit, as durations in options are written: `5m`."""
    from processor.contract.values import parse_timestamp

    left_s = max(0, now_ms - parse_timestamp(at)) // 1000
    name, seconds = next((unit for unit in _UNITS if left_s >= unit[1]), _UNITS[-1])
    return f"{left_s // seconds}{name}"


def short_ids(flow_ids: Iterable[str]) -> dict[str, str]:
    """The beginnings of these ids that tell them apart: of 8 characters, or more for all."""
    known = sorted(set(flow_ids))
    length = ID_LENGTH
    for one, next_one in pairwise(known):
        while one[:length] == next_one[:length]:
            length += 1
    return {flow_id: flow_id[:length].rstrip("-") for flow_id in known}
