"""`taskflow replay check` and `export`: recorded commands through this code."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

import processor
from processor.cli.common.options import JSON, duration_ms, since_ms
from processor.cli.common.output import console, for_people, plain, say, table, write_json
from processor.cli.common.progress import progress_bar
from processor.cli.common.runner import Refused, WrongUse, run, settings_and_logs
from processor.cli.replay import group as replay_group
from processor.cli.replay import parallel as comparing
from processor.cli.replay import to_topic as replay_to
from processor.cli.verify import partitions_of
from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.ops.replay.differences import Difference, Findings
from processor.ops.replay.file_reader import reading
from processor.ops.replay.recorded import Head, Rules
from processor.settings import Settings

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
    settings = settings_and_logs(quiet=True)
    since_at = None if since is None else since_ms(since)
    head = _head(settings, file)
    rules = Rules(
        head.rules.prefix,
        head.rules.partitions,
        head.rules.dedupe_window_ms if window is None else duration_ms(window, "--window"),
        head.rules.timer_max_horizon_ms if horizon is None else duration_ms(horizon, "--horizon"),
    )
    job = comparing.Job(rules, _chosen(partition, head.partitions), file, since_at)
    started = time.perf_counter()
    with progress_bar("comparing") as bar:
        findings = comparing.compare(settings, job, processes, bar)
    if not findings.commands:
        raise Refused(
            "There is nothing to replay: no command that was decided is still there, or none since "
            "that time."
        )
    report = {
        **findings.as_json(),
        "history": {"file": None if file is None else str(file), "taskflow": head.version},
        "decided_by": processor.__version__,
        "settings": {
            "dedupe_window_ms": rules.dedupe_window_ms,
            "timer_max_horizon_ms": rules.timer_max_horizon_ms,
        },
        "seconds": round(time.perf_counter() - started, 3),
    }
    if for_people(json):
        _show(console(), findings, report)
    else:
        write_json(report)
    if not findings.ok:
        raise typer.Exit(1)


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
    settings = settings_and_logs(quiet=True)
    since_at = None if since is None else since_ms(since)
    if file.exists() and not overwrite:
        raise Refused(f"{file} is there already; take another name, or --overwrite.")
    if not file.absolute().parent.is_dir():
        raise WrongUse(f"{file.parent} is no directory.")
    head = _head(settings, None)
    job = comparing.Job(head.rules, _chosen(partition, head.partitions), file, since_at)
    with progress_bar("exporting") as bar:
        try:
            commands = run(lambda: comparing.export(settings, job, head, bar))
        except OSError as error:
            raise Refused(f"{file} could not be written: {error.strerror}.") from error
    size = file.stat().st_size
    if for_people(json):
        say(f"{commands:,} commands in {file}, {size:,} bytes.")
    else:
        write_json({"file": str(file), "commands": commands, "bytes": size})


app.command("to")(replay_to.to)
app.command("group")(replay_group.group)


def _head(settings: Settings, file: Path | None) -> Head:
    """What the file says of itself, or what is so on the topics."""
    if file is not None:
        with reading(file) as history:
            return history.head()
    prefix = settings.topic_prefix
    count = run(lambda: partitions_of(settings, Topics(prefix)))
    rules = Rules(prefix, count, settings.dedupe_window_ms, settings.timer_max_horizon_ms)
    now_ms = time.time_ns() // 1_000_000
    return Head(processor.__version__, instant(now_ms), rules, [*range(count)])


def _chosen(wanted: Sequence[int] | None, there: Sequence[int]) -> tuple[int, ...]:
    if not wanted:
        return tuple(there)
    if missing := sorted(set(wanted) - set(there)):
        raise WrongUse(f"There is no partition {missing[0]}; there are {[*there]}.")
    return tuple(sorted(set(wanted)))


def _show(out: Console, findings: Findings, report: dict[str, Any]) -> None:
    rows: list[Sequence[str | Text]] = []
    for kind in sorted({*findings.commands, *findings.touched}):
        touched = findings.touched[kind]
        style = "red" if touched else "green"
        what = ", ".join(
            f"{count:,} {record}s {what}"
            for (of, record, what), count in sorted(findings.kinds.items())
            if of == kind
        )
        compared = f"{findings.commands[kind]:,}"
        rows.append((kind, compared, Text(f"{touched:,}", style=style), what))
    out.print(table(None, ("command", "compared", "differ", "what"), rows))
    for found in findings.first:
        out.print(plain(_sentence(found)), style="red")
        for field in found.fields:
            out.print(plain(f"    {_field(field)}"))
    for sentence, count in findings.not_compared.items():
        out.print(plain(f"not compared: {count:,} {sentence}"), style="dim")
    records = ", ".join(
        f"{count:,} {name.replace('_', ' ')}" for name, count in findings.records.items()
    )
    commands, seconds = findings.commands.total(), report["seconds"]
    out.print(
        plain(
            f"{commands:,} commands in {seconds:.1f} s ({commands / max(seconds, 1e-3):,.0f}/s): "
            f"{records or 'nothing'}."
        )
    )
    if findings.ok:
        say("No difference.")
    else:
        say(f"{findings.touched.total():,} commands are decided in another way.")


def _sentence(found: Difference) -> str:
    where = f"{found.topic}/{found.partition}"
    if found.offset >= 0:
        where += f" offset {found.offset}"
    return f"{found.kind}: {found.record} {found.what}, {where}, flow {found.flow_id}"


def _field(field: dict[str, Any]) -> str:
    sides = [f"{side} {field[side]!r}" for side in ("recorded", "now") if side in field]
    return f"{field['path']}: {', '.join(sides)}"
