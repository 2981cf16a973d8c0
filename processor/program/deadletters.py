"""`taskflow deadletters`: the stream, and looking at letters, editing them, sending them back."""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import typer
from rich.text import Text

from processor.adapters.kafka.reader import BEGINNING, Start, read
from processor.client.command_producer import CommandProducer
from processor.client.errors import CommandNotSent
from processor.client.reader import CommittedReader, count_partitions
from processor.ops.anatomy import diagnose, hex_dump
from processor.ops.deadletters import (
    Letter,
    Spot,
    Wanted,
    letter_of,
    outbound,
    partition_for,
    redriven_from,
)
from processor.program import streams
from processor.program.consent import DRY_RUN, YES, Ask
from processor.program.options import JSON, duration_ms, flow_id_of, since_ms
from processor.program.output import (
    console,
    for_people,
    plain,
    print_rows,
    say,
    somebody_to_ask,
    table,
    verdict_text,
    write_json,
)
from processor.program.progress import progress_bar
from processor.program.running import Refused, WrongUse, run, settings_and_logs
from processor.program.streams import FLOW, FOLLOW, FROM_BEGINNING, as_text
from processor.settings import Settings
from schemas.outcomes import Verdict
from schemas.topics import Topics
from schemas.values import instant, parse_timestamp

POLL_S = 0.2

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)

PLACE = typer.Argument(..., help="A letter: its partition/offset on the topic, such as 2/17.")
PLACES = typer.Argument(None, help="Letters: partition/offset, such as 2/17.")
CODE = typer.Option(None, "--code", help="Only letters with this code, such as malformed.")
SINCE = typer.Option(None, "--since", help="Only letters written since: a time, or 10m ago.")
UNTIL = typer.Option(None, "--until", help="Only letters written before: a time, or 10m ago.")
OUTPUT = typer.Option(None, "--output", "-o", help="Where the value goes.")
SAVE = typer.Option(None, "--save", help="A file that the value is written to.")
VALUE = typer.Option(None, "--value", help="A file with the value to take instead.")


@app.callback(invoke_without_command=True)
def deadletters(
    context: typer.Context,
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = streams.SINCE,
    flow: str | None = FLOW,
) -> None:
    """Print the dead letters, what could not be read as a command, as JSON lines.

    Key, value and headers are texts, or {"base64": "..."} where they are not UTF-8. --flow
    compares the record's key. Options and settings are those of `taskflow audit`.

    `list`, `show`, `edit` and `redrive` find out what is wrong with them and send them back.

    Example: `taskflow deadletters --since 1d`
    """
    if context.invoked_subcommand is None:
        streams.deadletters(follow, from_beginning, since, flow)


@app.command("list")
def list_(
    code: str | None = CODE,
    since: str | None = SINCE,
    until: str | None = UNTIL,
    flow: str | None = typer.Option(None, "--flow", help="Only letters with this key."),
    redriven: bool = typer.Option(
        False, "--redriven", help="Also say which were sent back, and where they lie since."
    ),
    json: bool = JSON,
) -> None:
    """List dead letters, the oldest first: place, time, code, where they came from, and what.

    --redriven reads the source topics from the first letter's time on.

    Example: `taskflow deadletters list --code malformed --since 1d`
    """
    settings = settings_and_logs(quiet=True)
    wanted = _wanted((), code, since, until, flow)
    letters, sent = run(lambda: _find(settings, wanted, look_for_sent=redriven))
    if not for_people(json):
        for letter in letters:
            write_json(_row(letter, sent) | {"message": letter.message})
        return
    rows = [
        (
            str(letter.spot),
            instant(letter.at_ms)[:19].replace("T", " "),
            Text(letter.code, style="red"),
            _source(letter),
            sent.get(letter.spot, "") if redriven else "",
            letter.message,
        )
        for letter in letters
    ]
    print_rows(console(), ("letter", "at", "code", "from", "sent back to", "why"), rows)


@app.command("show")
def show(place: str = PLACE, save: Path | None = SAVE, json: bool = JSON) -> None:
    """Show one dead letter: why, where in its bytes, as text and as hex; whether it went back.

    The offsets count bytes of the value from 0. --save writes the value, byte by byte, to a file.

    Example: `taskflow deadletters show 2/17`
    """
    settings = settings_and_logs(quiet=True)
    letter, sent = run(lambda: _one(settings, _spot(place)))
    if save is not None:
        save.write_bytes(letter.value or b"")
    found = letter.diagnosis
    at = next((fault.at for fault in found.faults if fault.at is not None), None)
    if not for_people(json):
        shown = hex_dump(letter.value or b"", around=at or 0)
        faults = [fault._asdict() for fault in found.faults]
        write_json(
            _row(letter, sent)
            | {
                "message": letter.message,
                "faults": faults,
                "key": as_text(letter.key),
                "value": as_text(letter.value),
                "headers": [[name, as_text(value)] for name, value in letter.headers],
                "hex": [line[1:] for line in shown],
            }
        )
        return
    out = console()
    fields: list[tuple[str, str]] = [
        ("letter", f"{letter.spot}, written {instant(letter.at_ms)}"),
        ("from", _source(letter) + (f", {instant(letter.source_ms)}" if letter.source_ms else "")),
        ("code", letter.code),
        ("why", letter.message),
        ("key", _shown(letter.key)),
        *((f"header {name}", _shown(value)) for name, value in letter.headers),
        ("sent back to", sent.get(letter.spot, "nowhere yet")),
        ("today", "would be read" if found.code is None else str(found.code)),
    ]
    out.print(table(None, ("field", "value"), fields))
    for fault in found.faults:
        out.print(plain(_fault(fault.at, fault.problem, fault.path)), style="red")
    if letter.value:
        out.print(Text("\nvalue", style="bold"))
        out.print(plain(letter.value.decode("utf-8", "replace")[:4096]))
        out.print(Text("\nbytes", style="bold"))
        for line in hex_dump(letter.value, around=at or 0):
            out.print(plain(line), style="yellow" if line.startswith(">") else "")


@app.command("edit")
def edit(
    place: str = PLACE,
    value: Path | None = VALUE,
    output: Path | None = OUTPUT,
    key: str | None = typer.Option(None, "--key", help="The flow's id, if the key is wrong too."),
) -> None:
    """Correct the value of a dead letter, in $EDITOR or from a file; it is checked as the
    processor would, and written to a file that `redrive` takes. Nothing is sent.

    Exit code 1 if the result is no command; it is written all the same, to go on from.

    Example: `taskflow deadletters edit 2/17 --output fixed.json`
    """
    if value is None and not somebody_to_ask():
        raise WrongUse("There is no terminal for an editor: name a file by --value.")
    settings = settings_and_logs(quiet=True)
    letter, _ = run(lambda: _one(settings, _spot(place)))
    edited = _read_file(value) if value is not None else _in_editor(letter.value or b"")
    target = output or Path(f"deadletter-{letter.spot.partition}-{letter.spot.offset}.json")
    target.write_bytes(edited)
    found = diagnose(_key_for(letter, edited, key), edited)
    for fault in found.faults:
        say(_fault(fault.at, fault.problem, fault.path))
    if found.code is not None:
        raise Refused(f"{target} is still no command ({found.code}); edit it again.")
    again = f" --key {key}" if key else ""
    say(f"`taskflow deadletters redrive {letter.spot} --value {target}{again}` sends it back.")


@app.command("redrive")
def redrive(
    places: list[str] | None = PLACES,
    code: str | None = CODE,
    since: str | None = SINCE,
    until: str | None = UNTIL,
    everything: bool = typer.Option(False, "--all", help="All letters there are."),
    value: Path | None = VALUE,
    key: str | None = typer.Option(None, "--key", help="With --value: the key to send it with."),
    again: bool = typer.Option(False, "--again", help="Also those that were sent back before."),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    timeout: str = typer.Option("30s", "--timeout", help="How long to await the outcomes."),
    json: bool = JSON,
) -> None:
    """Send dead letters back to where they came from, and await what is decided.

    Key, value and headers are those of the record as it was; what was added to the letter is
    taken off, and `taskflow-redriven-from` names the letter instead. By that header it is known
    what went back before: it is listed and not sent again, unless you say --again; then the
    processor answers a command that it has decided already with `duplicate`, within its window.

    A record goes to the partition of its key, and one without a key to where it lay. With --value
    one letter goes back with that value, and the `flow_id` in it as its key, unless the key is
    told. It asks before; in a pipe it takes --yes. Exit code 1 if anything was not sent, not
    answered in time, or not accepted.

    Example: `taskflow deadletters redrive --code malformed --since 1h --dry-run`

    Settings: as for `taskflow send`.
    """
    spots = [_spot(place) for place in places or ()]
    if not (spots or code or since or until or everything):
        raise WrongUse("Say which letters: by place, --code, --since, --until, or --all.")
    if (value is not None or key is not None) and len(spots) != 1:
        raise WrongUse("--value and --key are for one letter, named by its place.")
    ask = Ask(dry_run, yes)
    settings = settings_and_logs(quiet=True)
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    wanted = _wanted(spots, code, since, until, None)
    letters, sent = run(lambda: _find(settings, wanted, look_for_sent=True))
    if missing := sorted(set(spots) - {letter.spot for letter in letters}):
        raise Refused(f"There is no dead letter {missing[0]}.")
    edited = None if value is None else _read_file(value)
    plan = _Plan(_key_for(letters[0], edited, key) if edited else None, edited)
    going: list[tuple[Letter, str | None]] = []
    staying: list[tuple[Letter, str | None]] = []
    for letter in letters:
        why = _why_not(letter, sent, plan, again=again)
        (going if why is None else staying).append((letter, why))
    if ask.shows:
        _preview(going, staying, plan, json)
    elif staying:
        say(f"{_letters(len(staying))} stay: {staying[0][0].spot} {staying[0][1]}.")
    if dry_run or not going:
        say(f"{_letters(len(going))} would be sent back." if dry_run else "Nothing is to be sent.")
        return
    ask.before(f"Send {_letters(len(going))} back?", "Nothing was sent.")
    done = run(lambda: _redrive(settings, [letter for letter, _ in going], plan, timeout_s, json))
    if not done:
        raise typer.Exit(1)


class _Plan(NamedTuple):
    """What goes back instead of a letter's own key and value."""

    key: bytes | None
    value: bytes | None


def _wanted(
    spots: Sequence[Spot],
    code: str | None,
    since: str | None,
    until: str | None,
    flow: str | None,
) -> Wanted:
    return Wanted(
        spots,
        code,
        None if since is None else since_ms(since),
        None if until is None else since_ms(until, "--until"),
        None if flow is None else flow_id_of(flow).encode(),
    )


def _spot(place: str) -> Spot:
    partition, slash, offset = place.partition("/")
    if not (slash and partition.isdecimal() and offset.isdecimal()):
        raise WrongUse(f"{place!r} is no place of a letter: it is partition/offset, such as 2/17.")
    return Spot(int(partition), int(offset))


async def _one(settings: Settings, spot: Spot) -> tuple[Letter, dict[Spot, str]]:
    letters, sent = await _find(settings, Wanted((spot,)), look_for_sent=True)
    if not letters:
        raise Refused(f"There is no dead letter {spot} under {settings.topic_prefix!r}.")
    return letters[0], sent


async def _find(
    settings: Settings, wanted: Wanted, *, look_for_sent: bool
) -> tuple[list[Letter], dict[Spot, str]]:
    """The letters, and where those lie that were sent back."""
    names = Topics(settings.topic_prefix)
    start = BEGINNING if wanted.since_ms is None else Start(at_ms=wanted.since_ms)
    partitions: list[int] | None = None
    if wanted.spots:
        count = (await count_partitions(settings, [names.dead_letters]))[names.dead_letters]
        partitions = sorted({spot.partition for spot in wanted.spots if spot.partition < count})
    letters = []
    records = read(settings, names.dead_letters, start=start, partitions=partitions)
    async with aclosing(records):
        async for record in records:
            if wanted.takes(letter := letter_of(record)):
                letters.append(letter)
    sent: dict[Spot, str] = {}
    if letters and look_for_sent:
        since = Start(at_ms=min(letter.at_ms for letter in letters))
        sources = {names.commands, names.control} & {letter.source_topic for letter in letters}
        with progress_bar("looking for what was sent back") as bar:
            for topic in sorted(sources):
                async with aclosing(read(settings, topic, start=since)) as records:
                    async for record in records:
                        bar.count(1)
                        spot = redriven_from(record, names.dead_letters)
                        if spot is not None:
                            sent[spot] = f"{topic}/{record.partition}/{record.offset}"
    return letters, sent


def _why_not(letter: Letter, sent: Mapping[Spot, str], plan: _Plan, *, again: bool) -> str | None:
    if letter.spot in sent and not again:
        return f"was sent back before, to {sent[letter.spot]}"
    if plan.value is not None:
        found = diagnose(plan.key, plan.value)
        told = "; ".join(_fault(f.at, f.problem, f.path) for f in found.faults)
        return f"would still be no command ({found.code}): {told}" if found.code else None
    return letter.sendable


def _preview(
    going: Sequence[tuple[Letter, str | None]],
    staying: Sequence[tuple[Letter, str | None]],
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
                "code": letter.code,
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


def _expired(letter: Letter) -> str:
    try:
        expires_at = orjson.loads(letter.value or b"").get("expires_at")
        if expires_at is not None and parse_timestamp(expires_at) < time.time_ns() // 1_000_000:
            return "would be read, but has expired"
    except (ValueError, AttributeError, TypeError):
        pass
    return "would be read"


async def _redrive(
    settings: Settings, letters: Sequence[Letter], plan: _Plan, timeout_s: float, json: bool
) -> bool:
    """Whether each was sent, answered and accepted."""
    names = Topics(settings.topic_prefix)
    counts = await count_partitions(settings, [names.commands, names.control, names.outcomes])
    outcomes = CommittedReader(settings, names.outcomes)
    await outcomes.open(range(counts[names.outcomes]), "end")
    producer = CommandProducer(settings)
    waiting: dict[tuple[str, int, int], Letter] = {}
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


def _key_for(letter: Letter, value: bytes, told: str | None) -> bytes | None:
    """The key that an edited value goes out with: as told, or the flow's that it names."""
    if told is not None:
        return flow_id_of(told).encode()
    try:
        flow_id = orjson.loads(value)["flow_id"]
    except (ValueError, TypeError, LookupError):
        return letter.key
    return flow_id.encode() if isinstance(flow_id, str) else letter.key


def _in_editor(value: bytes) -> bytes:
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory(prefix="taskflow-") as scratch:
        path = Path(scratch) / "letter.json"
        path.write_bytes(value)
        try:
            code = subprocess.call([*shlex.split(editor), str(path)], stdout=sys.stderr)
        except OSError as error:
            raise Refused(f"{editor} could not be started: {error.strerror}.") from None
        if code != 0:
            raise Refused(f"{editor} ended with code {code}; nothing was written.")
        # Editors end a file with a newline, which the codec does not mind; bytes stay as they are.
        return path.read_bytes()


def _read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise WrongUse(f"{path} cannot be read: {error.strerror}.") from None


def _row(letter: Letter, sent: Mapping[Spot, str]) -> dict[str, Any]:
    return {
        "letter": str(letter.spot),
        "at": instant(letter.at_ms),
        "code": letter.code,
        "from": _source(letter),
        "redriven_to": sent.get(letter.spot),
    }


def _source(letter: Letter) -> str:
    if not letter.source_topic:
        return "nowhere told"
    return f"{letter.source_topic}/{letter.source_partition}/{letter.source_offset}"


def _fault(at: int | None, problem: str, path: str | None) -> str:
    where = "" if at is None else f"at byte {at}: "
    return f"{where}{f'{path}: ' if path else ''}{problem}"


def _shown(raw: bytes | None) -> str:
    return "(none)" if raw is None else raw.decode("utf-8", "replace")


def _letters(count: int) -> str:
    return f"{count:,} letter{'' if count == 1 else 's'}"
