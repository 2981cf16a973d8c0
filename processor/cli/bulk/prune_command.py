"""`taskflow prune`: remove by hand what ended long ago, as the processor does by itself.

What the command needs is imported when it runs.
"""

import typer

from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.options import JSON_LINES, OUTCOME_TIMEOUT, ago_ms, duration_ms
from processor.cli.common.output import say
from processor.cli.common.runner import run, settings_and_logs


def prune(
    older_than: str = typer.Option(
        ..., "--older-than", help="Flows whose last change is longer ago: 30d, 12h; 0s means all."
    ),
    owner: str | None = typer.Option(None, "--owner", help="Only flows of this session key."),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    timeout: str = OUTCOME_TIMEOUT,
    json: bool = JSON_LINES,
) -> None:
    """Remove flows that have ended, with their steps. Their history stays on the audit topic.

    A worker does so by itself after TASKFLOW_RETAIN_TERMINAL; this command does it earlier, or
    where that setting is off. The age of a flow's last change is by this machine's clock.

    Flows are found as by `flow list`. Each gets a `prune` on the control topic, as
    `operator:{login}` and at the revision at which it was seen, which needs a running worker: a
    flow that was pruned and created again since is left as it is, and listed. Prints the number of
    flows for each verdict and code. A flow that is gone already (`not_found`) is done; exit code 1
    after any other refusal. It asks before; in a pipe it takes --yes. If it is interrupted, running
    it again goes on with the flows that are left.

    Example: `taskflow prune --older-than 30d --dry-run`

    Settings: as for `flow list`.
    """
    from processor.cli.bulk.execute import BulkExecution, carry_out, counted_as, sum_up
    from processor.cli.bulk.selection import show_targets
    from processor.cli.flow.execute import login
    from processor.cli.flow.lookup import list_ended
    from processor.ops.bulk import GONE, BulkAction, order

    before_ms = ago_ms(older_than, "--older-than")
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    ask = Confirmation(dry_run, yes)
    settings = settings_and_logs(quiet=True)
    ended = run(lambda: list_ended(settings, owner=owner, before_ms=before_ms))
    counted = counted_as("flow", len(ended))
    if ask.shows:
        show_targets(ended, "flow", json)
    if dry_run:
        say(f"{counted} would be pruned.")
        return
    if not ended:
        say("There is nothing to prune.")
        return
    ask.before(f"Prune {counted}? This cannot be undone.", "Nothing was pruned.")
    orders = order(BulkAction.PRUNE, f"operator:{login()}")
    doing = BulkExecution(ended, orders, done=GONE[BulkAction.PRUNE])
    try:
        run(lambda: carry_out(settings, doing, timeout_s, "pruning"))
    finally:
        sum_up(doing, json)
    if not doing.done:
        raise typer.Exit(1)
