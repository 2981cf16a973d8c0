"""`taskflow deadletters redrive`: send dead letters back to their source topics."""

from collections.abc import Sequence
from typing import Any

import orjson

from processor.cli.common.output import (
    console,
    for_people,
    say,
    verdict_text,
    write_json,
)
from processor.cli.common.progress import progress_bar
from processor.cli.common.rows import Column, age, print_rows
from processor.client.connection import connect
from processor.contract.outcomes import Verdict
from processor.contract.topics import Topics
from processor.contract.values import instant, parse_timestamp
from processor.ops.deadletters import DeadLetterRecord, outbound
from processor.ops.redrive import Plan, diagnosis_of, send_back
from processor.runtime import now_ms
from processor.settings import Settings


def preview(
    going: Sequence[tuple[DeadLetterRecord, str | None]],
    staying: Sequence[tuple[DeadLetterRecord, str | None]],
    plan: Plan,
    json: bool,
) -> None:
    rows = []
    for dead_letter, why in (*going, *staying):
        found = diagnosis_of(dead_letter, plan)
        today = "would be read" if found.code is None else f"still {found.code}"
        rows.append(
            {
                "letter": str(dead_letter.spot),
                "at": instant(dead_letter.at_ms),
                "code": dead_letter.facts.code,
                "to": dead_letter.source_topic,
                "today": _expired(dead_letter) if found.code is None else today,
                "stays": why,
            }
        )
    if not for_people(json):
        for row in rows:
            write_json(row)
    elif rows:
        now, names = now_ms(), ("letter", "code", "to", "today", "stays")
        cells = [[age(str(row["at"]), now), *(row[name] or "" for name in names)] for row in rows]
        columns = (
            *(Column("age", rank=2), Column("letter"), Column("code", 10, rank=3)),
            *(Column("to", 8, rank=1), Column("today", 12), Column("stays", 24)),
        )
        print_rows(console(), columns, cells)


def _expired(dead_letter: DeadLetterRecord) -> str:
    try:
        expires_at = orjson.loads(dead_letter.value or b"").get("expires_at")
        if expires_at is not None and parse_timestamp(expires_at) < now_ms():
            return "would be read, but has expired"
    except (ValueError, AttributeError, TypeError):
        pass
    return "would be read"


async def send_all(
    settings: Settings,
    dead_letters: Sequence[DeadLetterRecord],
    plan: Plan,
    timeout_s: float,
    json: bool,
) -> bool:
    """Whether each was sent, answered and accepted."""
    names = Topics(settings.topic_prefix)
    with progress_bar("sending back") as bar:
        bar.expect(len(dead_letters))
        results = await send_back(
            connect(settings),
            names,
            [
                outbound(dead_letter, names.dead_letters, key=plan.key, value=plan.value)
                for dead_letter in dead_letters
            ],
            timeout_s=timeout_s,
            written=lambda: bar.advance(1),
        )
    rows: list[dict[str, Any]] = []
    done = True
    for dead_letter, (place, outcome, problem) in zip(dead_letters, results, strict=True):
        if place is None:
            say(f"{dead_letter.spot}: {problem}")
            done = False
            continue
        verdict = None if outcome is None else outcome["verdict"]
        code = None if outcome is None else outcome["code"]
        first = outcome["original"] if outcome and verdict == Verdict.DUPLICATE else verdict
        done = done and first == Verdict.ACCEPTED
        to = "/".join(map(str, place))
        rows.append({"letter": str(dead_letter.spot), "to": to, "verdict": verdict, "code": code})
    if not for_people(json):
        for row in rows:
            write_json(row)
    else:
        shown = [
            (row["letter"], row["to"], verdict_text(row["verdict"] or "?"), row["code"] or "")
            for row in rows
        ]
        columns = (Column("letter"), Column("sent back to", 16), Column("verdict"), Column("code"))
        print_rows(console(), columns, shown)
    if unanswered := sum(row["verdict"] is None for row in rows):
        say(f"{dead_letters_text(unanswered)} without an outcome so far. Is a worker running?")
    return done


def dead_letters_text(count: int) -> str:
    return f"{count:,} letter{'' if count == 1 else 's'}"
