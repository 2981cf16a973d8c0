"""Ask the views, and show what they say for `taskflow top`."""

import asyncio
import os
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import SecretStr
from rich.console import Group
from rich.live import Live
from rich.text import Text

from processor.cli.common.output import (
    STATUS_STYLES,
    console,
    for_people,
    plain,
    short,
    somebody_to_ask,
    status_text,
    write_json,
)
from processor.cli.common.runner import Refused, run
from processor.cli.common.views_client import NoViews, ViewsClient, asking, views_url
from processor.cli.flow.wait_format import span
from processor.contract.values import instant, parse_timestamp
from processor.runtime import now_ms
from processor.settings import Settings

EVERY_S: Final = 1.0
FLOWS: Final = 100
EVENTS: Final = 8
PARTITIONS: Final = 8
QUIET_MS: Final = 15 * 60_000
BARS: Final = " ▁▂▃▄▅▆▇█"
Document = dict[str, Any]
Query = dict[str, str | int | None]

QUESTIONS: Final[Mapping[str, tuple[str, Callable[[int], Query]]]] = {
    "a": ("all, changed last", lambda now: {}),
    "w": ("waiting, ends soonest", lambda now: {"sort": "wait"}),
    "o": ("wait is over", lambda now: {"sort": "wait", "wait_ends_before": instant(now - 10_000)}),
    "r": ("running, quiet for 15 min",
          lambda now: {"status": "running", "updated_before": instant(now - QUIET_MS)}),
    "c": ("cancel asked for",
          lambda now: {"cancel_requested": "true", "status": "created,running,waiting"}),
    "f": ("failed", lambda now: {"status": "failed"}),
}  # fmt: skip
"""What may be listed, by the key for it; what is asked, given milliseconds since 1970."""


@dataclass
class Shown:
    """What is on the screen. `trouble`: why it is not up to date."""

    url: str
    asked: str = "a"
    statistics: Document = field(default_factory=dict)
    partitions: Document = field(default_factory=dict)
    flows: Document = field(default_factory=dict)
    events: Document = field(default_factory=dict)
    trouble: str | None = None

    @property
    def document(self) -> Document:
        """All of it, for a pipe."""
        return {
            name: {key: value for key, value in getattr(self, name).items() if key != "next_cursor"}
            for name in ("statistics", "partitions", "flows", "events")
        }


def show(settings: Settings, views: str | None, *, once: bool, json: bool) -> None:
    """Show the views at the address `views`, or at that of the settings."""
    url, token = views_url(settings, views), settings.views_read_token
    if not for_people(json):
        write_json(run(lambda: _snapshot(url, token)).document)
    elif once or not somebody_to_ask():
        out = console()
        out.print(screen(run(lambda: _snapshot(url, token)), out.width, out.height, now_ms()))
    else:
        run(lambda: _live(url, token))


async def _snapshot(url: str, token: SecretStr | None = None) -> Shown:
    async with asking(url, token) as views:
        shown = Shown(url)
        await refresh(views, shown, now_ms())
        if shown.trouble is not None:
            raise _nobody(shown.trouble)
        return shown


async def _live(url: str, token: SecretStr | None) -> None:
    """Until somebody types q. Raises Refused if nobody answers in the beginning."""
    shown = await _snapshot(url, token)
    out = console()
    typed: asyncio.Queue[str] = asyncio.Queue()
    with (
        _keys(typed.put_nowait),
        Live(console=out, screen=True, auto_refresh=False, transient=True) as live,
    ):
        async with asking(url, token) as views:
            while True:
                live.update(screen(shown, out.width, out.height, now_ms()), refresh=True)
                try:
                    async with asyncio.timeout(EVERY_S):
                        key = await typed.get()
                except TimeoutError:
                    key = ""
                if key in ("q", "Q", "\x03", "\x04"):
                    return
                shown.asked = key if key in QUESTIONS else shown.asked
                await refresh(views, shown, now_ms())


async def refresh(views: ViewsClient, shown: Shown, now_ms: int) -> None:
    """Ask for all of it; what could not be had leaves what was there, and says so."""
    _, query = QUESTIONS[shown.asked]
    try:
        (
            shown.statistics,
            shown.partitions,
            shown.flows,
            shown.events,
        ) = await asyncio.gather(
            views.get("statistics", minutes=60),
            views.get("partitions"),
            views.get("flows", limit=FLOWS, **query(now_ms)),
            views.get("events", limit=EVENTS),
        )
        shown.trouble = None
    except NoViews as nobody:
        shown.trouble = str(nobody)


def _nobody(trouble: str) -> Refused:
    return Refused(
        f"{trouble} Start them with `taskflow views`, or say where they are with --views. "
        "`taskflow flow list` reads the topics and needs none."
    )


@contextmanager
def _keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Hear each key as it is typed; the terminal is as it was afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        typed = os.read(descriptor, 32)
        if not typed:
            loop.remove_reader(descriptor)
        for key in typed.decode("ascii", "ignore"):
            on_key(key)

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


# What it looks like


def screen(shown: Shown, width: int, height: int, now_ms: int) -> Group:
    """All of it, in `height` lines of `width` columns."""
    partitions = _partitions(shown.partitions, width)
    events = _events(shown.events, width)
    head = [*_head(shown, width), Text()]
    tail = [Text(), *partitions, Text(), *events]
    room = height - len(head) - len(tail) - 3
    if room < 3:  # a low terminal: what matters most
        tail, room = [], height - len(head) - 2
    flows = _flows(shown, max(room, 1), width, now_ms)
    keys = "  ".join(f"{key} {words}" for key, (words, _) in QUESTIONS.items()) + "  q end"
    lines = [*head, *flows, *tail]
    return Group(*lines[: height - 1], _cut(Text(keys, style="dim"), width))


def _head(shown: Shown, width: int) -> Iterator[Text]:
    statistics = shown.statistics
    title = Text.assemble(("taskflow ", "bold"), (shown.url, "dim"), "  ")
    yield _cut(title.append_text(_freshness(shown)), width)
    counts = Text()
    for status in STATUS_STYLES:
        counts.append(f"{statistics.get('flows', {}).get(status, 0):,} ", style="bold")
        counts.append_text(status_text(status)).append("   ")
    yield _cut(counts, width)
    rates = statistics.get("rates", {})
    words = "   ".join(f"{name} {rates.get(name, 0):,.1f}/s" for name in rates)
    ratio = statistics.get("failure_ratio")
    if ratio is not None:
        words += f"   failed, of what ended {100 * ratio:.1f} %"
    yield _cut(Text(words), width)
    series = [minute["events"] for minute in statistics.get("series", [])]
    yield _cut(Text.assemble(("events a minute ", "dim"), (bars(series), "blue")), width)


def _freshness(shown: Shown) -> Text:
    view = shown.statistics.get("view", {})
    if shown.trouble is not None:
        return Text.assemble((short(shown.trouble, 100), "red"))
    if view.get("missing"):
        return Text(f"without partitions {', '.join(map(str, view['missing']))}", style="red")
    late_ms = view.get("lag_ms")
    if view.get("behind") is None or late_ms is None:
        return Text("starting", style="yellow")
    if late_ms > 1_000:
        return Text(f"{span(late_ms)} behind", style="yellow")
    return Text("up to date", style="green")


def bars(values: Sequence[int]) -> str:
    """One character for each value, the highest the highest."""
    highest = max([*values, 1])
    return "".join(BARS[-(-value * (len(BARS) - 1) // highest)] for value in values)


def _flows(shown: Shown, room: int, width: int, now_ms: int) -> list[Text]:
    columns = ("status", "changed", "owner", "step", "goal", "waits for", "flow")
    rows = [
        (
            status_text(flow["status"] + (" (cancel)" if flow["cancel_requested"] else "")),
            span(max(0, now_ms - parse_timestamp(flow["updated_at"]))),
            short(flow["owner_session_key"], 24),
            short(flow["current_step"], 16),
            short(flow["goal"], 48),
            _wait(flow, now_ms),
            flow["id"],
        )
        for flow in shown.flows.get("items", [])[: max(0, room - 2)]
    ]
    words = QUESTIONS[shown.asked][0]
    title = Text.assemble(("flows: ", "bold"), words)
    return [_cut(title, width), *_lines(columns, rows, width, "No flow is like that.")]


def _wait(flow: Mapping[str, Any], now_ms: int) -> str:
    wait = flow["wait_json"]
    if not wait:
        return ""
    what = {"external_event": short(wait.get("topic", ""), 24), "timer": "a time"}
    words = what.get(wait["kind"], "somebody")
    if flow["wait_ends_at"] is None:
        return words
    left_ms = parse_timestamp(flow["wait_ends_at"]) - now_ms
    return f"{words}, {span(left_ms)} left" if left_ms > 0 else f"{words}, over {span(-left_ms)}"


def _partitions(statistics: Mapping[str, Any], width: int) -> list[Text]:
    items = sorted(statistics.get("items", []), key=_urgency)
    rows = [
        (
            str(one["partition"]),
            short(one["worker"], 48) if one["worker"] else Text("nobody", style="red"),
            _behind(one["commands"]),
            _behind(one["control"]),
            one["view"] or Text("nobody", style="red"),
            _behind(one["projected"]),
        )
        for one in items[:PARTITIONS]
    ]
    columns = ("partition", "decided by", "commands behind", "control", "shown by", "audit")
    more = len(items) - len(rows)
    title = Text.assemble(("partitions", "bold"), f", the {len(rows)} most behind" if more else "")
    return [_cut(title, width), *_lines(columns, rows, width, "none")]


def _urgency(one: Mapping[str, Any]) -> tuple[bool, int, int]:
    behind = sum((one[name] or {}).get("behind") or 0 for name in ("commands", "control"))
    return one["worker"] is not None, -behind, one["partition"]


def _behind(lag: Mapping[str, Any] | None) -> str | Text:
    behind = None if lag is None else lag["behind"]
    if behind is None:
        return "–"
    return Text(f"{behind:,}", style="red") if behind > 1_000 else f"{behind:,}"


def _events(statistics: Mapping[str, Any], width: int) -> list[Text]:
    rows = [
        (
            event["at"][11:23],
            event["kind"],
            status_text(event["status"]),
            event["flow_id"],
            short(event["actor"], 40),
        )
        for event in statistics.get("items", [])
    ]
    columns = ("at (UTC)", "event", "status", "flow", "by")
    return [Text("events", style="bold"), *_lines(columns, rows, width, "none yet")]


def _lines(
    columns: Sequence[str], rows: Sequence[Sequence[str | Text]], width: int, none: str
) -> Iterator[Text]:
    """A line for each row, none wider than the terminal."""
    if not rows:
        yield Text(none, style="dim")
        return
    shown: list[list[Text]] = [[Text(column, style="dim") for column in columns]]
    shown += [[cell if isinstance(cell, Text) else plain(cell) for cell in row] for row in rows]
    widths = [max(cell.cell_len for cell in column) for column in zip(*shown, strict=True)]
    for cells in shown:
        line = Text()
        for cell, room in zip(cells, widths, strict=True):
            line.append_text(cell).append(" " * (room - cell.cell_len + 2))
        yield _cut(line, width)


def _cut(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line
