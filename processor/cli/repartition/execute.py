"""Plan, confirm and run the copy for `taskflow repartition`."""

from collections.abc import Mapping
from typing import Any

import typer

from processor.cli.common.confirm import Confirmation
from processor.cli.common.output import console, for_people, say, table, write_json
from processor.cli.common.runner import Refused, WrongUse, run
from processor.cli.repartition.migration import Migration, MigrationResult
from processor.contract.topics import Topics
from processor.settings import Settings


def copy_all(
    settings: Settings,
    prefix: str,
    to: int,
    ask: Confirmation,
    *,
    carry_undecided: bool,
    check: bool,
    json: bool,
) -> None:
    """Copy the topics to `to` partitions of `prefix`, or compare both sides if that is done.

    Raises WrongUse, Refused, and typer.Exit if both sides differ.
    """
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
