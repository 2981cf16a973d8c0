"""`taskflow bulk`: one order for many flows, none of which is changed behind one's back."""

import time
from typing import Any

import typer

from processor.ops.bulk import Action, Condition, Filter, Target, condition, digest, order
from processor.program.flow import login
from processor.program.flows import select_flows
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
from processor.program.running import Refused, WrongUse, run, settings_and_logs
from processor.program.sending import Answer, Bulk, carry_out
from schemas.flow import FlowStatus
from schemas.outcomes import Code
from schemas.values import instant

SHOWN = 20
"""Of a preview, on a terminal."""

ACTION = typer.Argument(..., help="What is to be done to each.")
OWNER = typer.Option(None, "--owner", help="Only flows of this session key.")
STATUS = typer.Option(None, "--status", help="Only flows in this status.")
OLDER = typer.Option(None, "--older-than", help="Last changed longer ago: 30d, 12h.")
WHERE = typer.Option([], "--where", help="A condition; may be given again, all must hold.")
JSON = typer.Option(False, "--json", help="JSON lines also on a terminal.")


def bulk(
    action: Action = ACTION,
    owner: str | None = OWNER,
    status: FlowStatus | None = STATUS,
    older_than: str | None = OLDER,
    where: list[str] = WHERE,
    everything: bool = typer.Option(False, "--all", help="Without any of these: every flow."),
    reason: str | None = typer.Option(None, "--reason", help="Why, for fail."),
    wanted_digest: str | None = typer.Option(
        None, "--digest", help="Do what was shown under this digest, and nothing else."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only show which, and the digest."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    timeout: str = typer.Option("30s", "--timeout", help="How long to await each outcome."),
    json: bool = JSON,
) -> None:
    """Cancel, fail, resume or prune many flows at once, as an operator.

    Meant are the flows for which all options hold, and from whose status the action may lead.
    A condition is `PATH OP VALUE`, with = != < <= > >= or ~ (contains); a PATH alone must be
    there, with ! before it must not. PATH goes into the flow as `flow show` has it: `goal`,
    `current_step`, `state.label`, `wait.kind`. VALUE is JSON where it is, else a text.

    It shows them, with a digest of which flows at which revisions, and asks. Each then gets its
    command on the control topic, as `operator:{login}`, with the revision at which it was shown:
    one that somebody changed meanwhile is left as it is, and listed. With --digest it is refused
    as a whole unless exactly that is meant which was shown: --dry-run first, look, then this.

    It may be repeated: what is done is not meant any more. Exit code 1 if any flow was skipped.

    Example: `taskflow bulk cancel --owner session-1 --where 'state.label = invoice' --dry-run`

    Settings: as for `taskflow flow cancel`.
    """
    if not (owner or status or older_than or where or everything):
        raise WrongUse("Say which flows: --owner, --status, --older-than, --where, or --all.")
    if (reason is None) is (action is Action.FAIL):
        raise WrongUse("--reason belongs to fail, which needs one.")
    if not (dry_run or yes or wanted_digest or somebody_to_ask()):
        raise WrongUse(
            "There is no terminal to ask at: take --yes, or --dry-run first and then --digest."
        )
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    before = None
    if older_than is not None:
        age_ms = duration_ms(older_than, "--older-than")
        before = instant(max(time.time_ns() // 1_000_000 - age_ms, 0))
    meant = Filter(action, owner, status, before, [_condition(text) for text in where])
    settings = settings_and_logs(quiet=True)
    targets = sorted(run(lambda: select_flows(settings, meant.target)))
    found = digest(action, reason, targets)
    if dry_run or not (yes or wanted_digest):
        _preview(action, targets, found, json)
    if dry_run:
        return
    if wanted_digest is not None and wanted_digest != found:
        raise Refused(
            f"The digest is {found} by now, not {wanted_digest}: flows came, went or changed "
            f"({_flows(len(targets))} are meant). Nothing was done; look again with --dry-run."
        )
    if not targets:
        say("There is no such flow.")
        return
    if not (yes or wanted_digest) and not typer.confirm(
        f"{action.capitalize()} {_flows(len(targets))}?", err=True
    ):
        say("Nothing was done.")
        raise typer.Exit(1)
    gone = frozenset({Code.NOT_FOUND}) if action is Action.PRUNE else frozenset[Code]()
    doing = Bulk(targets, order(action, f"operator:{login()}", reason), done=gone)
    try:
        run(lambda: carry_out(settings, doing, timeout_s, f"{action} {_flows(len(targets))}"))
    finally:
        _sum_up(doing, json)
    if not doing.done:
        raise typer.Exit(1)


def _condition(text: str) -> Condition:
    try:
        return condition(text)
    except ValueError as error:
        raise WrongUse(f"--where {text!r}: {error}.") from None


def _preview(action: Action, targets: list[Target], found: str, json: bool) -> None:
    if not for_people(json):
        for target in targets:
            write_json(target._asdict())
        write_json({"action": action, "flows": len(targets), "digest": found})
        return
    rows = [
        (one.flow_id, status_text(one.status), str(one.revision), one.updated_at[:19])
        for one in targets[:SHOWN]
    ]
    if rows:
        print_rows(console(), ("id", "status", "rev", "updated"), rows)
    if len(targets) > SHOWN:
        say(f"… and {_flows(len(targets) - SHOWN)} more; --json shows all.")
    say(f"{action} is meant for {_flows(len(targets))}; digest {found}.")


def _sum_up(doing: Bulk, json: bool) -> None:
    """How many got which answer, and each flow that was not changed."""
    answers = sorted(doing.answers.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    not_asked = [Answer(target, None, "Nobody answered before it.") for target in doing.left]
    skipped = [_row(answer) for answer in (*doing.skipped, *doing.unanswered, *not_asked)]
    if not for_people(json):
        for row in skipped:
            write_json(row)
        for (verdict, code), count in answers:
            write_json({"verdict": verdict, "code": code, "flows": count})
    else:
        counted = [(verdict_text(v), c or "", str(count)) for (v, c), count in answers]
        if counted:
            console().print(table(None, ("verdict", "code", "flows"), counted))
        if skipped:
            columns = ("flow_id", "expected_revision", "code", "message")
            console().print(
                table("skipped", columns, [[str(row[c] or "") for c in columns] for row in skipped])
            )
    if doing.unanswered:
        say("Is a worker running? The same command goes on with what is left.")


def _row(answer: Answer) -> dict[str, Any]:
    outcome = answer.outcome
    return {
        "flow_id": answer.target.flow_id,
        "expected_revision": answer.target.revision,
        "verdict": outcome and outcome.verdict,
        "code": outcome and outcome.code,
        "message": answer.sentence,
        "revision": outcome and outcome.revision,
        "status": outcome and outcome.status,
    }


def _flows(count: int) -> str:
    return f"{count:,} flow{'' if count == 1 else 's'}"
