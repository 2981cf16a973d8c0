"""Print tables on a terminal and JSON lines into a pipe."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from processor.telemetry.terminal import visible, visible_json

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


def for_people(json: bool = False) -> bool:
    """Whether a person reads standard output, and did not ask for JSON."""
    return sys.stdout.isatty() and not json


def somebody_to_ask() -> bool:
    """Whether a person can be asked and answer."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()


class ReaderHasGone(BaseException):
    """Standard output is read no more (`| head`); raised by commands that print without end."""


def write_line(line: bytes, *, flush: bool = False) -> None:
    """Write one line: as it is in a pipe; on a terminal with what the terminal would obey written
    out, within JSON by its escapes."""
    if sys.stdout.isatty():
        line = visible_json(line.decode("utf-8", "backslashreplace")).encode()
    sys.stdout.buffer.write(line + b"\n")
    if flush:
        sys.stdout.buffer.flush()


def write_json(value: Any, *, flush: bool = False) -> None:
    """One compact JSON line, UTF-8, nothing escaped that need not be; see write_line."""
    try:
        line = orjson.dumps(value)
    except orjson.JSONEncodeError:  # a file's name may be any bytes
        line = orjson.dumps(_in_utf8(value))
    write_line(line, flush=flush)


def say(sentence: str) -> None:
    """A sentence for the person who started the program: standard error."""
    if sys.stderr.isatty():
        sentence = visible(sentence, keep="\n\t")
    sys.stderr.write(f"{sentence}\n")
    sys.stderr.flush()


def console() -> Console:
    """Standard output as rich sees it now; a pipe gets plain text, in long lines. What a terminal
    would obey is written out, wherever it stands in what is printed."""
    made = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    made.push_render_hook(_WrittenOut())
    return made


class _WrittenOut(RenderHook):
    """Shows the control characters of what is printed. Those that rich itself adds, for styles and
    the cursor, come later or are marked as such."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(one) for one in renderables]


class _Visible:
    def __init__(self, inner: ConsoleRenderable) -> None:
        self._inner = inner

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._inner, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text, keep="\n"), segment.style)


def table(title: str | None, columns: Sequence[str], rows: Sequence[Row]) -> Table:
    """A table whose cells are text and no markup, whatever they hold; the last column may wrap."""
    made = Table(title=title, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else _paragraph(cell) for cell in row))
    return made


def plain(text: str) -> Text:
    """One line of text that is no markup; what a terminal would obey is shown instead: a
    producer's text must not move its cursor."""
    return Text(visible(text))


def short(text: str, width: int = 60) -> str:
    """One line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _in_utf8(value: Any) -> Any:
    """A JSON value with texts that are not UTF-8 written out."""
    if isinstance(value, str):
        return os.fsencode(value).decode("utf-8", "backslashreplace")
    if isinstance(value, dict):
        return {_in_utf8(name): _in_utf8(held) for name, held in value.items()}
    return [*map(_in_utf8, value)] if isinstance(value, list | tuple) else value


def _paragraph(text: str) -> Text:
    return Text("\n").join(map(plain, text.split("\n")))


def status_text(status: str) -> Text:
    return Text(status, style=STATUS_STYLES.get(status, ""))


def live_status(status: str, cancel_requested: bool) -> Text:
    """A flow's status; with `(cancel)` while it lives, if that was requested."""
    from processor.domain.transitions import TERMINAL

    return status_text(status).append(" (cancel)" * (cancel_requested and status not in TERMINAL))


def verdict_text(verdict: str) -> Text:
    return Text(verdict, style=VERDICT_STYLES.get(verdict, ""))
