"""Show the history of a flow from its events, and from the outcomes that say why."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson
from aiokafka import ConsumerRecord
from rich.console import Console
from rich.text import Text

from processor.cli.common.history import open_history
from processor.cli.common.options import since_ms
from processor.cli.common.output import (
    console,
    for_people,
    plain,
    say,
    short,
    status_text,
    table,
    write_json,
)
from processor.cli.common.progress import progress_bar
from processor.cli.common.rows import Column, print_rows
from processor.cli.common.runner import Refused, WrongUse, run, settings_and_logs
from processor.cli.flow.event_text import times_of, what_of
from processor.cli.flow.flow_ids import flow_id_at
from processor.cli.flow.lookup import Found, events_of
from processor.cli.flow.view_lookup import shown_history
from processor.cli.flow.wait_format import span
from processor.contract.events import CHAIN_HEADER
from processor.contract.topics import Topics
from processor.contract.values import EVENTS_PER_PARTITION, instant, parse_timestamp
from processor.ops.flow_path import STEPS, parse_flow_path
from processor.ops.flow_timeline import (
    Explanation,
    Life,
    Moment,
    at_time,
    difference,
    explanations,
    lives,
)
from processor.ops.json_path import ABSENT, Path, written
from processor.runtime import now_ms
from processor.settings import Settings

BEFORE_MS: Final = 1_000
"""How much earlier than an event its outcome may be appended, at first; and how much at most: as
long as a transaction lasts."""
AROUND_MS: Final = 15_000

_HISTORY: Final = (
    *(Column("at"), Column("event"), Column("what", 24), Column("why", 13)),
    *(Column("after", rank=2), Column("status", rank=4), Column("rev", rank=3)),
    Column("by", 8, rank=1),
)

Doc = dict[str, Any]


class FlowPast(NamedTuple):
    """The lives of a flow; `appended` is when each event was (ms), by its id."""

    flow_id: str
    lives: Sequence[Life]
    partition: int
    appended: Mapping[int, int]

    def life(self, nth: int | None) -> Life:
        """Counted from 1; None: the last. Raises Refused."""
        if nth is None:
            return self.lives[-1]
        if nth > len(self.lives):
            lives = "one life" if len(self.lives) == 1 else f"{len(self.lives)} lives"
            raise Refused(f"Flow {self.flow_id} has had {lives} so far.")
        return self.lives[nth - 1]

    def revision(self, life: Life, revision: int) -> Moment:
        """Raises Refused if there was none."""
        moment = life.at_revision(revision)
        if moment is None:
            raise Refused(
                f"Flow {self.flow_id} has revisions 0 to {life.revisions[1]} in this life."
            )
        return moment


def show_history(flow_id: str, *, json: bool) -> None:
    """Print what happened to a flow, from its events and the outcomes that are kept."""
    settings = settings_and_logs(quiet=True)
    people = for_people(json)
    wanted = flow_id_at(settings, flow_id)
    past = (people and _seen(settings, wanted)) or _past(settings, wanted)
    why = run(lambda: outcomes_of(settings, past, [*past.appended]))
    if not people:
        for life in past.lives:
            for one in explanations(life):
                write_json({**one.event, "explained": _explained(one, why)})
        return
    for nth, life in enumerate(past.lives, 1):
        if len(past.lives) > 1:
            console().print(Text(f"life {nth}", style="bold"))
        print_story(console(), life, why, now_ms())


def show_difference(flow_id: str, before: int, after: int, *, life: int | None, json: bool) -> None:
    """Print what differs in a flow between two revisions."""
    settings = settings_and_logs(quiet=True)
    past = _past(settings, flow_id)
    of = past.life(life)
    found = difference(past.revision(of, before), past.revision(of, after))
    if not for_people(json):
        for change in found:
            write_json(change.as_json())
    elif not found:
        say("Nothing differs.")
    else:
        rows = [
            (change.path, Text(_json(change.before), "red"), Text(_json(change.after), "green"))
            for change in found
        ]
        print_rows(console(), ("path", f"revision {before}", f"revision {after}"), rows)


def show_blame(flow_id: str, path: str, *, life: int | None, json: bool) -> None:
    """Print which event changed a place of a flow last. Raises Refused if nothing stood there."""
    settings = settings_and_logs(quiet=True)
    place = _path(path)
    past = _past(settings, flow_id)
    found = past.life(life).blame(place)
    if found is None:
        raise Refused(f"Nothing ever stood at {written(place)} of flow {past.flow_id}.")
    event = found.event
    why = run(lambda: outcomes_of(settings, past, [event["id"]])).get(event["id"])
    if not for_people(json):
        command = {
            "command_id": event["command_id"],
            "kind": why and why["kind"],
            "source": event["source"],
            "message": why and why["message"],
        }
        change = found.change.as_json()
        write_json({**change, "actor": event["actor"], "command": command, "event": event})
        return
    source = event["source"]
    rows = [
        ("path", found.change.path),
        ("before", _json(found.change.before)),
        ("after", _json(found.change.after)),
        ("by", event["actor"]),
        ("at", event["at"]),
        ("event", f"{event['kind']}, id {event['id']}, revision {event['revision']}"),
        ("command", f"{why['kind'] if why else 'kind not known any more'} {event['command_id']}"),
        ("answered", why["message"] if why else "not known any more"),
        ("source", f"{source['topic']}/{source['partition']} offset {source['offset']}"),
    ]
    console().print(table(None, ("field", "value"), rows))


def found_then(
    settings: Settings,
    flow_id: str,
    *,
    revision: int | None,
    at: str | None,
    life: int | None,
) -> tuple[Found, Moment]:
    """The flow as it was. Raises Refused if it was not there then."""
    past = _past(settings, flow_id)
    if revision is not None:
        moment: Moment | None = past.revision(past.life(life), revision)
    else:
        assert at is not None
        moment = at_time(past.lives, since_ms(at, "--at"))
    if moment is None:
        raise Refused(f"Flow {past.flow_id} was not there at {at}: it was created later.")
    if moment.flow is None:
        raise Refused(f"Flow {past.flow_id} was not there at {at}: it had been pruned.")
    document = moment.document or {}
    steps = [*document.pop("steps").values()]
    chain = "" if moment.chain is None else moment.chain.hex()
    return Found(document, moment.event["id"], chain, steps), moment


async def outcomes_of(
    settings: Settings, past: FlowPast, event_ids: Sequence[int]
) -> dict[int, Doc]:
    """The outcomes that name these events, by event id; what retention took is missing.

    An outcome is appended in the same transaction as its events: it is looked for around them.
    """
    topic = Topics(settings.topic_prefix).outcomes
    found: dict[int, Doc] = {}
    async with open_history(settings, past.partition, "history") as history:
        with progress_bar("looking for outcomes") as bar:
            bar.expect(len(event_ids))
            stable = await history.stable_end(topic)
            kept = (await history.offset_range(topic)).start
            for event_id in event_ids:
                bar.advance(1)
                appended = past.appended[event_id]
                for before_ms in (BEFORE_MS, AROUND_MS):
                    if event_id in found:
                        break
                    since = await history.offset_at(topic, max(0, appended - before_ms))
                    if since is None:
                        continue
                    async for records in history.read(topic, max(since, kept), stable):
                        _note(records, past, found)
                        if event_id in found or records[-1].timestamp > appended + AROUND_MS:
                            break
    return found


def _note(records: Sequence[Any], past: FlowPast, found: dict[int, Doc]) -> None:
    key = past.flow_id.encode()
    for record in records:
        if record.key == key:
            outcome = orjson.loads(record.value)
            if outcome["verdict"] == "accepted":
                found |= dict.fromkeys(outcome["event_ids"], outcome)


def print_story(out: Console, life: Life, why: Mapping[int, Doc], now_ms: int) -> None:
    """A life, one event a row, and how long it was in each status, for people."""
    rows = []
    explained = [*explanations(life)]
    heading, times = times_of([one.event for one in explained])
    for one, at in zip(explained, times, strict=True):
        event, outcome = one.event, why.get(one.event["id"])
        topic = event["source"]["topic"].rpartition(".")[2]
        reason = f"on {topic}"
        if outcome is not None:
            reason = outcome["kind"] + (f" {reason}" if topic == "control" else "")
        if one.ended not in (None, "command"):
            reason = f"{one.ended}: {reason}"
        rows.append(
            (
                at,
                Text(event["kind"], style="bold"),
                what_of(event),
                reason,
                _left(one),
                status_text(event["status"]),
                str(event["revision"]),
                event["actor"],
            )
        )
    out.print(Text(heading, style="dim"))
    print_rows(out, _HISTORY, rows)
    spent: Counter[str] = Counter()
    for stay in life.stays():
        if stay.left_ms is not None:
            spent[stay.status] += stay.left_ms - stay.entered_ms
    parts = [f"{status} {span(spent_ms)}" for status, spent_ms in spent.items()]
    last = life.stays()[-1]
    if last.left_ms is None:
        parts.append(f"{last.status} for {span(max(0, now_ms - last.entered_ms))} now")
    out.print(plain(f"In all: {', '.join(parts)}."))


def _left(one: Explanation) -> str:
    if one.left is None or one.left.left_ms is None:
        return ""
    return f"{span(one.left.left_ms - one.left.entered_ms)} {one.left.status}"


def _explained(one: Explanation, why: Mapping[int, Doc]) -> Doc:
    outcome, left = why.get(one.event["id"]), one.left
    for_ms = None if left is None or left.left_ms is None else left.left_ms - left.entered_ms
    return {
        "command": outcome and outcome["kind"],
        "message": outcome and outcome["message"],
        "topic": one.event["source"]["topic"].rpartition(".")[2],
        "left": None if left is None else {"status": left.status, "for_ms": for_ms},
        "wait_ended_by": one.ended,
    }


def _past(settings: Settings, flow_id: str) -> FlowPast:
    """Raises Refused if nothing ever happened to it."""
    wanted = flow_id_at(settings, flow_id)
    records: list[ConsumerRecord] = run(lambda: _read(settings, wanted))
    if not records:
        raise Refused(f"There is no flow {wanted} under {settings.topic_prefix!r}.")
    events = [orjson.loads(record.value) for record in records]
    chains = (dict(record.headers).get(CHAIN_HEADER) for record in records)
    appended = {
        event["id"]: record.timestamp for event, record in zip(events, records, strict=True)
    }
    story = lives(zip(events, chains, strict=True))
    return FlowPast(wanted, story, records[0].partition, appended)


def _seen(settings: Settings, flow_id: str) -> FlowPast | None:
    """As views know it, which is without chains; None where they cannot say. An event's own time,
    when its command was appended, stands for when it was: outcomes follow it soon."""
    events = run(lambda: shown_history(settings, flow_id))
    if events is None:
        return None
    appended = {event["id"]: parse_timestamp(event["at"]) for event in events}
    partition = events[0]["id"] // EVENTS_PER_PARTITION
    return FlowPast(flow_id, lives((event, None) for event in events), partition, appended)


async def _read(settings: Settings, flow_id: str) -> list[ConsumerRecord]:
    return [record async for record in events_of(settings, flow_id)]


def _path(text: str) -> Path:
    try:
        return parse_flow_path(text, also=[STEPS])
    except ValueError as error:
        raise WrongUse(f"{text!r}: {error}.") from None


def _json(value: Any) -> str:
    return "-" if value is ABSENT else short(orjson.dumps(value).decode())


def as_of(moment: Moment) -> Doc:
    """Which event a flow is shown behind."""
    event = moment.event
    return {"event_id": event["id"], "kind": event["kind"], "at": instant(moment.at_ms)}
