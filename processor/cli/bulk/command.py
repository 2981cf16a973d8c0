"""`taskflow bulk`: one order for many flows, each at the revision that was shown.

What the command needs is imported when it runs.
"""

from typing import TYPE_CHECKING, Literal

import typer

from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.options import (
    JSON_LINES,
    OUTCOME_TIMEOUT,
    StatusName,
    ago_ms,
    duration_ms,
)
from processor.cli.common.output import (
    console,
    for_people,
    print_rows,
    say,
    status_text,
    write_json,
)
from processor.cli.common.runner import Refused, WrongUse, run, settings_and_logs

if TYPE_CHECKING:
    from processor.ops.bulk import BulkTarget, Filter
    from processor.ops.conditions import Condition

ActionName = Literal["cancel", "fail", "resume", "prune"]
"""A BulkAction by its value: the help needs no models."""
ACTION = typer.Argument(..., help="What is to be done to each.")
OWNER = typer.Option(None, "--owner", help="Only flows of this session key.")
STATUS = typer.Option(None, "--status", help="Only flows in this status.")
OLDER = typer.Option(None, "--older-than", help="Last changed longer ago: 30d, 12h.")
NOBODY = "There is no terminal to ask at: take --yes, or --dry-run first and then --digest."
WHERE = typer.Option([], "--where", help="A condition; may be given again, all must hold.")


def bulk(
    action: ActionName = ACTION,
    owner: str | None = OWNER,
    status: StatusName | None = STATUS,
    older_than: str | None = OLDER,
    where: list[str] = WHERE,
    everything: bool = typer.Option(False, "--all", help="Without any of these: every flow."),
    reason: str | None = typer.Option(None, "--reason", help="Why, for fail."),
    wanted_digest: str | None = typer.Option(
        None, "--digest", help="Do what was shown under this digest, and nothing else."
    ),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    timeout: str = OUTCOME_TIMEOUT,
    json: bool = JSON_LINES,
) -> None:
    """Cancel, fail, resume or prune many flows, as an operator.

    The action applies to the flows that all options select and whose status allows it.

    A condition is `PATH OPERATOR VALUE`. The operators are `=` `!=` `<` `<=` `>` `>=` and `~`
    (contains); there is no `and`: give --where again, all conditions must hold. A PATH alone must
    exist in the flow, with `!` before it must not. PATH is a field as `flow show` has it, in either
    spelling: `goal`, `state.label`, `wait.kind`, `$.state_json.items[0]`. VALUE is JSON (`7`,
    `true`, `null`), a word, or a text in quotes. What was understood is printed.

    The command lists the flows, with a digest of their ids and revisions, and asks. Each flow then
    gets its command on the control topic, as `operator:{login}`, with the revision at which it was
    listed: a flow that changed since is left as it is, and listed as skipped. With --digest nothing
    is done unless the flows are exactly those of that digest: --dry-run first, look, then --digest.

    It may be repeated: flows that are done are not selected again. Exit code 1 if any flow was
    skipped.

    Example: `taskflow bulk cancel --owner session-1 --where 'state.label = invoice' --dry-run`

    Settings: as for `taskflow flow cancel`.
    """
    if not (owner or status or older_than or where or everything):
        raise WrongUse("Say which flows: --owner, --status, --older-than, --where, or --all.")
    if (reason is None) is (action == "fail"):
        raise WrongUse("--reason belongs to fail, which needs one.")
    from processor.cli.bulk.execute import BulkExecution, carry_out, flows, sum_up
    from processor.cli.flow.execute import login
    from processor.cli.flow.lookup import select_flows
    from processor.contract.flow import FlowStatus
    from processor.contract.outcomes import Code
    from processor.contract.values import instant
    from processor.ops.bulk import BulkAction, Filter, digest, order

    ask = Confirmation(dry_run, yes or wanted_digest is not None, NOBODY)
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    before = None if older_than is None else instant(ago_ms(older_than, "--older-than"))
    chosen = BulkAction(action)
    in_status = None if status is None else FlowStatus(status)
    meant = Filter(chosen, owner, in_status, before, [_condition(text) for text in where])
    settings = settings_and_logs(quiet=True)
    targets = sorted(run(lambda: select_flows(settings, meant.target)))
    found = digest(chosen, reason, targets)
    for condition in meant.where:
        say(f"where {condition}")
    if ask.shows:
        _preview(meant, targets, found, json)
    if wanted_digest is not None and wanted_digest != found:
        raise Refused(
            f"The digest is {found} by now, not {wanted_digest}: flows came, went or changed "
            f"({flows(len(targets))} are meant). Nothing was done; look again with --dry-run."
        )
    if not targets:
        say("No flows match.")
        return
    if not ask.before(f"{action.capitalize()} {flows(len(targets))}?", "Nothing was done."):
        return
    gone = frozenset({Code.NOT_FOUND}) if chosen is BulkAction.PRUNE else frozenset[Code]()
    doing = BulkExecution(targets, order(chosen, f"operator:{login()}", reason), done=gone)
    try:
        run(lambda: carry_out(settings, doing, timeout_s, f"{action} {flows(len(targets))}"))
    finally:
        sum_up(doing, json)
    if not doing.done:
        raise typer.Exit(1)


def _condition(text: str) -> "Condition":
    from processor.ops.conditions import parse_condition

    try:
        return parse_condition(text)
    except ValueError as error:
        raise WrongUse(f"--where {text!r}: {error}.") from None


def _preview(meant: "Filter", targets: "list[BulkTarget]", found: str, json: bool) -> None:
    from processor.cli.bulk.execute import SHOWN, flows

    action = meant.action
    if not for_people(json):
        for target in targets:
            write_json(target._asdict())
        where = [str(condition) for condition in meant.where]
        write_json({"action": action, "where": where, "flows": len(targets), "digest": found})
        return
    rows = [
        (one.flow_id, status_text(one.status), str(one.revision), one.updated_at[:19])
        for one in targets[:SHOWN]
    ]
    if rows:
        print_rows(console(), ("id", "status", "rev", "updated"), rows)
    if len(targets) > SHOWN:
        say(f"… and {flows(len(targets) - SHOWN)} more; --json shows all.")
    say(f"{action} applies to {flows(len(targets))}; digest {found}.")
