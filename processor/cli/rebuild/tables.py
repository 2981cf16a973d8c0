"""`taskflow rebuild` of tables: rebuild them, or compare them."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import typer

from processor.adapters.sqlite import table_path
from processor.adapters.sqlite.files import copy, put_in_place
from processor.adapters.sqlite.readonly import queries as queries
from processor.adapters.sqlite.readonly.dump import (
    FLOW_COLUMNS,
    LEDGER_COLUMNS,
    STEP_COLUMNS,
    Dump,
    dump,
)
from processor.cli.common.confirm import Confirmation
from processor.cli.common.history import open_history
from processor.cli.common.output import say
from processor.cli.common.runner import Refused, run
from processor.cli.rebuild.common import (
    ProgressDisplay,
    RebuildProgress,
    opened,
    place_of,
    progress_line,
)
from processor.engine.batch import PartitionConfig
from processor.errors import TableDistrusted
from processor.recovery.consistent_cut import ConsistentCut, consistent_cut, standing_of
from processor.recovery.rebuild import TableRows, catch_up, first_difference
from processor.recovery.rebuild import rebuild as rebuild_table
from processor.runtime import private_directory
from processor.settings import Settings


class TableSource(StrEnum):
    STATE = "state"
    AUDIT = "audit"


@dataclass(frozen=True, slots=True)
class RebuiltTable:
    """A rebuilt table; `difference` is the first one from the live table."""

    partition: int
    source: str
    flows: int
    steps: int
    outcomes: int
    records: int
    seconds: float
    records_per_s: int
    difference: str | None = None


def rebuild_tables(
    settings: Settings,
    partitions: Sequence[int],
    source: TableSource,
    check: bool,
    show: ProgressDisplay,
    ask: Confirmation,
) -> None:
    """Rebuild tables, or with `check` compare them with ones that were. Raises Refused."""
    there = queries.tables(settings.state_dir, settings.topic_prefix)
    partitions = partitions or [p for p in there if p < settings.partitions]
    if not partitions:
        say(f"There are no tables in {settings.state_dir}: a worker makes and fills its own.")
        return
    if check and (missing := [partition for partition in partitions if partition not in there]):
        raise Refused(f"There is no table of partition {missing[0]} in {settings.state_dir}.")
    if not check:
        say(
            f"{_tables_of(partitions)} in {settings.state_dir} would be rebuilt from {source} "
            "and outcomes; each is replaced once the new one is whole."
        )
        if not ask.before("Rebuild them?"):
            return
    made = run(lambda: _make(settings, partitions, source, check))
    columns = ["partition", "source", "flows", "steps", "outcomes", "seconds", "records_per_s"]
    show.all([asdict(one) for one in made], [*columns, *(["difference"] if check else [])])
    if differing := [one for one in made if one.difference is not None]:
        first = differing[0]
        say(
            f"{len(differing)} of {len(made)} tables differ. The first, of partition "
            f"{first.partition}: {first.difference}. `taskflow rebuild --partition "
            f"{first.partition}` rebuilds it."
        )
        raise typer.Exit(1)
    how = "agree with the topics" if check else "were rebuilt"
    say(f"{_tables_of(partitions)} {how}.")


def _tables_of(partitions: Sequence[int]) -> str:
    return f"{len(partitions)} table{'' if len(partitions) == 1 else 's'}"


async def _make(
    settings: Settings, partitions: Sequence[int], source: TableSource, check: bool
) -> list[RebuiltTable]:
    async with progress_line() as progress:
        with _scratch(settings.state_dir) as scratch:
            return [
                await _make_one(settings, partition, source, check, scratch, progress)
                for partition in partitions
            ]


async def _make_one(
    settings: Settings,
    partition: int,
    source: TableSource,
    check: bool,
    scratch: Path,
    progress: RebuildProgress,
) -> RebuiltTable:
    place = place_of(settings, partition)
    live = table_path(settings.state_dir, settings.topic_prefix, partition)
    built = scratch / live.name
    async with open_history(settings, partition, "rebuild") as history:
        view = await consistent_cut(place, history, progress.advance)
        topics = (place.topics.outcomes, f"{settings.topic_prefix}.{source}")
        progress.begin(f"partition {partition}", [view.offset_ranges[topic] for topic in topics])
        async with opened(settings, partition, built) as made:
            await rebuild_table(place, made, view, from_audit=source is TableSource.AUDIT)
        with dump(built) as rows:
            counts = rows.counts()
        done = RebuiltTable(
            *(partition, source.value, *counts),
            *(progress.records, round(progress.seconds, 3), progress.per_s),
        )
        if not check:
            put_in_place(built, live)
            return done
        copied_to = scratch / f"live-{live.name}"
        copy(live, copied_to)
        try:
            async with opened(settings, partition, copied_to) as copied:
                why = await catch_up(place, copied, view)
        except TableDistrusted as error:
            why = str(error)
        if why is None:
            why = await _difference(place, view, copied_to, built)
        return RebuiltTable(**asdict(done) | {"difference": why})


async def _difference(
    place: PartitionConfig, view: ConsistentCut, live: Path, built: Path
) -> str | None:
    last_outcome = (await standing_of(place, view)).last_outcome
    # Older ledger entries are kept for a while longer, by each table for as long as it happened to.
    since_ms = last_outcome.timestamp - place.dedupe_window_ms if last_outcome else 0
    with dump(live) as here, dump(built) as there:
        found = first_difference(all_rows(here, since_ms), all_rows(there, since_ms))
    return None if found is None else str(found)


def all_rows(rows: Dump, since_ms: int) -> Iterator[TableRows]:
    """What is compared of a table."""
    yield TableRows("flow", FLOW_COLUMNS, rows.flows())
    yield TableRows("step", STEP_COLUMNS, rows.steps())
    yield TableRows("answer", LEDGER_COLUMNS, rows.ledger_entries(since_ms))


@contextmanager
def _scratch(state_dir: Path) -> Iterator[Path]:
    """A directory beside the tables, so that one can be put in another's place; a killed run's is
    taken away by the next."""
    scratch = state_dir / "rebuild"
    shutil.rmtree(scratch, ignore_errors=True)
    private_directory(scratch)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
