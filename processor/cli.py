"""The program `taskflow`: its commands, its exit codes, and no tracebacks for what is known."""

import os
import sys
from collections.abc import Sequence

import typer

from processor.adapters.kafka.errors import BrokerUnreachable
from processor.embedded.errors import BadOption
from processor.errors import TaskflowError
from processor.program import (
    broker,
    bulk,
    deadletters,
    demo,
    doctor,
    export,
    flow,
    prune,
    rebuild,
    replay,
    send,
    streams,
    top,
    topics,
    torture,
    up,
    verify,
    views,
    worker,
)
from processor.program.output import NobodyReads, say
from processor.program.running import Interrupted, WrongUse
from processor.settings import BadSetting

DONE, REFUSED, WRONG_USE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

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
app.command("demo")(demo.demo)
app.command("up")(up.up)
app.command("broker")(broker.broker)
app.add_typer(topics.app, name="topics")
app.command("worker")(worker.worker)
app.command("views")(views.views)
app.command("send")(send.send)
app.command("audit")(streams.audit)
app.command("outcomes")(streams.outcomes)
app.add_typer(deadletters.app, name="deadletters")
app.add_typer(flow.app, name="flow")
app.command("top")(top.top)
app.command("prune")(prune.prune)
app.command("bulk")(bulk.bulk)
app.command("rebuild")(rebuild.rebuild)
app.command("verify")(verify.verify)
app.add_typer(replay.app, name="replay")
app.command("doctor")(doctor.doctor)
app.command("export")(export.export)
app.command("torture")(torture.torture)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit code."""
    try:
        app(arguments, prog_name="taskflow")
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
    return WRONG_USE if isinstance(error, BadSetting | WrongUse | BadOption) else REFUSED
