"""`taskflow verify`: check every promise from the topics and tables.

What the command needs is imported when it runs.
"""

import typer

from processor.cli.common.options import duration_ms, since_ms
from processor.cli.common.runner import WrongUse, settings_and_logs


def verify(
    since: str | None = typer.Option(
        None, "--since", help="From this time on: 2026-11-22T21:02:08Z, or 10m for ten minutes ago."
    ),
    flow: str | None = typer.Option(None, "--flow", help="Only this flow, its whole story."),
    at_rest: bool = typer.Option(
        False, "--at-rest", help="Nothing is under way: a command without outcome is a violation."
    ),
    grace: str = typer.Option(
        "30s", "--grace", help="How long open transactions, and with --at-rest load, may last."
    ),
    sink: str | None = typer.Option(
        None,
        "--sink",
        metavar="DSN",
        help="Only compare the rows of the sink with the topics; - for TASKFLOW_SINK_DSN.",
    ),
    json: bool = typer.Option(False, "--json", help="The report as JSON also on a terminal."),
) -> None:
    """Verify all topics and tables against the contract.

    It reads the topics, and the tables in TASKFLOW_STATE_DIR where there are any, computes what
    outcomes, audit, chains and state must be, and compares. It changes nothing; workers may go on
    meanwhile. What retention has taken cannot be looked at, and the report says so. Needs disk
    under TMPDIR for about as much as the tables take, and little memory.

    Prints the first violation of each kind; exit code 1 if there is any. A pipe gets one JSON
    object: ok, covered, counts, checked, violations.

    With `--sink` it compares instead what `taskflow sink postgres` has written: all events with the
    audit, all flows and steps with `state`, in temporary tables of that database. A pipe gets one
    JSON object: ok, compared, differing, differences, behind.

    Example: `taskflow verify --since 1d`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_STATE_DIR,
    TASKFLOW_DEDUPE_WINDOW, TASKFLOW_SINK_DSN, TASKFLOW_SINK_SCHEMA, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    from processor.cli.flow.flow_ids import flow_id_at

    settings = settings_and_logs(quiet=True)
    if sink is not None:
        from processor.cli.verify.sink import verify_sink

        if since is not None or flow is not None or at_rest:
            raise WrongUse("--sink compares all rows; it goes with no other option than --json.")
        if not verify_sink(settings, sink, json=json):
            raise typer.Exit(1)
        return
    from processor.cli.verify.execute import verify_deployment

    since_at = None if since is None else since_ms(since)
    grace_s = duration_ms(grace, "--grace") / 1000
    flow_id = None if flow is None else flow_id_at(settings, flow)
    if not verify_deployment(settings, since_at, flow_id, at_rest, grace_s, json=json):
        raise typer.Exit(1)
