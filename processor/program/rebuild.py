"""`taskflow rebuild`: tables made anew or compared; what lets a partition go on after a loss."""

import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import typer

from processor.adapters.kafka.connection import compression_type, connection_options
from processor.adapters.kafka.writer import TransactionalWriter, producers_stopped
from processor.adapters.sqlite import (
    FlowTable,
    StateDirInUse,
    open_table,
    queries,
    state_dir_lock,
    table_path,
)
from processor.adapters.sqlite.dump import (
    ANSWER_COLUMNS,
    FLOW_COLUMNS,
    STEP_COLUMNS,
    Dump,
    dump,
)
from processor.adapters.sqlite.files import copy, put_in_place
from processor.batch import Outgoing, Place
from processor.errors import TableDistrusted
from processor.ports import Extent
from processor.program.consent import DRY_RUN, YES, Ask
from processor.program.histories import open_history
from processor.program.output import console, for_people, say, table, write_json
from processor.program.running import Refused, WrongUse, run, settings_and_logs
from processor.repair import (
    Restoration,
    Rows,
    Skip,
    Still,
    catch_up,
    first_difference,
    plan_restoration,
    plan_skip,
    restore,
    skip,
    standing_of,
    still,
)
from processor.repair import rebuild as make_anew
from processor.rows import Position
from processor.settings import Settings
from schemas.topics import Topics

TELL_EVERY_S = 1.0
STOP_TIMEOUT_S = 2.0


class Source(StrEnum):
    STATE = "state"
    AUDIT = "audit"


# Not in the signature, as of types that ruff takes for mutable.
PARTITION = typer.Option(
    [], "--partition", help="Only this one; may be given again. Default: all that have a table."
)
FROM = typer.Option(
    Source.STATE, "--from", help="Where flows and steps come from; audit verifies each chain."
)


def rebuild(
    partition: list[int] = PARTITION,
    source: Source = FROM,
    check: bool = typer.Option(False, "--check", help="Only compare with the tables there are."),
    skip_lost: bool = typer.Option(
        False, "--skip-lost", help="Go on behind commands that commands or control lost."
    ),
    restore_state: bool = typer.Option(
        False, "--restore-state", help="Write the state topic anew from audit and outcomes."
    ),
    dry_run: bool = DRY_RUN,
    yes: bool = YES,
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Make tables anew from the topics, or repair what a partition stopped for.

    Tables are caches: flows and steps come from `state`, or are folded from `audit`; answers come
    from `outcomes`, the position from `state`. It needs the worker of TASKFLOW_STATE_DIR stopped;
    others may go on. A table is replaced once the new one is whole. With --check nothing is
    replaced: each table is compared, row by row, with one made anew; exit code 1 and the first
    difference if they differ.

    --skip-lost and --restore-state write to `state`, as the partition's owner. They are what a
    partition asks for that stopped; each shows what it would do first. They touch no table, and a
    worker goes on by itself afterwards. --restore-state needs disk under TMPDIR for about as much
    as the partition's table takes.

    It asks before it changes anything; in a pipe it takes --yes. It may be repeated.

    Example: `taskflow rebuild --from audit --check`

    Settings: TASKFLOW_BOOTSTRAP_SERVERS, TASKFLOW_TOPIC_PREFIX, TASKFLOW_PARTITIONS,
    TASKFLOW_STATE_DIR, TASKFLOW_DEDUPE_WINDOW, TASKFLOW_SECURITY_PROTOCOL, `TASKFLOW_SASL_*`,
    `TASKFLOW_SSL_*`.
    """
    if check + skip_lost + restore_state > 1:
        raise WrongUse("--check, --skip-lost and --restore-state exclude each other; take one.")
    if restore_state and not partition:
        raise WrongUse("--restore-state needs --partition: the one that asks for it.")
    ask = Ask(dry_run or check, yes)
    settings = settings_and_logs(quiet=True)
    if wrong := [number for number in partition if not 0 <= number < settings.partitions]:
        raise WrongUse(f"There is no partition {wrong[0]} among {settings.partitions}.")
    show = Show(json)
    numbers = sorted(set(partition))
    if skip_lost:
        _skip_lost(settings, numbers or range(settings.partitions), show, ask)
    elif restore_state:
        for number in numbers:
            _restore_state(settings, number, show, ask)
    else:
        try:
            with state_dir_lock(settings.state_dir):
                _tables(settings, numbers, source, check, show, ask)
        except StateDirInUse:
            raise Refused(
                f"A worker uses {settings.state_dir}; stop it first, for its tables are looked at "
                "as it leaves them."
            ) from None


@dataclass(frozen=True, slots=True)
class Show:
    """JSON lines for a pipe, tables for people."""

    json: bool

    def all(self, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
        if not for_people(self.json):
            for row in rows:
                write_json(row, flush=True)
        elif rows:
            cells = [[_cell(row[column]) for column in columns] for row in rows]
            names = [column.replace("_", " ") for column in columns]
            console().print(table(None, names, cells))


def _cell(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, list):
        return "\n".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


class Progress:
    """One line on a terminal that changes: how far the partition is, and how fast."""

    def __init__(self) -> None:
        self.records = 0
        self._what, self._total, self._began, self._told = "", 0, 0.0, 0.0
        self._shown = sys.stderr.isatty()

    def begin(self, what: str, extents: Iterable[Extent]) -> None:
        self._what, self.records = what, 0
        self._total = sum(extent.end - extent.start for extent in extents)
        self._began = self._told = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def per_s(self) -> int:
        return int(self.records / max(self.seconds, 1e-3))

    def heard(self, records: int) -> None:
        self.records += records
        if self._shown and time.monotonic() - self._told > TELL_EVERY_S:
            self._told = time.monotonic()
            share = min(1.0, self.records / self._total) if self._total else 1.0
            sys.stderr.write(
                f"\r\x1b[K{self._what}: {self.records:,} records, {share:.0%}, {self.per_s:,}/s"
            )
            sys.stderr.flush()

    def end(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


@asynccontextmanager
async def _progress() -> AsyncIterator[Progress]:
    progress = Progress()
    try:
        yield progress
    finally:
        progress.end()


# Tables


@dataclass(frozen=True, slots=True)
class Made:
    """A table that was made anew; `difference` is the first one from the live table."""

    partition: int
    source: str
    flows: int
    steps: int
    answers: int
    records: int
    seconds: float
    records_per_s: int
    difference: str | None = None


def _tables(
    settings: Settings, numbers: Sequence[int], source: Source, check: bool, show: Show, ask: Ask
) -> None:
    there = queries.tables(settings.state_dir, settings.topic_prefix)
    numbers = numbers or [number for number in there if number < settings.partitions]
    if not numbers:
        say(f"There are no tables in {settings.state_dir}: a worker makes and fills its own.")
        return
    if check and (missing := [number for number in numbers if number not in there]):
        raise Refused(f"There is no table of partition {missing[0]} in {settings.state_dir}.")
    if not check:
        say(
            f"{_tables_of(numbers)} in {settings.state_dir} would be made anew from {source} and "
            "outcomes; each is replaced once the new one is whole."
        )
        if not ask.before("Make them anew?"):
            return
    made = run(lambda: _make(settings, numbers, source, check))
    columns = ["partition", "source", "flows", "steps", "answers", "seconds", "records_per_s"]
    show.all([asdict(one) for one in made], [*columns, *(["difference"] if check else [])])
    if differing := [one for one in made if one.difference is not None]:
        first = differing[0]
        say(
            f"{len(differing)} of {len(made)} tables differ. The first, of partition "
            f"{first.partition}: {first.difference}. `taskflow rebuild --partition "
            f"{first.partition}` makes it anew."
        )
        raise typer.Exit(1)
    how = "agree with the topics" if check else "were made anew"
    say(f"{_tables_of(numbers)} {how}.")


def _tables_of(numbers: Sequence[int]) -> str:
    return f"{len(numbers)} table{'' if len(numbers) == 1 else 's'}"


async def _make(
    settings: Settings, numbers: Sequence[int], source: Source, check: bool
) -> list[Made]:
    async with _progress() as progress:
        with _scratch(settings.state_dir) as scratch:
            return [
                await _make_one(settings, number, source, check, scratch, progress)
                for number in numbers
            ]


async def _make_one(
    settings: Settings,
    number: int,
    source: Source,
    check: bool,
    scratch: Path,
    progress: Progress,
) -> Made:
    place = _place(settings, number)
    live = table_path(settings.state_dir, settings.topic_prefix, number)
    built = scratch / live.name
    async with open_history(settings, number, "rebuild") as history:
        view = await still(place, history, progress.heard)
        topics = (place.topics.outcomes, f"{settings.topic_prefix}.{source}")
        progress.begin(f"partition {number}", [view.extents[topic] for topic in topics])
        async with _opened(settings, number, built) as made:
            await make_anew(place, made, view, from_audit=source is Source.AUDIT)
        with dump(built) as rows:
            counts = rows.counts()
        done = Made(
            *(number, source.value, *counts),
            *(progress.records, round(progress.seconds, 3), progress.per_s),
        )
        if not check:
            put_in_place(built, live)
            return done
        beside = scratch / f"live-{live.name}"
        copy(live, beside)
        try:
            async with _opened(settings, number, beside) as copied:
                why = await catch_up(place, copied, view)
        except TableDistrusted as error:
            why = str(error)
        if why is None:
            why = await _difference(place, view, beside, built)
        return Made(**asdict(done) | {"difference": why})


async def _difference(place: Place, view: Still, live: Path, built: Path) -> str | None:
    _, last_outcome = await standing_of(place, view)
    # Older answers are kept for a while longer, by each table for as long as it happened to.
    since_ms = last_outcome.timestamp - place.dedupe_window_ms if last_outcome else 0
    with dump(live) as here, dump(built) as there:
        found = first_difference(_all_rows(here, since_ms), _all_rows(there, since_ms))
    return None if found is None else str(found)


def _all_rows(rows: Dump, since_ms: int) -> Iterator[Rows]:
    yield Rows("flow", FLOW_COLUMNS, rows.flows())
    yield Rows("step", STEP_COLUMNS, rows.steps())
    yield Rows("answer", ANSWER_COLUMNS, rows.answers(since_ms))


# What was lost


def _skip_lost(settings: Settings, numbers: Sequence[int], show: Show, ask: Ask) -> None:
    plans = run(lambda: _plan_skips(settings, numbers))
    if not plans:
        say("Nothing is lost.")
        return
    rows: list[dict[str, Any]] = [
        {
            "partition": number,
            "lost": [one.sentence for one in plan.lost],
            "from": _offsets(plan.was),
            "to": _offsets(plan.to),
        }
        for number, plan in plans.items()
    ]
    if for_people(show.json):
        for row in rows:
            row |= {name: ", ".join(f"{t} {n}" for t, n in row[name].items()) for name in FROM_TO}
    show.all(rows, ["partition", *FROM_TO, "lost"])
    say("What was lost will never be decided, nor answered.")
    if ask.before("Go on behind it?"):
        run(lambda: _skip(settings, plans))
        say(f"{_partitions(len(plans))} can go on; a worker that runs does so by itself.")


FROM_TO = ("from", "to")


def _offsets(position: Position) -> dict[str, int]:
    return {"commands": position.commands, "control": position.control}


def _partitions(count: int) -> str:
    return f"{count} partition{'' if count == 1 else 's'}"


async def _plan_skips(settings: Settings, numbers: Sequence[int]) -> dict[int, Skip]:
    plans = {}
    for number in numbers:
        async with open_history(settings, number, "rebuild") as history:
            plan = await plan_skip(_place(settings, number), history)
        if plan is not None:
            plans[number] = plan
    return plans


async def _skip(settings: Settings, plans: Mapping[int, Skip]) -> None:
    for number, plan in plans.items():
        async with (
            open_history(settings, number, "rebuild") as history,
            _writers(settings, number) as new_writer,
        ):
            await skip(_place(settings, number), history, new_writer, plan)


def _restore_state(settings: Settings, number: int, show: Show, ask: Ask) -> None:
    with tempfile.TemporaryDirectory(prefix="taskflow-") as scratch:
        built = table_path(Path(scratch), settings.topic_prefix, number)
        plan = run(lambda: _plan_restoration(settings, number, built))
        if plan is None:
            say(f"Nothing was ever decided on partition {number}.")
            return
        with dump(built) as rows:
            flows, steps, _ = rows.counts()
            row = {
                "partition": number,
                "flows": flows,
                "steps": steps,
                "tombstones": len(plan.tombstones),
                **plan.position._asdict(),
            }
            show.all([row], list(row))
            topic = Topics(settings.topic_prefix).state
            say(f"They would be written to {topic}, and then the cursor.")
            if ask.before(f"Write partition {number} of it anew?"):
                run(lambda: _restore(settings, number, plan, rows))
                say(f"Partition {number} of {topic} is written anew.")


async def _plan_restoration(settings: Settings, number: int, built: Path) -> Restoration | None:
    place = _place(settings, number)
    async with open_history(settings, number, "rebuild") as history, _progress() as progress:
        view = await still(place, history, progress.heard)
        extents = [view.extents[topic] for topic in (place.topics.audit, place.topics.state)]
        progress.begin(f"partition {number}: folding", extents)
        async with _opened(settings, number, built) as made:
            return await plan_restoration(place, made, view)


async def _restore(settings: Settings, number: int, plan: Restoration, rows: Dump) -> None:
    async with (
        open_history(settings, number, "rebuild") as history,
        _writers(settings, number) as new_writer,
        _progress() as progress,
    ):
        flows, steps, _ = rows.counts()
        snapshots = Extent(0, flows + steps + len(plan.tombstones))
        progress.begin(f"partition {number}: writing", [snapshots])
        place = _place(settings, number)
        await restore(place, history, new_writer, plan, _snapshots(rows), progress.heard)


def _snapshots(rows: Dump) -> Iterator[Outgoing]:
    """All of a table as it stands on `state`."""
    for flow_id, (doc, _, last_event_id, chain, *_) in rows.flows():
        value = f'{{"flow":{doc},"last_event_id":{last_event_id},"chain":"{chain}"}}'
        yield Outgoing(flow_id.encode(), value.encode(), ())
    for key, (doc,) in rows.steps():
        yield Outgoing(key.encode(), f'{{"step":{doc}}}'.encode(), ())


# What all of them need


def _place(settings: Settings, number: int) -> Place:
    topics = Topics(settings.topic_prefix)
    return Place(number, settings.partitions, topics, settings.dedupe_window_ms)


@asynccontextmanager
async def _writers(
    settings: Settings, number: int
) -> AsyncIterator[Callable[[], TransactionalWriter]]:
    """Makes producers with the partition's transactional id; waits for them at the end."""

    def new_writer() -> TransactionalWriter:
        return TransactionalWriter(
            connection_options(settings, "rebuild"),
            Topics(settings.topic_prefix),
            number,
            compression=compression_type(settings),
            commit_timeout_s=settings.commit_timeout_ms / 1000,
        )

    try:
        yield new_writer
    finally:
        await producers_stopped(STOP_TIMEOUT_S)


def _opened(settings: Settings, number: int, path: Path) -> AbstractAsyncContextManager[FlowTable]:
    return open_table(
        path,
        partition=number,
        prefix=settings.topic_prefix,
        partitions=settings.partitions,
    )


@contextmanager
def _scratch(state_dir: Path) -> Iterator[Path]:
    """A directory beside the tables, so that one can be put in another's place; a killed run's is
    taken away by the next."""
    scratch = state_dir / "rebuild"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
