"""`taskflow replay`: recorded commands through this code, and events once more.

What a command needs is imported when it runs.
"""

from enum import StrEnum
from pathlib import Path

import typer

from processor.cli.common.confirm import DRY_RUN, YES, Confirmation
from processor.cli.common.options import JSON
from processor.cli.common.runner import Refused, WrongUse, settings_and_logs

EventKindName = StrEnum(
    "EventKindName",
    (
        "created",
        "started",
        "waiting",
        "resumed",
        "finished",
        "failed",
        "cancel_requested",
        "cancelled",
        "state_updated",
        "step_observed",
        "step_scheduled",
        "step_started",
        "step_extended",
        "step_released",
        "step_retried",
        "step_dispatched",
        "step_succeeded",
        "step_failed",
        "step_cancelled",
        "pruned",
    ),
)
"""An EventKind by its value: the help needs no models."""

app = typer.Typer(
    help=(
        "Decide recorded commands or feed consumers once more.\n\n"
        "`check` and `export` compare this version with what another one decided; `to` and `group` "
        "are for consumers."
    ),
    no_args_is_help=True,
)

HISTORY = typer.Argument(
    None, help="A file that `taskflow replay export` wrote; without one, the topics."
)
NEW_FILE = typer.Argument(..., help="Where to: a new file, such as history.gz.")
SINCE = typer.Option(
    None,
    "--since",
    help="Only what was answered from this time on: 2026-11-22T21:02:08Z, or 10m for ten minutes "
    "ago; what was before is folded from the audit.",
)
PARTITION = typer.Option(None, "--partition", min=0, help="Only this one; may be repeated.")
TARGET = typer.Argument(..., help="Where to: a topic that is there, with its own time stamps.")
EVENTS_SINCE = typer.Option(None, "--since", help="Events from this time on: RFC 3339, or 10m.")
UNTIL = typer.Option(None, "--until", help="Events before this time; by default, up to now.")
OFFSETS = typer.Option(
    None,
    "--offsets",
    help="Of a partition only these offsets of the audit: 0:100-200, 0:100- or 0:-200, without "
    "the last; may be repeated, and partitions that are not named are left out.",
)
FLOW = typer.Option(None, "--flow", help="Only this flow; may be repeated.")
OWNER = typer.Option(None, "--owner", help="Only flows of this session key; may be repeated.")
KIND = typer.Option(None, "--kind", help="Only events of this kind; may be repeated.")
RATE = typer.Option(None, "--rate", min=0.1, help="At most so many events a second.")
RUN = typer.Option(
    None, "--run", help="A name for this run; the same one goes on, another starts over."
)
GROUP = typer.Argument(..., help="The consumer group's id.")
MOMENT = typer.Option(
    ..., "--to", help="A time (2026-11-22T21:02:08Z, or 10m for ten minutes ago), beginning or end."
)
OF_TOPIC = typer.Option(None, "--topic", help="Of which topic; the audit unless given.")


@app.command("check")
def check(
    file: Path | None = HISTORY,
    since: str | None = SINCE,
    partition: list[int] | None = PARTITION,
    window: str | None = typer.Option(
        None, "--window", help="Decide with this dedupe window instead, such as 1h."
    ),
    horizon: str | None = typer.Option(
        None, "--horizon", help="Decide with this horizon of waits instead, such as 30d."
    ),
    processes: int = typer.Option(
        1, "--processes", min=1, help="Share the partitions out among so many."
    ),
    json: bool = JSON,
) -> None:
    """Does this version decide as the one did that wrote the history? Exit code 1 if not.

    Runs the recorded commands, in the order in which they were decided and with their recorded
    times, through the code at hand, and compares what it writes with what is recorded, byte for
    byte: outcomes, events with their ids and chains, dead letters, wakes, copies of what was
    forwarded, and in the end flows and steps with `state`. Each command is judged from where the
    record says that things stood: a rule that was changed shows in the commands that it touches
    and in no others. Changes nothing; workers may go on meanwhile.

    Where retention took commands, flows are folded from the audit up to the first that is left.
    The settings that decide are those in the file, or TASKFLOW_DEDUPE_WINDOW and
    TASKFLOW_TIMER_MAX_HORIZON; they must be what the workers had.

    A pipe gets one JSON object: ok, compared, differences by kind, the first of each sort.

    Example: `taskflow replay check history.gz`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_DEDUPE_WINDOW,
    TASKFLOW_TIMER_MAX_HORIZON, TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    if file is not None and since is not None:
        raise WrongUse("--since is for topics; a file is taken whole.")
    if file is not None and not file.is_file():
        raise WrongUse(f"{file} is no file.")
    from processor.cli.replay.check import check_history

    settings = settings_and_logs(quiet=True)
    check_history(settings, file, since, partition, window, horizon, processes, json=json)


@app.command("export")
def export(
    file: Path = NEW_FILE,
    since: str | None = SINCE,
    partition: list[int] | None = PARTITION,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace a file that is there."),
    json: bool = JSON,
) -> None:
    """Write a history to a file, for `taskflow replay check` anywhere and at any time.

    It holds commands and all that was written about them, with the settings that decide:
    compressed lines, which say by themselves what they are. What commands hold is in it: keep it
    as you keep the topics. It takes its name once it is whole.

    Example: `taskflow replay export golden.gz --since 1h`

    Settings: as for `replay check`.
    """
    if file.exists() and not overwrite:
        raise Refused(f"{file} is there already; take another name, or --overwrite.")
    if not file.absolute().parent.is_dir():
        raise WrongUse(f"{file.parent} is no directory.")
    from processor.cli.replay.check import export_history

    export_history(settings_and_logs(quiet=True), file, since, partition, json=json)


@app.command("to")
def to(
    topic: str = TARGET,
    since: str | None = EVENTS_SINCE,
    until: str | None = UNTIL,
    offsets: list[str] | None = OFFSETS,
    flow: list[str] | None = FLOW,
    owner: list[str] | None = OWNER,
    kind: list[EventKindName] | None = KIND,
    rate: float | None = RATE,
    run_name: str | None = RUN,
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    json: bool = JSON,
) -> None:
    """Write events of the audit once more, to a topic of a consumer's own, in their order.

    Key, value, time stamp, chain and trace are the original ones; the header `taskflow-replay`,
    run/topic/partition/offset, says which run and which record an event repeats. Partitions are
    kept where the topic has as many as the audit, else events go by their key; a flow's events
    stay in their order.

    A run is named by what was asked for, or by --run. Events and how far the run is are written
    in the same transactions: killed and started again with the same options, it goes on behind
    what is there, and readers of committed records see nothing twice. Once it is done, the same
    command writes what came since.

    It shows what it would write and asks; in a pipe it takes --yes.

    Example: `taskflow replay to billing.rebuild --since 2026-11-01T00:00:00Z --kind finished`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_COMPRESSION,
    TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    from processor.cli.replay.to_topic import Asked, replay_to

    ask = Confirmation(dry_run, yes)
    settings = settings_and_logs(quiet=True)
    asked = Asked(topic, since, until, offsets or [], flow or [], owner or [], kind or [], run_name)
    replay_to(settings, asked, rate, ask, json=json)


@app.command("group")
def group(
    group_id: str = GROUP,
    to: str = MOMENT,
    topic: str | None = OF_TOPIC,
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    json: bool = JSON,
) -> None:
    """Set the offsets of a consumer group by time, so that it reads events once more, or skips.

    Each partition goes to the first record that was appended at that time or later, or to its end.
    Refused while the group has live members, which keep to their own offsets: stop them first. It
    shows the offsets and asks; in a pipe it takes --yes, and gets a JSON line for each partition.

    Example: `taskflow replay group billing --to 2026-11-22T21:02:08Z --dry-run`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_SECURITY_PROTOCOL,
    `TASKFLOW_SASL_*`, `TASKFLOW_SSL_*`.
    """
    from processor.cli.replay.group import move_group

    move_group(group_id, to, topic, Confirmation(dry_run, yes), json=json)
