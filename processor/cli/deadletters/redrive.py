"""`taskflow deadletters redrive`: send dead letters back to their source topics."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import typer

from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.options import JSON, duration_ms
from processor.cli.common.output import (
    console,
    for_people,
    print_rows,
    say,
    verdict_text,
    write_json,
)
from processor.cli.common.progress import progress_bar
from processor.cli.common.runner import WrongUse, run, settings_and_logs
from processor.cli.deadletters.edit import VALUE, key_for, read_file
from processor.cli.deadletters.lookup import (
    CODE,
    SINCE,
    UNTIL,
    faults_text,
    find_letters,
    no_letter,
    spot_of,
    wanted_of,
)
from processor.client.command_producer import CommandProducer
from processor.client.errors import CommandNotSent
from processor.client.reader import CommittedReader, count_partitions
from processor.contract.outcomes import Verdict
from processor.contract.topics import Topics
from processor.contract.values import instant, parse_timestamp
from processor.ops.deadletters import DeadLetterRecord, outbound, partition_for
from processor.ops.diagnose import diagnose
from processor.settings import Settings

POLL_S = 0.2
PLACES = typer.Argument(None, help="Letters: partition/offset, such as 2/17.")


def redrive(
    places: list[str] | None = PLACES,
    code: str | None = CODE,
    since: str | None = SINCE,
    until: str | None = UNTIL,
    everything: bool = typer.Option(False, "--all", help="All letters there are."),
    value: Path | None = VALUE,
    key: str | None = typer.Option(None, "--key", help="With --value: the key to send it with."),
    again: bool = typer.Option(False, "--again", help="Also those that were sent back before."),
    unreadable: bool = typer.Option(
        False, "--unreadable", help="Also those that would only become dead letters again."
    ),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    timeout: str = typer.Option("30s", "--timeout", help="How long to await the outcomes."),
    json: bool = JSON,
) -> None:
    """Send dead letters back to where they came from, and await their outcomes.

    Key, value and headers are those of the original record; the headers that the dead letter added
    are removed, and `taskflow-redriven-from` names the letter instead. By that header a letter that
    was sent back before is known: it is listed and not sent again, except with --again; the
    processor then answers a command that it has decided with `duplicate`, within its window.

    A letter that the processor would still refuse to read is listed with the reason and not sent:
    correct it with `taskflow deadletters edit` and --value, or pass --unreadable.

    A record goes to the partition of its key, and one without a key to where it was. With --value
    one letter goes back with that value, and the `flow_id` in it as its key, except with --key. It
    asks before; in a pipe it takes --yes. Exit code 1 if anything was not sent, not answered in
    time, or not accepted; a letter that was sent back before counts as sent.

    Example: `taskflow deadletters redrive --code malformed --since 1h --dry-run`

    Settings: as for `taskflow send`.
    """
    spots = [spot_of(place) for place in places or ()]
    if not (spots or code or since or until or everything):
        raise WrongUse("Say which letters: by place, --code, --since, --until, or --all.")
    if (value is not None or key is not None) and len(spots) != 1:
        raise WrongUse("--value and --key are for one letter, named by its place.")
    if key is not None and value is None:
        raise WrongUse("--key goes with --value: the value to send under it.")
    ask = Confirmation(dry_run, yes)
    settings = settings_and_logs(quiet=True)
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    wanted = wanted_of(spots, code, since, until, None)
    letters, sent = run(lambda: find_letters(settings, wanted, look_for_sent=True))
    if missing := sorted(set(spots) - {letter.spot for letter in letters}):
        raise no_letter(settings, missing[0])
    edited = None if value is None else read_file(value)
    plan = _Plan(key_for(letters[0], edited, key) if edited else None, edited)
    going: list[tuple[DeadLetterRecord, str | None]] = []
    staying: list[tuple[DeadLetterRecord, str | None]] = []
    refused = 0
    for letter in letters:
        before = None if again else sent.get(letter.spot)
        why = _why_not(letter, plan, unreadable=unreadable)
        if before is not None:
            staying.append((letter, f"was sent back before, to {before}"))
        elif why is not None:
            refused += 1
            staying.append((letter, why))
        else:
            going.append((letter, None))
    if ask.shows:
        _preview(going, staying, plan, json)
    elif staying:
        stay = "stays" if len(staying) == 1 else "stay"
        say(f"{_letters(len(staying))} {stay}: {staying[0][0].spot} {staying[0][1]}.")
    if dry_run:
        say(f"{_letters(len(going))} would be sent back, {_letters(len(staying))} would stay.")
        return
    done = refused == 0
    if not going:
        say("Nothing is to be sent.")
    else:
        ask.before(f"Send {_letters(len(going))} back?", "Nothing was sent.")
        chosen = [letter for letter, _ in going]
        done &= run(lambda: _redrive(settings, chosen, plan, timeout_s, json))
    if not done:
        raise typer.Exit(1)


class _Plan(NamedTuple):
    """What goes back instead of a letter's own key and value."""

    key: bytes | None
    value: bytes | None


def _why_not(letter: DeadLetterRecord, plan: _Plan, *, unreadable: bool) -> str | None:
    """Why a letter cannot go back, or should not; None if it may."""
    if plan.value is None and letter.sendable is not None:
        return letter.sendable
    if unreadable and plan.value is None:
        return None
    found = letter.diagnosis if plan.value is None else diagnose(plan.key, plan.value)
    return None if found.code is None else f"would still be {found.code}: {faults_text(found)}"


def _preview(
    going: Sequence[tuple[DeadLetterRecord, str | None]],
    staying: Sequence[tuple[DeadLetterRecord, str | None]],
    plan: _Plan,
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
        if expires_at is not None and parse_timestamp(expires_at) < time.time_ns() // 1_000_000:
            return "would be read, but has expired"
    except (ValueError, AttributeError, TypeError):
        pass
    return "would be read"


async def _redrive(
    settings: Settings,
    letters: Sequence[DeadLetterRecord],
    plan: _Plan,
    timeout_s: float,
    json: bool,
) -> bool:
    """Whether each was sent, answered and accepted."""
    names = Topics(settings.topic_prefix)
    counts = await count_partitions(settings, [names.commands, names.control, names.outcomes])
    outcomes = CommittedReader(settings, names.outcomes)
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
        say(f"{_letters(unanswered)} without an outcome so far. Is a worker running?")
    return done


async def _answers(
    outcomes: CommittedReader, places: set[tuple[str, int, int]], timeout_s: float
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


def _letters(count: int) -> str:
    return f"{count:,} letter{'' if count == 1 else 's'}"
