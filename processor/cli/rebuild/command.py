"""`taskflow rebuild`: rebuild tables or compare them; repair what a partition stopped for.

What the command needs is imported when it runs.
"""

from typing import Literal

import typer

from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.runner import Refused, WrongUse, settings_and_logs

SourceName = Literal["state", "audit"]
"""A TableSource by its value: the help needs no tables."""
PARTITION = typer.Option(
    [], "--partition", help="Only this one; may be given again. Default: all that have a table."
)
FROM = typer.Option(
    "state", "--from", help="Where flows and steps come from; audit verifies each chain."
)


def rebuild(
    partition: list[int] = PARTITION,
    source: SourceName = FROM,
    check: bool = typer.Option(False, "--check", help="Only compare with the tables there are."),
    skip_lost: bool = typer.Option(
        False, "--skip-lost", help="Go on behind commands that commands or control lost."
    ),
    restore_state: bool = typer.Option(
        False, "--restore-state", help="Write the state topic again from audit and outcomes."
    ),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Rebuild tables, or repair what a partition stopped for.

    Tables are caches: flows and steps come from `state`, or are folded from `audit`; the ledger
    comes from `outcomes`, the position from `state`. It needs the worker of TASKFLOW_STATE_DIR
    stopped; others may go on. A table is replaced once the new one is whole. With --check nothing
    is replaced: each table is compared, row by row, with a rebuilt one; exit code 1 and the first
    difference if they differ.

    --skip-lost and --restore-state write to `state`, as the partition's owner. They are what a
    partition asks for that stopped; each shows what it would do first. They touch no table, and a
    worker goes on by itself afterwards. --restore-state needs disk under TMPDIR for about as much
    as the partition's table takes.

    It asks before it changes anything; in a pipe it takes --yes. It may be repeated.

    Example: `taskflow rebuild --from audit --check`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_PARTITIONS,
    TASKFLOW_STATE_DIR, TASKFLOW_DEDUPE_WINDOW, TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`,
    `TASKFLOW_SSL_*`.
    """
    if check + skip_lost + restore_state > 1:
        raise WrongUse("--check, --skip-lost and --restore-state exclude each other; take one.")
    if restore_state and not partition:
        raise WrongUse("--restore-state needs --partition: the one that asks for it.")
    from processor.adapters.sqlite import StateDirInUse, state_dir_lock
    from processor.cli.rebuild.common import ProgressDisplay
    from processor.cli.rebuild.tables import TableSource, rebuild_tables
    from processor.cli.rebuild.topics import restore_state_topic, skip_lost_commands

    ask = Confirmation(dry_run or check, yes)
    settings = settings_and_logs(quiet=True)
    if wrong := [one for one in partition if not 0 <= one < settings.partitions]:
        raise WrongUse(f"There is no partition {wrong[0]} among {settings.partitions}.")
    show = ProgressDisplay(json)
    partitions = sorted(set(partition))
    if skip_lost:
        skip_lost_commands(settings, partitions or range(settings.partitions), show, ask)
    elif restore_state:
        for one in partitions:
            restore_state_topic(settings, one, show, ask)
    else:
        try:
            with state_dir_lock(settings.state_dir):
                rebuild_tables(settings, partitions, TableSource(source), check, show, ask)
        except StateDirInUse:
            raise Refused(
                f"A worker uses {settings.state_dir}; stop it first, for its tables are looked at "
                "as it leaves them."
            ) from None
