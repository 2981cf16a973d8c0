"""`taskflow prune`: removing by hand what ended long ago, as the processor does by itself."""

import time
from collections.abc import Sequence

import typer

from processor.adapters.sqlite.queries import Ended
from processor.ops.bulk import Action, Target, order
from processor.program.flow import login
from processor.program.flows import list_ended
from processor.program.options import duration_ms
from processor.program.output import (
    console,
    for_people,
    print_rows,
    say,
    somebody_to_ask,
    status_text,
    table,
    verdict_text,
    write_json,
)
from processor.program.running import WrongUse, run, settings_and_logs
from processor.program.sending import Bulk, carry_out
from schemas.outcomes import Code


def prune(
    older_than: str = typer.Option(
        ..., "--older-than", help="Flows whose last change is longer ago: 30d, 12h; 0s means all."
    ),
    owner: str | None = typer.Option(None, "--owner", help="Only flows of this session key."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only list them."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    timeout: str = typer.Option("30s", "--timeout", help="How long to await each outcome."),
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Remove flows that have ended, with their steps. Their history stays on the audit topic.

    A worker does so by itself after TASKFLOW_RETAIN_TERMINAL; this is for doing it earlier, or
    where that is off. How long ago a flow's last change is, is told by this machine's clock.

    Flows are looked for as by `flow list`. Each gets a `prune` on the control topic, as
    `operator:{login}`, which needs a running worker. Prints how many got which answer; one
    that is gone already (not_found) is done, any other refusal is exit code 1. It asks before;
    in a pipe it takes --yes. Running it again goes on where it was interrupted.

    Example: `taskflow prune --older-than 30d --dry-run`

    Settings: as for `flow list`.
    """
    age_ms = duration_ms(older_than, "--older-than")
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    if not (dry_run or yes or somebody_to_ask()):
        raise WrongUse("There is no terminal to ask at: take --yes, or --dry-run to look first.")
    settings = settings_and_logs(quiet=True)
    before_ms = max(time.time_ns() // 1_000_000 - age_ms, 0)
    ended = run(lambda: list_ended(settings, owner=owner, before_ms=before_ms))
    if dry_run:
        _list(ended, json)
        say(f"{_flows(len(ended))} would be pruned.")
        return
    if not ended:
        say("There is nothing to prune.")
        return
    if not yes and not typer.confirm(
        f"Prune {_flows(len(ended))}? This cannot be undone.", err=True
    ):
        say("Nothing was pruned.")
        raise typer.Exit(1)
    doing = pruning([flow.flow_id for flow in ended], by=f"operator:{login()}")
    try:
        run(lambda: carry_out(settings, doing, timeout_s, "pruning"))
    finally:
        _sum_up(doing, json)
    if not doing.done:
        raise typer.Exit(1)


def pruning(flow_ids: Sequence[str], *, by: str) -> Bulk:
    """A `prune` for each; one that is gone already is done."""
    targets = [Target(flow_id, "", "") for flow_id in flow_ids]
    return Bulk(targets, order(Action.PRUNE, by), done=frozenset({Code.NOT_FOUND}))


def _list(ended: Sequence[Ended], json: bool) -> None:
    if not for_people(json):
        for flow in ended:
            write_json(
                {
                    "flow_id": flow.flow_id,
                    "status": flow.status,
                    "updated_at": flow.updated_at,
                }
            )
    elif ended:
        rows = [
            (flow.flow_id, status_text(flow.status), flow.updated_at[:19].replace("T", " "))
            for flow in ended
        ]
        print_rows(console(), ("id", "status", "updated"), rows)


def _sum_up(doing: Bulk, json: bool) -> None:
    answers = sorted(doing.answers.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    if for_people(json):
        rows = [
            (verdict_text(verdict), code or "", str(count)) for (verdict, code), count in answers
        ]
        if rows:
            console().print(table(None, ("verdict", "code", "flows"), rows))
    else:
        for (verdict, code), count in answers:
            write_json({"verdict": verdict, "code": code, "flows": count})
    if doing.unanswered:
        say(f"{doing.unanswered[0].sentence} Is a worker running?")
        say(
            f"{_flows(len(doing.unanswered))} without an answer, {_flows(len(doing.left))} not "
            "asked for; the same command goes on with them."
        )


def _flows(count: int) -> str:
    return f"{count:,} flow{'' if count == 1 else 's'}"
