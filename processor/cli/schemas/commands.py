"""`taskflow schemas`: register the topics' JSON Schemas at a schema registry.

What the command needs is imported when it runs.
"""

from typing import Final, Literal

import typer

from processor.cli.common.options import JSON
from processor.cli.common.runner import run, settings_and_logs

app = typer.Typer(
    help="Register the topics' JSON Schemas at a schema registry.", no_args_is_help=True
)


Level = Literal[
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
    "NONE",
]
"""The compatibility levels, by the names of Confluent's registry."""


COMPATIBILITY: Final = typer.Option(
    "BACKWARD", "--compatibility", help="The compatibility level for each subject."
)


@app.callback()
def _group() -> None:
    """Register the topics' JSON Schemas at a schema registry."""


@app.command("register")
def register(
    registry: str = typer.Option(
        "-", "--registry", metavar="URL", help="The registry; - for TASKFLOW_SCHEMA_REGISTRY."
    ),
    compatibility: Level = COMPATIBILITY,
    dry_run: bool = typer.Option(
        False, "--dry-run", help="Show what would be done; change nothing."
    ),
    json: bool = JSON,
) -> None:
    """Register the JSON Schemas of all topics at a schema registry.

    For Confluent's registry, Karapace and others with the same API. A subject is `{topic}-value`.
    The topic `state` has three kinds of values, with the subjects `{topic}-FlowSnapshot`,
    `-StepSnapshot` and `-Cursor`. Records stay plain JSON without a schema id: see
    processor/docs/consuming.md. Schemas that are registered already are kept. If a schema is
    incompatible with its subject, nothing is changed and the exit code is 1.

    Example: `taskflow schemas register --registry https://registry.example:8081 --dry-run`

    Settings: TASKFLOW_TOPIC_PREFIX, TASKFLOW_SCHEMA_REGISTRY.
    """
    from processor.cli.schemas.execute import register_all, show

    settings = settings_and_logs(quiet=True)
    done = run(lambda: register_all(settings, registry, compatibility, dry_run=dry_run))
    if not show(done, json=json, dry_run=dry_run):
        raise typer.Exit(1)
