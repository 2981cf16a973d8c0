"""What the program writes: tables for people on a terminal, JSON lines for a pipe."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table
from rich.text import Text

STATUS_STYLES: Mapping[str, str] = {
    "created": "cyan",
    "running": "blue",
    "waiting": "yellow",
    "finished": "green",
    "failed": "red",
    "cancelled": "magenta",
}
PIPE_WIDTH = 140
VERDICT_STYLES: Mapping[str, str] = {
    "accepted": "green",
    "rejected": "yellow",
    "duplicate": "cyan",
    "quarantined": "red",
    "forwarded": "blue",
}

Row = Sequence[str | Text]

_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]"
)
"""Also what reorders the text around it: a goal must not look like another column."""


def for_people(json: bool = False) -> bool:
    """Whether a person reads standard output, and did not ask for JSON."""
    return sys.stdout.isatty() and not json


def somebody_to_ask() -> bool:
    """Whether a person can be asked and answer."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


class ReaderHasGone(BaseException):
    """Standard output is read no more (`| head`); raised by commands that print without end."""


def write_line(line: bytes, *, flush: bool = False) -> None:
    """Write one line as it is."""
    sys.stdout.buffer.write(line + b"\n")
    if flush:
        sys.stdout.buffer.flush()


def write_json(value: Any, *, flush: bool = False) -> None:
    """One compact JSON line, UTF-8, nothing escaped that need not be."""
    write_line(orjson.dumps(value), flush=flush)


def say(sentence: str) -> None:
    """A sentence for the person who started the program: standard error."""
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def console() -> Console:
    """Standard output as rich sees it now; a pipe gets plain text, in long lines."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """A table whose cells are text and no markup, whatever they hold; the last column may wrap."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else _paragraph(cell) for cell in row))
    return made


def print_rows(out: Console, columns: Sequence[str], rows: Sequence[Row]) -> None:
    """Each row on one line, cut off at the terminal's right: rich would cut in every column,
    ids included."""
    shown = [[Text(column, style="bold") for column in columns]]
    shown += [[cell if isinstance(cell, Text) else plain(cell) for cell in row] for row in rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*shown, strict=True)]
    for cells in shown:
        line = Text()
        for cell, width in zip(cells, widths, strict=True):
            line.append_text(cell).append(" " * (width - cell.cell_len + 2))
        line.rstrip()
        out.print(line, no_wrap=True, overflow="ellipsis", soft_wrap=False)


def plain(text: str) -> Text:
    """One line of text that is no markup; what a terminal would obey is shown instead: a
    producer's text must not move its cursor."""
    return Text(_CONTROL.sub(_written_out, text))


def short(text: str, width: int = 60) -> str:
    """One line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _paragraph(text: str) -> Text:
    return Text("\n").join(map(plain, text.split("\n")))


def status_text(status: str) -> Text:
    return Text(status, style=STATUS_STYLES.get(status, ""))


def verdict_text(verdict: str) -> Text:
    return Text(verdict, style=VERDICT_STYLES.get(verdict, ""))
