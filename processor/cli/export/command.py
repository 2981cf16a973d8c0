"""`taskflow export`: flows, steps and events in one file, as of one consistent cut.

What the command needs is imported when it runs.
"""

from pathlib import Path

import typer

from processor.cli.common.output import say, somebody_to_ask
from processor.cli.common.runner import WrongUse, settings_and_logs

FILE = typer.Argument(..., help="The SQLite file to write.")


def export(
    file: Path = FILE,
    yes: bool = typer.Option(False, "--yes", "-y", help="Replace a file that is there."),
    json: bool = typer.Option(False, "--json", help="JSON also on a terminal."),
) -> None:
    """Write flows, steps and all events into one SQLite file.

    Each partition is cut at the end of one transaction: its flows and steps are what its events
    fold to, whatever workers write meanwhile; table `cut` has the offsets that the file stands for.
    Partitions are cut one after the other, and no flow is on two. The file appears when it is
    whole.

    Example: `taskflow export flows.db && sqlite3 flows.db 'SELECT status, count(*) FROM flow
    GROUP BY 1'`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    if file.exists() and not yes:
        if not somebody_to_ask():
            raise WrongUse(f"{file} is there already: take --yes to replace it.")
        if not typer.confirm(f"{file} is there already. Replace it?", err=True):
            say("Nothing was written.")
            raise typer.Exit(1)
    if not file.absolute().parent.is_dir():
        raise WrongUse(f"There is no directory {file.absolute().parent}.")
    from processor.cli.export.execute import export_to

    export_to(settings_and_logs(quiet=True), file, json=json)
