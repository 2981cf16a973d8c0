"""`taskflow send`: publish commands from JSON lines.

What the command does is imported when it runs.
"""

import sys
from pathlib import Path

import typer

from processor.cli.common.options import JSON_LINES, duration_ms
from processor.cli.common.output import for_people, say
from processor.cli.common.runner import WrongUse, run, settings_and_logs


def send(
    file: str = typer.Argument("-", help="A file of JSON lines, or - for standard input."),
    wait: bool = typer.Option(False, "--wait", help="Await and print each outcome."),
    control: bool = typer.Option(
        False, "--control", help="Use the control topic: an operator's authority, no owner check."
    ),
    timeout: str = typer.Option("30s", "--timeout", help="For each command, such as 500ms or 2m."),
    json: bool = JSON_LINES,
) -> None:
    """Send commands, one JSON object a line. A missing `command_id` is added.

    Lines of one flow are sent one after the other, in their order; flows do not wait for each
    other. Prints one line for each command, JSON in a pipe, in the order of the input: where Kafka
    put it, or with --wait its outcome. The first line that is no command ends it (exit code 2);
    what came before is sent. Exit code 1 if a command was not sent, not answered in time, or with
    --wait not accepted. A line with a `command_id` that is sent again within the dedupe window is
    applied once.

    Example: `taskflow send --wait commands.jsonl`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_COMPRESSION,
    TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    from processor.cli.send.pipeline import send_lines

    settings = settings_and_logs(quiet=True)
    timeout_s = duration_ms(timeout, "--timeout") / 1000
    path = None if file == "-" else Path(file)
    if path is not None and not path.is_file():
        raise WrongUse(f"{file} is no file; nothing was sent.")
    if path is None and sys.stdin is None:
        raise WrongUse("Standard input is closed; nothing was sent.")
    if path is None and sys.stdin.isatty():
        say("reading commands from the terminal, one JSON object a line; Ctrl-D ends")
    how = {"wait": wait, "control": control, "people": for_people(json)}
    failed = run(lambda: send_lines(settings, path, timeout_s=timeout_s, **how))
    if failed:
        raise typer.Exit(1)
