"""Hold recorded commands against this code, or write them to a file."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

import processor
from processor.cli.common.history import partitions_of
from processor.cli.common.options import duration_ms, since_ms
from processor.cli.common.output import console, for_people, plain, say, table, write_json
from processor.cli.common.progress import progress_bar
from processor.cli.common.runner import Refused, WrongUse, run
from processor.cli.replay import parallel as comparing
from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.ops.replay.differences import Difference, Findings
from processor.ops.replay.file_reader import reading
from processor.ops.replay.recorded_history import Head, Rules
from processor.runtime import now_ms
from processor.settings import Settings


def check_history(
    settings: Settings,
    file: Path | None,
    since: str | None,
    partition: Sequence[int] | None,
    window: str | None,
    horizon: str | None,
    processes: int,
    *,
    json: bool,
) -> None:
    """Decide the history of `file`, or of the topics, and print what differs.

    Raises Refused, WrongUse, and typer.Exit if anything differs.
    """
    since_at = None if since is None else since_ms(since)
    head = _head(settings, file)
    rules = Rules(
        head.rules.prefix,
        head.rules.partitions,
        head.rules.dedupe_window_ms if window is None else duration_ms(window, "--window"),
        head.rules.timer_max_horizon_ms if horizon is None else duration_ms(horizon, "--horizon"),
    )
    comparison = comparing.Comparison(rules, _chosen(partition, head.partitions), file, since_at)
    started = time.perf_counter()
    with progress_bar("comparing") as bar:
        findings = comparing.compare(settings, comparison, processes, bar)
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


def export_history(
    settings: Settings,
    file: Path,
    since: str | None,
    partition: Sequence[int] | None,
    *,
    json: bool,
) -> None:
    """Write the history of the topics to `file`. Raises Refused, WrongUse."""
    since_at = None if since is None else since_ms(since)
    head = _head(settings, None)
    comparison = comparing.Comparison(
        head.rules, _chosen(partition, head.partitions), file, since_at
    )
    with progress_bar("exporting") as bar:
        try:
            commands = run(lambda: comparing.export(settings, comparison, head, bar))
        except OSError as error:
            raise Refused(f"{file} could not be written: {error.strerror}.") from error
    size = file.stat().st_size
    if for_people(json):
        say(f"{commands:,} commands in {file}, {size:,} bytes.")
    else:
        write_json({"file": str(file), "commands": commands, "bytes": size})


def _head(settings: Settings, file: Path | None) -> Head:
    """What the file says of itself, or what is so on the topics."""
    if file is not None:
        with reading(file) as history:
            return history.head()
    prefix = settings.topic_prefix
    count, _ = run(lambda: partitions_of(settings, Topics(prefix)))
    rules = Rules(prefix, count, settings.dedupe_window_ms, settings.timer_max_horizon_ms)
    return Head(processor.__version__, instant(now_ms()), rules, [*range(count)])


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
