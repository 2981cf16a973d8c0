"""`taskflow deadletters redrive`: send dead letters back to their source topics."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import orjson

from processor.adapters.kafka.topic_admin import count_partitions
from processor.adapters.kafka.topic_reader import TopicReader
from processor.cli.common.output import (
    console,
    for_people,
    print_rows,
    say,
    verdict_text,
    write_json,
)
from processor.cli.common.progress import progress_bar
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


def why_not(letter: DeadLetterRecord, plan: Plan, *, unreadable: bool) -> str | None:
    """Why a letter cannot go back, or should not; None if it may."""
    if plan.value is None and letter.sendable is not None:
        return letter.sendable
    if unreadable and plan.value is None:
        return None
    found = letter.diagnosis if plan.value is None else diagnose(plan.key, plan.value)
    return None if found.code is None else f"would still be {found.code}: {faults_text(found)}"


def preview(
    going: Sequence[tuple[DeadLetterRecord, str | None]],
    staying: Sequence[tuple[DeadLetterRecord, str | None]],
    plan: Plan,
    json: bool,
) -> None:
    rows = []
    for letter, why in (*going, *staying):
        found = letter.diagnosis if plan.value is None else diagnose(plan.key, plan.value)
        today = "would be read" if found.code is None else f"still {found.code}"
        rows.append(
            {
                "letter": str(letter.spot),
                "at": instant(letter.at_ms),
                "code": letter.facts.code,
                "to": letter.source_topic,
                "today": _expired(letter) if found.code is None else today,
                "stays": why,
            }
        )
    if not for_people(json):
        for row in rows:
            write_json(row)
    elif rows:
        columns = ("letter", "at", "code", "to", "today", "stays")
        print_rows(console(), columns, [[row[name] or "" for name in columns] for row in rows])


def _expired(letter: DeadLetterRecord) -> str:
    try:
        expires_at = orjson.loads(letter.value or b"").get("expires_at")
        if expires_at is not None and parse_timestamp(expires_at) < now_ms():
            return "would be read, but has expired"
    except (ValueError, AttributeError, TypeError):
        pass
    return "would be read"


async def send_back(
    settings: Settings,
    letters: Sequence[DeadLetterRecord],
    plan: Plan,
    timeout_s: float,
    json: bool,
) -> bool:
    """Whether each was sent, answered and accepted."""
    names = Topics(settings.topic_prefix)
    sources = {names.commands, names.control} & {letter.source_topic for letter in letters}
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
            bar.expect(len(letters))
            for letter in letters:
                record = outbound(letter, names.dead_letters, key=plan.key, value=plan.value)
                if record.topic not in (names.commands, names.control):
                    say(f"{letter.spot} came from {record.topic}, which is none of ours.")
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
                    say(f"{letter.spot}: {error}")
                    done = False
                    continue
                bar.advance(1)
                waiting[record.topic, written.partition, written.offset] = letter
        answers = await _answers(outcomes, set(waiting), timeout_s)
    finally:
        await outcomes.close()
        await producer.close()
    rows: list[dict[str, Any]] = []
    for place, letter in waiting.items():
        outcome = answers.get(place)
        verdict = None if outcome is None else outcome["verdict"]
        code = None if outcome is None else outcome["code"]
        first = outcome["original"] if outcome and verdict == Verdict.DUPLICATE else verdict
        done = done and first == Verdict.ACCEPTED
        to = "/".join(map(str, place))
        rows.append({"letter": str(letter.spot), "to": to, "verdict": verdict, "code": code})
    if not for_people(json):
        for row in rows:
            write_json(row)
    else:
        shown = [
            (row["letter"], row["to"], verdict_text(row["verdict"] or "?"), row["code"] or "")
            for row in rows
        ]
        print_rows(console(), ("letter", "sent back to", "verdict", "code"), shown)
    if unanswered := sum(row["verdict"] is None for row in rows):
        say(f"{letters_text(unanswered)} without an outcome so far. Is a worker running?")
    return done


async def _answers(
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


def letters_text(count: int) -> str:
    return f"{count:,} letter{'' if count == 1 else 's'}"
