"""`taskflow deadletters redrive`: send dead letters back to their source topics."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from processor.adapters.kafka.admin.topic_admin import count_partitions
from processor.adapters.kafka.reader.topic_reader import TopicReader
from processor.cli.common.output import (
    console,
    for_people,
    say,
    verdict_text,
    write_json,
)
from processor.cli.common.progress import progress_bar
from processor.cli.common.rows import Column, age, print_rows
from processor.cli.deadletters.lookup import faults_text
from processor.client.errors import CommandNotSent
from processor.client.kafka.command_producer import CommandProducer
from processor.contract.outcomes import Verdict
from processor.contract.rights import Operation
from processor.contract.topics import Topics
from processor.contract.values import instant, parse_timestamp
from processor.ops.deadletters import DeadLetterRecord, outbound, partition_for
from processor.ops.diagnose import diagnose
from processor.runtime import now_ms
from processor.settings import Settings

POLL_S = 0.2


class Plan(NamedTuple):
    """What goes back instead of a letter's own key and value."""

    key: bytes | None
    value: bytes | None


def why_not(dead_letter: DeadLetterRecord, plan: Plan, *, unreadable: bool) -> str | None:
    """Why a letter cannot go back, or should not; None if it may."""
    if plan.value is None and dead_letter.sendable is not None:
        return dead_letter.sendable
    if unreadable and plan.value is None:
        return None
    found = dead_letter.diagnosis if plan.value is None else diagnose(plan.key, plan.value)
    return None if found.code is None else f"would still be {found.code}: {faults_text(found)}"


def preview(
    going: Sequence[tuple[DeadLetterRecord, str | None]],
    staying: Sequence[tuple[DeadLetterRecord, str | None]],
    plan: Plan,
    json: bool,
) -> None:
    rows = []
    for dead_letter, why in (*going, *staying):
        found = dead_letter.diagnosis if plan.value is None else diagnose(plan.key, plan.value)
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


async def send_back(
    settings: Settings,
    dead_letters: Sequence[DeadLetterRecord],
    plan: Plan,
    timeout_s: float,
    json: bool,
) -> bool:
    """Whether each was sent, answered and accepted."""
    names = Topics(settings.topic_prefix)
    sources = {names.commands, names.control} & {
        dead_letter.source_topic for dead_letter in dead_letters
    }
    counts = await count_partitions(settings, [names.outcomes])
    counts |= await count_partitions(settings, sources, Operation.WRITE)
    outcomes = TopicReader(settings, names.outcomes)
    await outcomes.open(range(counts[names.outcomes]), "end")
    producer = CommandProducer(settings)
    waiting: dict[tuple[str, int, int], DeadLetterRecord] = {}
    done = True
    try:
        await producer.start()
        with progress_bar("sending back") as bar:
            bar.expect(len(dead_letters))
            for dead_letter in dead_letters:
                record = outbound(dead_letter, names.dead_letters, key=plan.key, value=plan.value)
                if record.topic not in (names.commands, names.control):
                    say(f"{dead_letter.spot} came from {record.topic}, which is none of ours.")
                    done = False
                    continue
                try:
                    written = await producer.send(
                        record.topic,
                        record.key,
                        record.value,
                        record.headers,
                        partition=partition_for(record, counts[record.topic]),
                        handed_over=lambda: None,
                    )
                except CommandNotSent as error:
                    say(f"{dead_letter.spot}: {error}")
                    done = False
                    continue
                bar.advance(1)
                waiting[record.topic, written.partition, written.offset] = dead_letter
        found = await _outcomes_at(outcomes, set(waiting), timeout_s)
    finally:
        await outcomes.close()
        await producer.close()
    rows: list[dict[str, Any]] = []
    for place, dead_letter in waiting.items():
        outcome = found.get(place)
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


async def _outcomes_at(
    outcomes: TopicReader, places: set[tuple[str, int, int]], timeout_s: float
) -> dict[tuple[str, int, int], dict[str, Any]]:
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    deadline = time.monotonic() + timeout_s
    while places - found.keys() and time.monotonic() < deadline:
        for record in await outcomes.poll(wait_s=POLL_S):
            outcome = orjson.loads(record.value or b"")
            source = outcome["source"]
            place = source["topic"], source["partition"], source["offset"]
            if place in places:
                found[place] = outcome
    return found


def dead_letters_text(count: int) -> str:
    return f"{count:,} letter{'' if count == 1 else 's'}"
