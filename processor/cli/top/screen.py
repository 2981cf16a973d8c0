"""Lay out what `taskflow top` shows: on one screen, whatever the size of the terminal."""

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from processor.cli.common.output import STATUS_STYLES, live_status, short, status_text
from processor.cli.common.rows import ID_LENGTH, Column, age, lines_of, moment, short_ids
from processor.cli.flow.event_text import SHOWN_MAX, times_of, wait_text, what_of
from processor.cli.flow.wait_format import span
from processor.contract.values import instant, parse_timestamp

FLOWS: Final = 100
EVENTS: Final = 8
"""Of a terminal that has room for as many flows and more; of a low one half of them."""
HIGH: Final = 40
"""Lines of a terminal that has."""
HISTORY: Final = 50
"""Events of a flow that is looked at."""
PARTITIONS: Final = 4
"""As many as stand or are behind."""
BEHIND_SHOWN: Final = 1_000
"""A partition that is further behind stands on a line of its own."""
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
    selected: str | None = None
    """The id of the flow that the keys are about."""
    opened: bool = False
    """Whether that flow is looked at."""
    helps: bool = False
    history: Document = field(default_factory=dict)
    statistics: Document = field(default_factory=dict)
    partitions: Document = field(default_factory=dict)
    flows: Document = field(default_factory=dict)
    events: Document = field(default_factory=dict)
    trouble: str | None = None

    def select(self, steps: int) -> None:
        """Move the selection by so many flows of the list."""
        ids = [flow["id"] for flow in self.flows.get("items", [])]
        if ids:
            at = ids.index(self.selected) + steps if self.selected in ids else 0
            self.selected = ids[max(0, min(at, len(ids) - 1))]

    @property
    def flow(self) -> Document | None:
        """The flow that is selected, if it is in the list."""
        items = self.flows.get("items", [])
        return next((flow for flow in items if flow["id"] == self.selected), None)

    @property
    def document(self) -> Document:
        """All of it, for a pipe."""
        return {
            name: {key: value for key, value in getattr(self, name).items() if key != "next_cursor"}
            for name in ("statistics", "partitions", "flows", "events")
        }


KEYS: Final = (
    ("↑ ↓, k j", "select a flow"),
    ("Enter", "look at it: goal, wait, newest events; Esc or Enter goes back"),
    *((key, words) for key, (words, _) in QUESTIONS.items()),
    ("?", "this help"),
    ("q", "end"),
)


def screen(shown: Shown, width: int, height: int, now_ms: int) -> Group:
    """All of it, in `height` lines of `width` columns."""
    head = [*_head(shown, width)]
    room = height - len(head) - 1
    if shown.helps:
        body = [_cut(Text(f"  {keys:<12}{words}"), width) for keys, words in KEYS]
    elif shown.opened and shown.selected is not None:
        body = _opened(shown, room, width, now_ms)
    else:
        body = _overview(shown, room, width, now_ms)
    return Group(*[*head, *body][: height - 1], _keys(shown, width))


def _overview(shown: Shown, room: int, width: int, now_ms: int) -> list[Text]:
    """Partitions, flows and the newest events; of a low terminal the flows."""
    partitions = _partitions(shown.partitions, width)
    events = _events(shown.events, width, EVENTS if room >= HIGH - 5 else EVENTS // 2)
    left = room - len(partitions) - len(events)
    if left < 5:
        return _flows(shown, max(room, 1), width, now_ms)
    flows = _flows(shown, left, width, now_ms)
    return [*partitions, *flows, *[Text()] * (left - len(flows)), *events]


def _keys(shown: Shown, width: int) -> Text:
    if shown.helps:
        return _cut(Text("any key goes back", style="dim"), width)
    if shown.opened:
        return _cut(Text("Enter back   ↑↓ next flow   ? help   q end", style="dim"), width)
    line = Text("↑↓ Enter look   ", style="dim")
    for key, (words, _) in QUESTIONS.items():
        first = words.split(",")[0]
        line.append(key, style="bold" if key == shown.asked else "").append(f" {first}  ")
    if line.cell_len + 14 > width:
        line = Text(f"↑↓ Enter look   {'/'.join(QUESTIONS)} other flows", style="dim").append("   ")
    return _cut(line.append("? help  q end"), width)


def _head(shown: Shown, width: int) -> Iterator[Text]:
    statistics = shown.statistics
    title = Text.assemble(("taskflow ", "bold"), (shown.url, "dim"), "  ")
    yield _cut(title.append_text(_freshness(shown)), width)
    counts = Text()
    for status in STATUS_STYLES:
        counts.append(f"{statistics.get('flows', {}).get(status, 0):,} ", style="bold")
        counts.append_text(status_text(status)).append("  ")
    yield _cut(counts, width)
    rates = statistics.get("rates", {})
    words = "  ".join(f"{name} {rates.get(name, 0):,.1f}/s" for name in rates)
    ratio = statistics.get("failure_ratio")
    if ratio is not None:
        words += f"  failed, of what ended {100 * ratio:.1f} %"
    yield _cut(Text(words), width)
    series = [minute["events"] for minute in statistics.get("series", [])]
    # The newest minutes stand at the right, and are those that a narrow terminal keeps.
    newest = series[-max(1, width - 17) :]
    yield _cut(Text.assemble(("events a minute ", "dim"), (bars(newest), "blue")), width)


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


_FLOWS: Final = (
    *(Column("id"), Column("status"), Column("changed"), Column("owner", 8, rank=2)),
    *(Column("step", 6, rank=3), Column("waits for", 14, rank=1), Column("goal", 28)),
)


def _flows(shown: Shown, room: int, width: int, now_ms: int) -> list[Text]:
    items = shown.flows.get("items", [])
    title = _cut(Text.assemble(("flows: ", "bold"), QUESTIONS[shown.asked][0]), width)
    if not items:
        return [title, _cut(Text("No flow is like that.", style="dim"), width)][:room]
    at = next((nth for nth, flow in enumerate(items) if flow["id"] == shown.selected), None)
    rows_shown = max(1, room - 2)
    first = 0 if at is None else max(0, min(at - rows_shown // 2, len(items) - rows_shown))
    window = items[first : first + rows_shown]
    ids = short_ids(flow["id"] for flow in items)
    rows = [
        (
            ids[flow["id"]],
            live_status(flow["status"], flow["cancel_requested"]),
            age(flow["updated_at"], now_ms),
            flow["owner_session_key"],
            flow["current_step"],
            _wait(flow, now_ms),
            short(flow["goal"], SHOWN_MAX),
        )
        for flow in window
    ]
    lines = lines_of(_FLOWS, rows, width)
    if at is not None:
        chosen = lines[1 + at - first]
        chosen.pad_right(max(0, width - chosen.cell_len))
        chosen.stylize("reverse")
    if len(items) > len(window):
        title.append(f"  {first + 1}–{first + len(window)} of {len(items)}", style="dim")
    return [_cut(line, width) for line in (title, *lines)]


def _wait(flow: Mapping[str, Any], now_ms: int) -> str:
    wait = flow["wait_json"]
    if not wait:
        return ""
    what = {"external_event": short(wait.get("topic", ""), 24), "timer": "a time"}
    words = what.get(wait["kind"], wait_text(wait))
    # The time first: it is what a narrow column keeps.
    return ", ".join(filter(None, (_left(flow, now_ms), words)))


def _left(flow: Mapping[str, Any], now_ms: int) -> str:
    """How long the wait still takes, or has been over; empty if it never ends by itself."""
    if flow["wait_ends_at"] is None:
        return ""
    left_ms = parse_timestamp(flow["wait_ends_at"]) - now_ms
    return f"{span(left_ms)} left" if left_ms > 0 else f"over {span(-left_ms)}"


def _opened(shown: Shown, room: int, width: int, now_ms: int) -> list[Text]:
    """The flow that is selected, and its newest events."""
    flow = shown.flow
    lines = [_cut(Text.assemble(("flow ", "bold"), shown.selected or ""), width)]
    if flow is not None:
        status = status_text(flow["status"]).append(f"  r{flow['revision']}, changed ")
        changed = f"{age(flow['updated_at'], now_ms)} ago, {moment(flow['updated_at'])}"
        wrapped = textwrap.wrap(short(flow["goal"], 4 * width), max(20, width - 8))[:4]
        fields: list[tuple[str, str | Text]] = [
            *(("goal" if nth == 0 else "", line) for nth, line in enumerate(wrapped)),
            ("status", status.append(changed)),
            ("owner", f"{flow['owner_session_key']}, step {flow['current_step']}"),
        ]
        if flow["wait_json"]:
            waits = filter(None, (_left(flow, now_ms), f"for {wait_text(flow['wait_json'])}"))
            fields.append(("waits", ", ".join(waits)))
        lines += lines_of((Column("field"), Column("value", 20)), fields, width)[1:]
    events = shown.history.get("items", [])[: max(1, room - len(lines) - 2)]
    if events:
        heading, times = times_of(events)
        lines.append(_cut(Text(f"events, the newest first; {heading}", style="bold"), width))
        rows = [
            (
                at,
                Text(event["kind"], style="bold"),
                f"r{event['revision']}",
                event["actor"],
                what_of(event),
            )
            for at, event in zip(times, events, strict=True)
        ]
        columns = (Column("at"), Column("event"), Column("rev", rank=1), Column("by", 12))
        lines += lines_of((*columns, Column("what", 24)), rows, width)[1:]
    return lines


def _partitions(statistics: Mapping[str, Any], width: int) -> list[Text]:
    """One line where all is well; else those that stand or are far behind, too."""
    items = sorted(statistics.get("items", []), key=_urgency)
    behind = sum(_lag(one[name]) for one in items for name in ("commands", "control"))
    unwell = [one for one in items if not one["worker"] or not one["view"] or _is_late(one)]
    line = Text.assemble(("partitions ", "bold"), f"{len(items)}, {behind:,} commands behind")
    without = sum(not one["worker"] for one in items)
    if without:
        line.append(f", {without} without a worker", style="red")
    if not unwell:
        return [_cut(line, width)]
    rows = [
        (
            str(one["partition"]),
            one["worker"] or Text("no worker", style="red"),
            _behind(one["commands"]),
            _behind(one["control"]),
            one["view"] or Text("no view", style="red"),
            _behind(one["projected"]),
        )
        for one in unwell[:PARTITIONS]
    ]
    columns = (
        *(Column("partition"), Column("decided by", 10), Column("commands behind")),
        *(Column("control"), Column("shown by", 10, rank=1), Column("audit", rank=2)),
    )
    return [_cut(one, width) for one in (line, *lines_of(columns, rows, width))]


def _is_late(one: Mapping[str, Any]) -> bool:
    return any(_lag(one[name]) > BEHIND_SHOWN for name in ("commands", "control", "projected"))


def _lag(lag: Mapping[str, Any] | None) -> int:
    return int((lag or {}).get("behind") or 0)


def _urgency(one: Mapping[str, Any]) -> tuple[bool, int, int]:
    behind = sum((one[name] or {}).get("behind") or 0 for name in ("commands", "control"))
    return one["worker"] is not None, -behind, one["partition"]


def _behind(lag: Mapping[str, Any] | None) -> str | Text:
    behind = None if lag is None else lag["behind"]
    if behind is None:
        return "–"
    return Text(f"{behind:,}", style="red") if behind > 1_000 else f"{behind:,}"


def _events(statistics: Mapping[str, Any], width: int, most: int) -> list[Text]:
    rows = [
        (
            event["at"][11:19],
            Text(event["kind"], style="bold"),
            status_text(event["status"]),
            event["flow_id"][:ID_LENGTH],
            event["actor"],
            what_of(event),
        )
        for event in statistics.get("items", [])[:most]
    ]
    title = Text("events", style="bold")
    if not rows:
        return [title, Text("none yet", style="dim")]
    columns = (
        *(Column("at (UTC)"), Column("event"), Column("status", rank=2), Column("flow")),
        *(Column("by", 8, rank=1), Column("what", 28)),
    )
    return [title, *(_cut(line, width) for line in lines_of(columns, rows, width)[1:])]


def _cut(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line
