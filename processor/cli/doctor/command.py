"""`taskflow doctor`: check broker, topics, rights, lag, transactions, tables and clocks.

What the command needs is imported when it runs.
"""

from typing import Annotated

import typer

from processor.cli.common.runner import settings_and_logs
from processor.contract.rights import Role


def doctor(
    probe: bool = typer.Option(
        False, "--probe", help="Also send one dry run, to see clock and answer time."
    ),
    role: Annotated[
        Role, typer.Option("--role", help="Whose rights to look at: what this principal does.")
    ] = Role.WORKER,
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Look at broker, topics, rights, lag, transactions, views, tables, clocks.

    One line for each finding: good, a warning or bad, and what to do. It changes nothing. With
    --probe it sends one `update_state` as a dry run for a flow that does not exist: it leaves
    nothing but its outcome, and shows how far this machine's clock is off the broker's.

    What may not be looked at is bad, too: the finding names the right that is missing. An operator
    has those of `--role operator`.

    Exit code 1 if something is bad, 3 if no broker answers (the rest is looked at all the same).

    Example: `taskflow doctor --json | jq 'select(.level != "good")'`

    Settings: those of `taskflow worker`; run it where a worker's TASKFLOW_STATE_DIR is, to have
    its tables checked.
    """
    from processor.cli.doctor.execute import examine

    code = examine(settings_and_logs(quiet=True), probe=probe, role=role, json=json)
    if code:
        raise typer.Exit(code)
