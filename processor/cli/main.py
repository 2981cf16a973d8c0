"""Run the program `taskflow`: its commands and exit codes; known errors are sentences, not
tracebacks.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final

import typer

from processor.cli.common.lazy_group import HELP_OPTIONS, LazyCommand, LazyGroup
from processor.errors import ExtraMissing, TaskflowError, missing_extra

DONE, REFUSED, WRONG_USE, UNREACHABLE, INTERRUPTED = 0, 1, 2, 3, 130

_PANELS: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "Run": {
        "demo": ("demo.command", "Show the main job in one command; nothing is left running."),
        "up": ("up.command", "Run an embedded broker, a worker and the views until Ctrl-C."),
        "broker": ("broker", "Run the embedded broker, a real single-node Apache Kafka."),
        "topics": ("topics", "Make the topics, or compare them with what they must be."),
        "worker": ("worker", "Run one processor until SIGTERM or Ctrl-C."),
        "views": ("views", "Serve the audit as a page, an HTTP API and live streams."),
        "mcp": ("mcp.command", "Serve flows to agents by the Model Context Protocol."),
        "outbox": (
            "outbox.command",
            "Send commands from a producer's database, and write outcomes back.",
        ),
        "sink": ("sink.commands", "Write flows, steps and events into PostgreSQL as they come."),
        "signals": ("signals", "Deliver signals to the flows that wait for them."),
        "schemas": ("schemas.commands", "Register the topics' JSON Schemas at a schema registry."),
        "deploy": ("deploy.commands", "Write manifests for Kubernetes, or units for systemd."),
    },
    "Use": {
        "send": ("send.command", "Send commands, one JSON object a line."),
        "flow": ("flow.commands", "Create, change and look at flows, as an operator."),
        "step": ("step.commands", "Schedule, look at, retry, cancel and do managed steps."),
        "signal": (
            "signal.commands",
            "Send signals to the flows that wait for them, and list undelivered ones.",
        ),
        "audit": ("tail", "Print the FlowEvents, what happened to flows."),
        "outcomes": ("tail", "Print the outcomes, one for each command."),
    },
    "Look": {
        "steps": ("tail", "Print the work items, steps that are offered."),
        "top": (
            "top.command",
            "Show what is going on, live: rates, partitions, flows and events.",
        ),
        "doctor": (
            "doctor.command",
            "Look at broker, topics, rights, lag, transactions, views, tables, clocks.",
        ),
        "export": ("export.command", "Write flows, steps and all events into one SQLite file."),
    },
    "Repair": {
        "deadletters": ("deadletters.commands", "Look at dead letters, and send them back."),
        "bulk": ("bulk.command", "Change many flows, or many managed steps, as an operator."),
        "prune": ("bulk.prune_command", "Remove flows that have ended, with their steps."),
        "rebuild": ("rebuild.command", "Rebuild tables, or repair what a partition stopped for."),
        "repartition": ("repartition.command", "Copy everything to another number of partitions."),
    },
    "Prove": {
        "verify": ("verify.command", "Verify all topics and tables against the contract."),
        "replay": ("replay.commands", "Decide recorded commands or feed consumers once more."),
        "torture": (
            "torture.command",
            "Break everything, again and again, and see that nothing is lost.",
        ),
    },
}
"""By panel and command: the module in `processor.cli`, and the first sentence of the help."""

COMMANDS: Final[Mapping[str, LazyCommand]] = {
    name: LazyCommand(f"processor.cli.{module}", panel, summary)
    for panel, commands in _PANELS.items()
    for name, (module, summary) in commands.items()
}
"""In the order of the help."""

HELP: Final = """A Kafka-native processor for durable task flows.

Try `taskflow demo`: it needs nothing but this installation. Settings are environment variables
`TASKFLOW_...`; the help of each command names those that it reads. `--profile NAME`, or
`TASKFLOW_PROFILE`, takes them from `~/.config/taskflow/profiles.toml`; the environment wins.

Exit codes: 0 done; 1 refused, or a check failed; 2 wrong use; 3 broker unreachable."""


class CommandGroup(LazyGroup):
    """The commands of the program."""

    entries = COMMANDS


def program() -> typer.Typer:
    """The program; a command's module is imported when the command is chosen."""
    app = typer.Typer(
        name="taskflow",
        cls=CommandGroup,
        help=HELP,
        no_args_is_help=True,
        rich_markup_mode="markdown",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": HELP_OPTIONS},
    )
    app.callback()(_options)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        import processor

        typer.echo(f"taskflow {processor.__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
    ),
    profile: str | None = typer.Option(
        None, "--profile", metavar="NAME", help="The settings of a cluster by name, from a file."
    ),
) -> None:
    """What holds for all commands. Raises BadSetting."""
    name = profile or os.environ.pop("TASKFLOW_PROFILE", None)
    if name:
        from processor.settings.profiles import apply_profile

        apply_profile(os.environ, name)
    # Known to us, and no settings of those that read them next.
    os.environ.pop("TASKFLOW_PROFILES", None)


def entry_point() -> int:
    """Run the program as this process: with safe standard streams. Returns its exit code."""
    from processor.cli.common.standard_streams import guard_standard_streams

    guard_standard_streams()
    return main()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; its exit code."""
    try:
        _check_encoding(sys.argv[1:] if arguments is None else arguments)
        try:
            program()(arguments, prog_name="taskflow")
        finally:
            sys.stdout.flush()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else REFUSED
    except BaseException as error:
        return _code_of(error)
    return DONE


def _check_encoding(arguments: Sequence[str]) -> None:
    """Raises WrongUse for an argument that is not UTF-8: it could not be printed or sent."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            from processor.cli.common.runner import WrongUse

            raise WrongUse(f"The argument {argument!r} is not UTF-8.") from None


def _code_of(error: BaseException) -> int:
    """Say what is known to end the program; its exit code. Raises what is not known."""
    from processor.cli.common.output import ReaderHasGone, say
    from processor.cli.common.runner import Interrupted
    from processor.cli.common.standard_streams import OutputLost

    if isinstance(error, ReaderHasGone):
        return DONE
    if isinstance(error, Interrupted | KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, OutputLost):
        say(str(error))
        return REFUSED
    if isinstance(error, ModuleNotFoundError):
        error = missing_extra(error) or error
    if isinstance(error, TaskflowError):
        say(str(error))
        return exit_code(error)
    raise error


def exit_code(error: TaskflowError) -> int:
    """The exit code for what could not be done."""
    from processor.cli.common.runner import WrongUse
    from processor.embedded.errors import BadOption, BrokerKeepsEnding
    from processor.settings import BadSetting

    if isinstance(error, WrongUse | BadSetting | BadOption | ExtraMissing):
        return WRONG_USE
    from processor.adapters.kafka.errors import BrokerUnreachable

    unreachable = isinstance(error, BrokerUnreachable | BrokerKeepsEnding)
    return UNREACHABLE if unreachable else REFUSED
