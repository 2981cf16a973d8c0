"""`taskflow deadletters`: list, show, edit and redrive dead letters.

What a command needs is imported when it runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from processor.cli import tail as streams
from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.options import FLOW, JSON, JSON_LINES, duration_ms
from processor.cli.common.output import (
    console,
    for_people,
    plain,
    say,
    somebody_to_ask,
    table,
    write_json,
)
from processor.cli.common.runner import Refused, WrongUse, run, settings_and_logs
from processor.cli.tail import FOLLOW, FROM_BEGINNING, LIMIT, NEWEST, as_text
from processor.runtime import now_ms

if TYPE_CHECKING:
    from processor.ops.deadletters import DeadLetterRecord

app = typer.Typer(invoke_without_command=True, no_args_is_help=False)

PLACE = typer.Argument(..., help="A letter: its partition/offset on the topic, such as 2/17.")
CODE = typer.Option(None, "--code", help="Only letters with this code, such as malformed.")
SINCE = typer.Option(None, "--since", help="Only letters written since: a time, or 10m ago.")
UNTIL = typer.Option(None, "--until", help="Only letters written before: a time, or 10m ago.")
PLACES = typer.Argument(None, help="Letters: partition/offset, such as 2/17.")
VALUE = typer.Option(None, "--value", help="A file with the value to take instead.")
OUTPUT = typer.Option(None, "--output", "-o", help="Where the value goes.")
SAVE = typer.Option(None, "--save", help="A file that the value is written to.")


@app.callback(invoke_without_command=True)
def deadletters(
    context: typer.Context,
    follow: bool = FOLLOW,
    from_beginning: bool = FROM_BEGINNING,
    since: str | None = streams.SINCE,
    flow: str | None = FLOW,
    limit: int | None = LIMIT,
    json: bool = JSON_LINES,
) -> None:
    """Look at dead letters, and send them back.

    A dead letter is a record that could not be read as a command. Without a subcommand a terminal
    gets the newest as a table, and a pipe all of them as JSON lines; options and settings are those
    of `taskflow audit`. Key, value and headers are texts, or {"base64": "..."} where they are not
    UTF-8. --flow compares the beginning of the record's key. `list`, `show`, `edit` and `redrive`
    find out what is wrong with them and send them back.

    Example: `taskflow deadletters --since 1d`
    """
    if context.invoked_subcommand is None:
        streams.deadletters(follow, from_beginning, since, flow, limit, json)


@app.command("list")
def list_(
    code: str | None = CODE,
    since: str | None = SINCE,
    until: str | None = UNTIL,
    flow: str | None = typer.Option(None, "--flow", help="Only letters whose key begins so."),
    redriven: bool = typer.Option(
        False, "--redriven", help="Also say which were sent back, and where they lie since."
    ),
    limit: int | None = LIMIT,
    json: bool = JSON,
) -> None:
    """List dead letters, the newest last: place, age, code, where they came from, and why.

    A terminal shows the newest, as many as --limit says. A pipe gets a JSON line for each, with
    `faults`: what is wrong with its value today, and where. --redriven reads the source topics from
    the first letter's time on.

    Example: `taskflow deadletters list --code malformed --since 1d`
    """
    from processor.cli.deadletters.lookup import (
        find_dead_letters,
        print_dead_letters,
        row_of,
        wanted_of,
    )

    settings = settings_and_logs(quiet=True)
    wanted = wanted_of((), code, since, until, flow)
    dead_letters, sent = run(lambda: find_dead_letters(settings, wanted, look_for_sent=redriven))
    if not for_people(json):
        for dead_letter in dead_letters:
            faults = [fault._asdict() for fault in dead_letter.diagnosis.faults]
            write_json(
                row_of(dead_letter, sent) | {"message": dead_letter.facts.message, "faults": faults}
            )
        return
    most = limit or NEWEST
    print_dead_letters(console(), dead_letters[-most:], sent if redriven else None, now_ms())
    if len(dead_letters) > most:
        say(f"The newest {most:,} of {len(dead_letters):,}; --limit or --json shows more.")


@app.command("show")
def show(place: str = PLACE, save: Path | None = SAVE, json: bool = JSON) -> None:
    """Show one dead letter: why, where in its bytes, as text and as hex; whether it went back.

    The offsets count bytes of the value from 0. --save writes the value, byte by byte, to a file.

    Example: `taskflow deadletters show 2/17`
    """
    from processor.cli.deadletters.edit import write_file
    from processor.cli.deadletters.lookup import find_dead_letter, row_of, source_of, spot_of
    from processor.contract.values import instant
    from processor.ops.diagnose import diagnose, hex_dump
    from processor.ops.redrive import fault_text

    settings = settings_and_logs(quiet=True)
    dead_letter, sent = run(lambda: find_dead_letter(settings, spot_of(place)))
    if save is not None:
        write_file(save, dead_letter.value or b"")
    found = diagnose(dead_letter.key, dead_letter.value)
    at = next((fault.at for fault in found.faults if fault.at is not None), None)
    if not for_people(json):
        shown = hex_dump(dead_letter.value or b"", around=at or 0)
        faults = [fault._asdict() for fault in found.faults]
        write_json(
            row_of(dead_letter, sent)
            | {
                "message": dead_letter.facts.message,
                "faults": faults,
                "key": as_text(dead_letter.key),
                "value": as_text(dead_letter.value),
                "headers": [[name, as_text(value)] for name, value in dead_letter.headers],
                "hex": [line[1:] for line in shown],
            }
        )
        return
    out = console()
    fields: list[tuple[str, str]] = [
        ("letter", f"{dead_letter.spot}, written {instant(dead_letter.at_ms)}"),
        (
            "from",
            source_of(dead_letter)
            + (f", {instant(dead_letter.facts.source_ms)}" if dead_letter.facts.source_ms else ""),
        ),
        ("code", dead_letter.facts.code),
        ("why", dead_letter.facts.message),
        ("key", _shown(dead_letter.key)),
        *((f"header {name}", _shown(value)) for name, value in dead_letter.headers),
        ("sent back to", sent.get(dead_letter.spot, "nowhere yet")),
        ("today", "would be read" if found.code is None else str(found.code)),
    ]
    out.print(table(None, ("field", "value"), fields))
    for fault in found.faults:
        out.print(plain(fault_text(fault.at, fault.problem, fault.path)), style="red")
    if dead_letter.value:
        out.print(Text("\nvalue", style="bold"))
        out.print(plain(dead_letter.value.decode("utf-8", "replace")[:4096]))
        out.print(Text("\nbytes", style="bold"))
        for line in hex_dump(dead_letter.value, around=at or 0):
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
    from processor.cli.deadletters.edit import in_editor, key_for, read_file, write_file
    from processor.cli.deadletters.lookup import find_dead_letter, spot_of
    from processor.ops.diagnose import diagnose
    from processor.ops.redrive import fault_text

    settings = settings_and_logs(quiet=True)
    dead_letter, _ = run(lambda: find_dead_letter(settings, spot_of(place)))
    edited = read_file(value) if value is not None else in_editor(dead_letter.value or b"")
    target = output or Path(
        f"deadletter-{dead_letter.spot.partition}-{dead_letter.spot.offset}.json"
    )
    write_file(target, edited)
    found = diagnose(key_for(dead_letter, edited, key), edited)
    for fault in found.faults:
        say(fault_text(fault.at, fault.problem, fault.path))
    if found.code is not None:
        raise Refused(f"{target} is still no command ({found.code}); edit it again.")
    again = f" --key {key}" if key else ""
    say(f"`taskflow deadletters redrive {dead_letter.spot} --value {target}{again}` sends it back.")


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
    from processor.cli.deadletters.edit import key_for, read_file
    from processor.cli.deadletters.lookup import (
        find_dead_letters,
        no_dead_letter,
        spot_of,
        wanted_of,
    )
    from processor.cli.deadletters.redrive import dead_letters_text, preview, send_all
    from processor.ops.redrive import Plan, why_not

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
    dead_letters, sent = run(lambda: find_dead_letters(settings, wanted, look_for_sent=True))
    if missing := sorted(set(spots) - {dead_letter.spot for dead_letter in dead_letters}):
        raise no_dead_letter(settings, missing[0])
    edited = None if value is None else read_file(value)
    plan = Plan(key_for(dead_letters[0], edited, key) if edited else None, edited)
    going: list[tuple[DeadLetterRecord, str | None]] = []
    staying: list[tuple[DeadLetterRecord, str | None]] = []
    refused = 0
    for dead_letter in dead_letters:
        before = None if again else sent.get(dead_letter.spot)
        why = why_not(dead_letter, plan, unreadable=unreadable)
        if before is not None:
            staying.append((dead_letter, f"was sent back before, to {before}"))
        elif why is not None:
            refused += 1
            staying.append((dead_letter, why))
        else:
            going.append((dead_letter, None))
    if ask.shows:
        preview(going, staying, plan, json)
    elif staying:
        stay = "stays" if len(staying) == 1 else "stay"
        say(f"{dead_letters_text(len(staying))} {stay}: {staying[0][0].spot} {staying[0][1]}.")
    if dry_run:
        stay = dead_letters_text(len(staying))
        say(f"{dead_letters_text(len(going))} would be sent back, {stay} would stay.")
        return
    done = refused == 0
    if not going:
        say("Nothing is to be sent.")
    else:
        ask.before(f"Send {dead_letters_text(len(going))} back?", "Nothing was sent.")
        chosen = [dead_letter for dead_letter, _ in going]
        done &= run(lambda: send_all(settings, chosen, plan, timeout_s, json))
    if not done:
        raise typer.Exit(1)


def _shown(raw: bytes | None) -> str:
    return "(none)" if raw is None else raw.decode("utf-8", "replace")
