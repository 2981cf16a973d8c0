"""`taskflow bulk`: one order for many flows or steps, as they were shown.

What the command needs is imported when it runs.
"""

from typing import TYPE_CHECKING, Literal

import typer

from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.options import (
    JSON_LINES,
    OUTCOME_TIMEOUT,
    WHERE,
    StatusName,
    ago_ms,
    condition_of,
    duration_ms,
)
from processor.cli.common.output import say
from processor.cli.common.runner import Refused, WrongUse, run, settings_and_logs

if TYPE_CHECKING:
    from processor.contract.flow import FlowStatus
    from processor.contract.steps import StepStatus
    from processor.ops.bulk import BulkAction

ActionName = Literal["cancel", "fail", "resume", "prune", "retry_step", "cancel_step"]
"""A BulkAction by its value: the help needs no models."""
AnyStatusName = Literal[StatusName, "pending", "succeeded"]
"""A FlowStatus or a StepStatus by its value."""
ACTION = typer.Argument(..., help="What is to be done to each.")
OWNER = typer.Option(None, "--owner", help="Only flows of this session key, or their steps.")
STATUS = typer.Option(None, "--status", help="Only flows, or steps, in this status.")
OLDER = typer.Option(None, "--older-than", help="Last changed longer ago: 30d, 12h.")
NO_TERMINAL = "There is no terminal to ask at: take --yes, or --dry-run first and then --digest."
TASK = typer.Option(None, "--task", help="Only steps of this task.")
HOLDER = typer.Option(None, "--holder", help="Only steps that this executor holds, or held last.")
FAILURE = typer.Option(None, "--failure", help="Only steps whose last failure has these words.")
ATTEMPTS = typer.Option(
    None, "--attempts", min=1, max=100, help="Tries from here on, for retry_step; 1."
)


def bulk(
    action: ActionName = ACTION,
    owner: str | None = OWNER,
    status: AnyStatusName | None = STATUS,
    older_than: str | None = OLDER,
    where: list[str] = WHERE,
    task: str | None = TASK,
    holder: str | None = HOLDER,
    failure: str | None = FAILURE,
    everything: bool = typer.Option(False, "--all", help="Without any of these: every one."),
    reason: str | None = typer.Option(None, "--reason", help="Why, for fail."),
    attempts: int | None = ATTEMPTS,
    wanted_digest: str | None = typer.Option(
        None, "--digest", help="Do what was shown under this digest, and nothing else."
    ),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    timeout: str = OUTCOME_TIMEOUT,
    json: bool = JSON_LINES,
) -> None:
    """Change many flows, or many managed steps, as an operator.

    The action applies to the flows, or steps, that all options select and whose status allows it.
    retry_step offers steps again that have failed (with --status: that are cancelled or pending);
    cancel_step is for pending and running ones. Steps of flows that have ended are left out.

    A condition is `PATH OPERATOR VALUE`. The operators are `=` `!=` `<` `<=` `>` `>=` and `~`
    (contains); there is no `and`: give --where again, all conditions must hold. A PATH alone must
    exist in the flow, with `!` before it must not. PATH is a field as `flow show` has it, in either
    spelling: `goal`, `state.label`, `wait.kind`, `$.state_json.items[0]`. VALUE is JSON (`7`,
    `true`, `null`), a word, or a text in quotes. What was understood is printed.

    The command lists what it selects, with a digest, and asks. Each then gets its command on the
    control topic, as `operator:{login}`, a flow with the revision at which it was listed: one that
    changed since is left as it is, and listed as skipped. A step has no revision: it is left as it
    is where its status allows the action no more. With --digest nothing is done unless flows and
    revisions, or steps and the times of their last changes, are exactly those of that digest:
    --dry-run first, look, then --digest.

    It may be repeated: what is done is not selected again. Exit code 1 if any was skipped.

    Example: `taskflow bulk cancel --owner session-1 --where 'state.label = invoice' --dry-run`

    Example: `taskflow bulk retry_step --task classify --failure 'no route to host' --dry-run`

    Settings: as for `taskflow flow cancel`.
    """
    if not (owner or status or older_than or where or task or holder or failure or everything):
        raise WrongUse(
            "Say which: --owner, --status, --older-than, --where, of steps also --task, --holder, "
            "--failure, or --all."
        )
    if (reason is None) is (action == "fail"):
        raise WrongUse("--reason belongs to fail, which needs one.")
    if attempts is not None and action != "retry_step":
        raise WrongUse("--attempts belongs to retry_step.")
    from processor.cli.bulk.execute import BulkExecution, carry_out, counted_as, sum_up
    from processor.cli.bulk.selection import BulkSelection, preview
    from processor.cli.flow.execute import login
    from processor.contract.values import instant
    from processor.ops.bulk import GONE, STEPS_FROM, BulkAction, Filter
    from processor.ops.step_filter import StepFilter

    ask = Confirmation(dry_run, yes or wanted_digest is not None, NO_TERMINAL)
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    before = None if older_than is None else instant(ago_ms(older_than, "--older-than"))
    chosen = BulkAction(action)
    conditions = [condition_of(text) for text in where]
    if chosen in STEPS_FROM:
        steps = StepFilter(None, task, _step_statuses(chosen, status), holder, before, failure)
        meant = BulkSelection(chosen, Filter(chosen, owner, where=conditions), steps, attempts)
    elif task or holder or failure:
        raise WrongUse("--task, --holder and --failure are for retry_step and cancel_step.")
    else:
        flows = Filter(chosen, owner, _flow_status(status), before, conditions)
        meant = BulkSelection(chosen, flows, None, reason)
    settings = settings_and_logs(quiet=True)
    targets = run(lambda: meant.targets(settings))
    counted = counted_as(meant.noun, len(targets))
    for condition in conditions:
        say(f"where {condition}")
    if ask.shows:
        preview(meant, targets, json)
    found = meant.digest(targets)
    if wanted_digest is not None and wanted_digest != found:
        raise Refused(
            f"The digest is {found} by now, not {wanted_digest}: {meant.noun}s came, went or "
            f"changed ({counted} are meant). Nothing was done; look again with --dry-run."
        )
    if not targets:
        say(f"No {meant.noun}s match.")
        return
    what = action.replace("_step", "")
    if not ask.before(f"{what.capitalize()} {counted}?", "Nothing was done."):
        return
    doing = BulkExecution(targets, meant.order(f"operator:{login()}"), done=GONE[chosen])
    try:
        run(lambda: carry_out(settings, doing, timeout_s, f"{what} {counted}"))
    finally:
        sum_up(doing, json)
    if not doing.done:
        raise typer.Exit(1)


def _flow_status(status: str | None) -> "FlowStatus | None":
    from processor.contract.flow import FlowStatus

    if status is not None and status not in {*FlowStatus}:
        raise WrongUse(f"No flow is {status}: --status takes {', '.join(FlowStatus)}.")
    return None if status is None else FlowStatus(status)


def _step_statuses(action: "BulkAction", status: str | None) -> "frozenset[StepStatus]":
    """Those that the action is for; without --status only what has failed is tried again."""
    from processor.contract.steps import StepStatus
    from processor.ops.bulk import STEPS_FROM, BulkAction

    if status is not None and status not in {*StepStatus}:
        raise WrongUse(f"No step is {status}: --status takes {', '.join(StepStatus)}.")
    if status is not None:
        return STEPS_FROM[action] & {StepStatus(status)}
    return frozenset({StepStatus.FAILED}) if action is BulkAction.RETRY_STEP else STEPS_FROM[action]
