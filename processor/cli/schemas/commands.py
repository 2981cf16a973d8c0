"""`taskflow schemas`: the JSON Schemas of the topics at a schema registry.

What the command needs is imported when it runs.
"""

from typing import Final, Literal

import typer

from processor.cli.common.options import JSON
from processor.cli.common.runner import run, settings_and_logs

app = typer.Typer(help="Register the JSON Schemas of the topics.", no_args_is_help=True)


Level = Literal[
    "BACKWARD",
    "BACKWARD_TRANSITIVE",
    "FORWARD",
    "FORWARD_TRANSITIVE",
    "FULL",
    "FULL_TRANSITIVE",
    "NONE",
]
"""How a version must fit those before it, in the words of Confluent's registry."""


COMPATIBILITY: Final = typer.Option(
    "BACKWARD", "--compatibility", help="The level that each subject gets."
)


@app.callback()
def _group() -> None:
    """Register the JSON Schemas of the topics."""


@app.command("register")
def register(
    registry: str = typer.Option(
        "-", "--registry", metavar="URL", help="The registry; - for TASKFLOW_SCHEMA_REGISTRY."
    ),
    compatibility: Level = COMPATIBILITY,
    dry_run: bool = typer.Option(False, "--dry-run", help="Show what would be done, do nothing."),
    json: bool = JSON,
) -> None:
    """Register the JSON Schemas of all topics at a schema registry.

    For Confluent's registry, Karapace and others with its API. A subject is `{topic}-value`; of
    `state`, which has values of three kinds, `{topic}-FlowSnapshot`, `-StepSnapshot` and `-Cursor`.
    Records stay plain JSON, without an id of a schema in front: see consuming.md. What is there
    already is left as it is. If a schema does not fit what is there, nothing is done at all, and
    the exit code is 1.

    Example: `taskflow schemas register --registry https://registry.example:8081 --dry-run`

    Settings: TASKFLOW_TOPIC_PREFIX, TASKFLOW_SCHEMA_REGISTRY.
    """
    from processor.cli.schemas.execute import register_all, show

    settings = settings_and_logs(quiet=True)
    done = run(lambda: register_all(settings, registry, compatibility, dry_run=dry_run))
    if not show(done, json=json, dry_run=dry_run):
        raise typer.Exit(1)
