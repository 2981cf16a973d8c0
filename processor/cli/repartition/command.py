"""`taskflow repartition`: copy flows and history to another prefix with M partitions.

What the command needs is imported when it runs.
"""

import typer

from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.runner import settings_and_logs


def repartition(
    # At most contract.values.PARTITIONS_MAX, whose module takes too long to import for --help.
    to: int = typer.Option(..., "--to", min=1, max=8192, help="How many partitions the copy has."),
    prefix: str = typer.Option(..., "--prefix", help="The topic prefix of the copy."),
    carry_undecided: bool = typer.Option(
        False,
        "--carry-undecided",
        help="Undecided commands go along, to be decided there.",
    ),
    check: bool = typer.Option(False, "--check", help="Only hold both sides against each other."),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Copy everything to another number of partitions. The copy is under another prefix.

    Commands, outcomes, events, dead letters and the present are rewritten: each flow's order
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
    from processor.cli.repartition.execute import copy_all

    ask = Confirmation(dry_run or check, yes)
    settings = settings_and_logs(quiet=True)
    copy_all(settings, prefix, to, ask, carry_undecided=carry_undecided, check=check, json=json)
