"""`taskflow torture`: load, random faults and a verdict; a user's acceptance test.

What the command needs is imported when it runs.
"""

import secrets

import typer

from processor.cli.common.output import say, somebody_to_ask
from processor.cli.common.runner import WrongUse, settings_and_logs

MINUTES = 5.0


def torture(
    minutes: float | None = typer.Option(
        None, "--minutes", min=0.05, help="How long faults go on; 5 unless --kills says when."
    ),
    seed: int | None = typer.Option(
        None, "--seed", min=0, help="Draws the same faults again, in their order."
    ),
    kills: int | None = typer.Option(
        None, "--kills", min=1, help="Nothing but kill -9, until there were so many."
    ),
    workers: int = typer.Option(2, "--workers", min=1, max=16, help="How many are started."),
    executors: int = typer.Option(2, "--executors", min=1, max=16, help="How many do steps."),
    brokers: int = typer.Option(
        1, "--brokers", min=1, max=9, help="How many brokers to start: 1, or 3 and more."
    ),
    per_s: int = typer.Option(200, "--rate", min=1, help="Commands a second."),
    bootstrap: str | None = typer.Option(
        None, "--bootstrap", help="A cluster host:port,... of yours that may be disturbed."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask about the given cluster."),
    json: bool = typer.Option(False, "--json", help="The report as JSON also on a terminal."),
) -> None:
    """Break everything, again and again, and see that nothing is lost.

    An acceptance test: it starts an embedded Apache Kafka, workers and executors of its own, sends
    commands of every kind all the time, and draws one fault after the other: kill -9, crash points,
    stopped and late workers and executors, damaged and lost tables, full disks, a broker that is
    killed or stopped, requests that are lost, late, cut off or never answered. The next fault
    starts once the last has healed: all workers are ready, and each acknowledged command has its
    outcome. At the end each step must have ended, once, and `taskflow verify` checks everything.
    The data is deleted, unless there was a violation.

    With --brokers 3 each partition has three replicas, of which two must be in sync. More faults
    are added: leaders are moved, in-sync sets shrink, two brokers at a time are killed or stopped,
    and the controller is killed.

    With --bootstrap it uses that cluster, under a topic prefix of its own, and breaks only its own
    workers; it asks before. Do not use a cluster that others need.

    The seed sets the faults and their order; what they hit depends on this machine's speed.

    Prints a line for each fault, and a report; a pipe gets it as one JSON object. Exit code 1 if
    anything was violated.

    Example: `taskflow torture --minutes 5 --seed 1`

    Example: `taskflow torture --minutes 20 --brokers 3`

    Settings: TASKFLOW_CACHE_DIR, TASKFLOW_BROKER_HEAP; for a given cluster
    TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`, TASKFLOW_REPLICATION_FACTOR.
    """
    if brokers == 2:
        raise WrongUse("--brokers is 2: of two, none can be lost. Take 1, or 3 and more.")
    if brokers > 1 and bootstrap is not None:
        raise WrongUse("--brokers starts brokers of its own: it does not go with --bootstrap.")
    if bootstrap is not None and not (yes or somebody_to_ask()):
        raise WrongUse("There is no terminal to ask at: take --yes for a cluster of yours.")
    from processor.cli.torture.execute import break_everything
    from processor.embedded.environment import need_extra
    from processor.testing.chaos.plan import ChaosPlan

    settings_and_logs(quiet=True)
    if bootstrap is None:
        need_extra()
    if (
        bootstrap is not None
        and not yes
        and not typer.confirm(
            f"Load and restarting workers will disturb {bootstrap}. May it be disturbed?", err=True
        )
    ):
        say("Nothing was done.")
        raise typer.Exit(1)
    seconds = minutes * 60 if minutes is not None else None if kills else MINUTES * 60
    plan = ChaosPlan(
        seed=secrets.randbelow(1_000_000) if seed is None else seed,
        seconds=seconds,
        kills=kills,
        workers=workers,
        executors=executors,
        per_s=per_s,
        brokers=brokers,
        bootstrap=bootstrap,
    )
    if not break_everything(plan, json=json):
        raise typer.Exit(1)
