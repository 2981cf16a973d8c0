"""Verify a deployment for `taskflow verify`, and print the report."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from processor.adapters.sqlite import TableCorrupt, TableFailed
from processor.adapters.sqlite.readonly import queries as queries
from processor.cli.common.history import open_log, partitions_of
from processor.cli.common.output import console, for_people, plain, say, table, write_json
from processor.cli.common.progress import progress_bar
from processor.cli.common.runner import run
from processor.contract.topics import Topics
from processor.ops.verify.ports import (
    TableFlow,
    TablePosition,
    TableProblem,
    TableStep,
    TakeTable,
)
from processor.ops.verify.report import INVARIANTS, Report
from processor.ops.verify.scope import Scope
from processor.ops.verify.verify import verify
from processor.settings import Settings


def verify_deployment(
    settings: Settings,
    since_ms: int | None,
    flow_id: str | None,
    at_rest: bool,
    grace_s: float,
    *,
    json: bool,
) -> bool:
    """Print the report; whether all that was looked at holds."""
    report = run(lambda: _verify(settings, since_ms, flow_id, at_rest, grace_s))
    if for_people(json):
        _show(console(), report)
    else:
        write_json(report.as_json())
    return report.ok


async def _verify(
    settings: Settings, since_ms: int | None, flow_id: str | None, at_rest: bool, grace_s: float
) -> Report:
    topics = Topics(settings.topic_prefix)
    partitions, steps_partitions = await partitions_of(settings, topics)
    scope = Scope(
        topics=topics,
        partitions=partitions,
        steps_partitions=steps_partitions,
        window_ms=settings.dedupe_window_ms,
        since_ms=since_ms,
        flow_id=flow_id,
        at_rest=at_rest,
        grace_s=grace_s,
    )
    with progress_bar("verifying") as bar:
        logs = partial(open_log, settings)
        return await verify(scope, logs, [LocalTables(settings)], watcher=bar)


class LocalTables:
    """The tables in the state directory."""

    def __init__(self, settings: Settings) -> None:
        self._paths: Mapping[int, Path] = queries.tables(settings.state_dir, settings.topic_prefix)

    def read_table(self, partition: int, take: TakeTable) -> TableProblem | None:
        path = self._paths.get(partition)
        if path is None:
            return None

        def all_of(whole: queries.Whole) -> None:
            take(
                TablePosition(str(path), whole.partitions, *whole.position, whole.restored),
                (TableFlow(*row) for row in whole.flows),
                (TableStep(*row) for row in whole.steps),
            )

        try:
            queries.whole(path, all_of)
        except TableCorrupt as error:
            return TableProblem(str(error), damaged=True)
        except TableFailed as error:
            return TableProblem(str(error), damaged=False)
        return None


def _show(out: Console, report: Report) -> None:
    rows: list[Sequence[str | Text]] = []
    for name, meaning in INVARIANTS.items():
        found = report.violations_of(name)
        style = "red" if found else "green" if report.checked[name] else "dim"
        rows.append((name, f"{report.checked[name]:,}", Text(f"{found:,}", style=style), meaning))
    out.print(table(None, ("", "checked", "violations", "what must hold"), rows))
    for violation in report.as_json()["violations"]:
        out.print(plain(_sentence(violation)), style="red")
    for sentence in report.not_covered:
        out.print(plain(f"not covered: {sentence}"), style="dim")
    read = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.counts.items())
    out.print(plain(f"Read: {read or 'nothing'}; tables: {', '.join(report.tables) or 'none'}."))
    if report.ok:
        say("All that was looked at holds.")
    else:
        say(f"{report.found.total():,} violations of {len(report.found)} kinds.")


def _sentence(violation: Mapping[str, Any]) -> str:
    where = f"{violation['topic']}/{violation['partition']}"
    if violation["offset"] >= 0:
        where += f" offset {violation['offset']}"
    of = f", flow {violation['flow_id']}" if violation["flow_id"] else ""
    return (
        f"{violation['invariant']} {violation['kind']} ({violation['count']:,}), first at "
        f"{where}{of}: {violation['message']}"
    )
