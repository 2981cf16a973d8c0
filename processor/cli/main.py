"""The program `taskflow`: its commands, its exit codes, and no tracebacks for what is known."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Final

import typer

from processor.adapters.kafka.errors import BrokerUnreachable
from processor.cli.common.output import NobodyReads, say
from processor.cli.common.runner import Interrupted, WrongUse
from processor.embedded.errors import BadOption
from processor.errors import ExtraMissing, TaskflowError
from processor.settings import BadSetting

DONE, REFUSED, WRONG_USE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

COMMANDS: Final[Mapping[str, str]] = {
    "demo": "demo.command",
    "up": "up",
    "broker": "broker",
    "topics": "topics",
    "worker": "worker",
    "views": "views",
    "send": "send",
    "audit": "tail",
    "outcomes": "tail",
    "deadletters": "deadletters.commands",
    "flow": "flow.commands",
    "top": "top",
    "prune": "bulk.prune",
    "bulk": "bulk.command",
    "rebuild": "rebuild.command",
    "verify": "verify",
    "replay": "replay.check",
    "doctor": "doctor",
    "export": "export",
    "repartition": "repartition.command",
    "torture": "torture",
}
"""Each command, as the help lists them, and the module of `processor.cli` that has it: as a
function of its name, or as `app` if it has commands of its own."""


def program(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The program with these commands: a worker starts sooner without what verifies and repairs."""
    app = typer.Typer(
        name="taskflow",
        help=(
            "A Kafka-native processor for durable task flows.\n\n"
            "Try `taskflow demo`: it needs nothing but this installation. Settings are environment "
            "variables `TASKFLOW_...`; the help of each command names those that it reads.\n\n"
            "Exit codes: 0 done; 1 refused, or a check failed; 2 wrong use; 3 broker unreachable."
        ),
        no_args_is_help=True,
        rich_markup_mode="markdown",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_nothing)  # without one, typer takes an only command for the whole program
    for name in names:
        module = import_module(f"processor.cli.{COMMANDS[name]}")
        if hasattr(module, "app"):
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(getattr(module, name))
    return app


def _nothing() -> None:
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit code."""
    asked = sys.argv[1:] if arguments is None else arguments
    names = asked[:1] if asked and asked[0] in COMMANDS else COMMANDS
    try:
        program(names)(arguments, prog_name="taskflow")
        sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else REFUSED
    except (NobodyReads, BrokenPipeError):
        # Nothing is to be said about it, nor when the interpreter flushes for the last time.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except (Interrupted, KeyboardInterrupt):
        return INTERRUPTED
    except TaskflowError as error:
        say(str(error))
        return exit_code(error)
    return DONE


def exit_code(error: TaskflowError) -> int:
    """The exit code for what we could not do."""
    if isinstance(error, BrokerUnreachable):
        return UNREACHABLE
    return (
        WRONG_USE
        if isinstance(error, BadSetting | WrongUse | BadOption | ExtraMissing)
        else REFUSED
    )
