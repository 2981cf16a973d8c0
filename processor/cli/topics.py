"""`taskflow topics`: making the six topics, and looking whether they are right."""

from dataclasses import asdict

import typer

from processor.cli.common.output import console, for_people, say, table, write_json
from processor.cli.common.runner import run, settings_and_logs
from processor.contract.topics import SPECS

app = typer.Typer(
    help="Make the topics, or compare them with what they must be.", no_args_is_help=True
)


@app.command("create")
def create() -> None:
    """Make those of the six topics that are missing. What is there stays as it is.

    Prints the names of the topics that it made.

    Example: `TASKFLOW_PARTITIONS=12 TASKFLOW_REPLICATION_FACTOR=3 taskflow topics create`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_PARTITIONS,
    TASKFLOW_REPLICATION_FACTOR, TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    from processor.adapters.kafka.topic_admin import create_topics

    settings = settings_and_logs(quiet=True)
    made = run(lambda: create_topics(settings))
    for name in made:
        if for_people():
            console().print(f"made {name}", markup=False)
        else:
            write_json({"topic": name, "partitions": settings.partitions})
    if not made:
        say("All six topics are there already.")


@app.command("check")
def check(
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Compare the topics with what they must be. Changes nothing; exit code 1 if they differ.

    Prints one line for each difference.

    Example: `taskflow topics check`

    Settings: as for `topics create`.
    """
    from processor.adapters.kafka.topic_admin import check_topics

    settings = settings_and_logs(quiet=True)
    mismatches = run(lambda: check_topics(settings))
    if for_people(json):
        if mismatches:
            rows = [(m.topic, m.what, m.found, m.expected) for m in mismatches]
            console().print(table(None, ("topic", "what", "is", "must be"), rows))
    else:
        for mismatch in mismatches:
            write_json(asdict(mismatch))
    if mismatches:
        topics = len({mismatch.topic for mismatch in mismatches})
        say(
            f"{topics} of {len(SPECS)} topics of {settings.topic_prefix!r} are not as they must be."
        )
        raise typer.Exit(1)
    say(f"All six topics of {settings.topic_prefix!r} are as they must be.")
