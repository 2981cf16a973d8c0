"""`taskflow repartition`: copy flows and history to another prefix with M partitions."""

from collections.abc import Mapping
from typing import Any

import typer

from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.output import console, for_people, say, table, write_json
from processor.cli.common.runner import Refused, WrongUse, run, settings_and_logs
from processor.cli.repartition.migration import Migration, MigrationResult
from processor.contract.topics import Topics
from processor.settings import Settings


def repartition(
    to: int = typer.Option(..., "--to", min=1, help="How many partitions the copy has."),
    prefix: str = typer.Option(..., "--prefix", help="The topic prefix of the copy."),
    carry_undecided: bool = typer.Option(
        False,
        "--carry-undecided",
        help="Commands that nobody decided go along, to be decided there.",
    ),
    check: bool = typer.Option(False, "--check", help="Only hold both sides against each other."),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Copy everything to another number of partitions. The copy is under another prefix.

    Commands, outcomes, events, dead letters and the present are written anew: each flow's order
    is kept, events get new ids and chains and name their old id in `taskflow-moved-from`, records
    keep their times, so that resends are still recognised and retention goes on. The old topics
    stay as they are.

    Pause the producers, let the workers decide what is there, stop them, and run it. It refuses
    while a worker is in the group, and while commands are undecided, unless --carry-undecided
    says that they go along. In the end it holds both sides against each other, and only then
    opens the new topics: until then no worker starts on them. Then start workers and producers
    with the new TASKFLOW_TOPIC_PREFIX and TASKFLOW_PARTITIONS.

    It asks before; in a pipe it takes --yes. Stopped in the middle it goes on where it was, and
    repeated it compares. Memory: about 300 bytes of each flow.

    Example: `taskflow repartition --to 12 --prefix taskflow-b --dry-run`

    Settings: as for `taskflow worker`; they name the old side.
    """
    ask = Confirmation(dry_run or check, yes)
    settings = settings_and_logs(quiet=True)
    if prefix == settings.topic_prefix:
        raise WrongUse(f"--prefix {prefix} is the old side's own; take another.")
    if problem := _no_prefix(prefix):
        raise WrongUse(problem)
    move = Migration(settings, Topics(prefix), to)
    plan = run(move.plan)
    if plan.finished or check:
        if not plan.finished:
            raise Refused(f"The topics of {prefix} are not whole; run it without --check first.")
        say(f"The topics of {prefix} are whole.")
        _end(run(move.compare), json)
        return
    _show(plan.row(), json)
    if plan.undecided and not carry_undecided:
        raise Refused(
            f"{plan.undecided:,} commands are undecided. Let a worker decide them, or take "
            "--carry-undecided: they are then decided on the new side."
        )
    if plan.members:
        count = "1 worker is" if plan.members == 1 else f"{plan.members} workers are"
        raise Refused(f"{count} in the group {settings.group_id}; stop them all first.")
    if ask.before(f"Copy it to {to} partitions of {prefix}?"):
        _end(run(move.run), json)


def _no_prefix(prefix: str) -> str | None:
    """What is wrong with it, in a sentence."""
    try:
        Settings(topic_prefix=prefix)
    except ValueError:
        return f"--prefix {prefix!r} is no topic prefix: letters, digits, . _ - are."
    return None


def _show(row: Mapping[str, Any], json: bool) -> None:
    if not for_people(json):
        write_json(dict(row))
        return
    cells = [f"{value:,}" if type(value) is int else str(value) for value in row.values()]
    console().print(table(None, [name.replace("_", " ") for name in row], [cells]))


def _end(result: MigrationResult, json: bool) -> None:
    _show(result.row, json)
    if result.differences:
        say(f"Both sides differ in {len(result.differences):,} places; the first:")
        say(result.differences[0])
        raise typer.Exit(1)
    say(
        f"Both sides agree. Start workers with TASKFLOW_TOPIC_PREFIX={result.row['prefix']} "
        f"TASKFLOW_PARTITIONS={result.row['partitions']}, and then the producers."
    )
