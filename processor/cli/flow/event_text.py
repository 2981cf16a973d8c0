"""Format FlowEvents for people: what each of them says, and when it was."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from rich.console import Console
from rich.text import Text

from processor.cli.common.output import short, status_text
from processor.cli.common.rows import Column, moment, print_rows
from processor.domain.evolve import STEP_KINDS

Doc = Mapping[str, Any]
SHOWN_MAX = 240
"""Characters of a text that the widest terminal may show in a row."""


def what_of(event: Doc) -> str:
    """What an event is about, on one line: the goal, the reason, the wait, the step, the patch."""
    payload = event["payload_json"] or {}
    match event["kind"]:
        case "created":
            return short(payload["goal"], SHOWN_MAX)
        case "failed":
            return short(payload["reason"], SHOWN_MAX)
        case "waiting":
            return f"for {wait_text(payload['wait'])}"
        case "resumed":
            return f"by {payload['by']}{_patch(payload['state_patch'])}"
        case "finished":
            return _patch(payload["final_state"]).strip()
        case "state_updated":
            to = payload["next_step"]
            return f"{f'→ {to}' if to else ''}{_patch(payload['patch'])}".strip()
        case kind if kind in STEP_KINDS:
            return step_text(payload)
    return _patch(payload or None).strip()


def wait_text(wait: Doc) -> str:
    """What ends a wait."""
    match wait:
        case {"kind": "external_event", "topic": topic, "correlation_id": correlation_id}:
            return f"event {topic} / {correlation_id}"
        case {"kind": "steps", "run_ids": run_ids, **rest}:
            which = "one of the steps" if rest.get("mode") == "any" else "the steps"
            return f"{which} {', '.join(run_ids)}"
        case {"kind": "steps"}:
            return "all its steps"
    return str(wait.get("kind", ""))


def step_text(payload: Doc) -> str:
    """Which step, which attempt, and the reason of a failure."""
    step = payload.get("step") or payload["changes"]
    execution = step.get("execution")
    tries = f" {execution['attempt']}/{execution['max_attempts']}" if execution else ""
    reason = f": {short(payload['reason'], 200)}" if payload.get("reason") else ""
    return f"{short(payload.get('run_id') or step['run_id'], 24)}{tries}{reason}"


def times_of(events: Sequence[Doc]) -> tuple[str, list[str]]:
    """A heading and the times of some events: the day is said once if it is the same for all."""
    days = {event["at"][:10] for event in events}
    if len(days) == 1:
        return f"{days.pop()}, UTC", [event["at"][11:23] for event in events]
    return "times in UTC", [f"{moment(event['at'])}{event['at'][19:23]}" for event in events]


def print_events(out: Console, events: Sequence[bytes]) -> None:
    """FlowEvents of one flow, one a row, for people."""
    found = [orjson.loads(raw) for raw in events]
    heading, times = times_of(found)
    out.print(Text(heading, style="dim"))
    rows = [
        (
            at,
            Text(event["kind"], style="bold"),
            status_text(event["status"]),
            f"r{event['revision']}",
            event["actor"],
            what_of(event),
        )
        for event, at in zip(found, times, strict=True)
    ]
    columns = (
        *(Column("at"), Column("event"), Column("status", rank=2), Column("rev", rank=1)),
        *(Column("by", 15), Column("what", 24)),
    )
    print_rows(out, columns, rows)


def _patch(value: Any) -> str:
    return "" if value is None else " " + short(orjson.dumps(value).decode(), SHOWN_MAX)
