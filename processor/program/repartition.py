"""`taskflow repartition`: the same flows and history under another prefix, on M partitions."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import orjson
import typer

from processor.adapters.kafka import copier, inspection
from processor.adapters.kafka.admin import partition_counts
from processor.adapters.kafka.connection import compression_type, connection_options
from processor.adapters.kafka.copier import Copier
from processor.adapters.kafka.errors import explained
from processor.adapters.kafka.history import KafkaHistory
from processor.adapters.kafka.writer import TransactionalWriter, producers_stopped
from processor.batch import Outgoing, Place
from processor.ops.ports import Extent
from processor.ops.reading import Stream
from processor.ops.repartition.comparing import Side
from processor.ops.repartition.rewriting import Copy, Rewriter, progress_of
from processor.ops.repartition.steps import OldPartition, Step
from processor.ports import Extent as Whole
from processor.program.output import console, for_people, say, somebody_to_ask, table, write_json
from processor.program.progress import Bar, progress_bar
from processor.program.running import Refused, WrongUse, run, settings_and_logs
from processor.program.verify import KafkaLog
from processor.recovery import last_record, newest_cursor
from processor.rows import Position
from processor.settings import Settings
from schemas.state import CURSOR_PREFIX
from schemas.topics import Topics

STEPS_AT_ONCE = 500
BYTES_AT_ONCE = 4 * 1024 * 1024
COMMIT_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 5.0

Extents = dict[int, dict[str, Extent]]


def repartition(
    to: int = typer.Option(..., "--to", min=1, help="How many partitions the copy has."),
    prefix: str = typer.Option(..., "--prefix", help="The topic prefix of the copy."),
    carry_undecided: bool = typer.Option(
        False,
        "--carry-undecided",
        help="Commands that nobody decided go along, to be decided there.",
    ),
    check: bool = typer.Option(False, "--check", help="Only hold both sides against each other."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only show what would be done."),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    json: bool = typer.Option(False, "--json", help="JSON lines also on a terminal."),
) -> None:
    """Copy everything to topics with another number of partitions, under another prefix.

    Commands, outcomes, events, dead letters and the present are written anew: each flow's order
    is kept, events get new ids and chains and name their old id in `taskflow-moved-from`, records
    keep their times, so that resends are still recognised and retention goes on. The old topics
    stay as they are.

    Pause the producers, let the workers decide what is there, stop them, and run it. It refuses
    while a worker is in the group, and while commands are undecided, unless --carry-undecided
    says that they go along. In the end it holds both sides against each other, and only then
    opens the new topics: until then no worker starts on them. Then start workers and producers
    with the new TASKFLOW_TOPIC_PREFIX and TASKFLOW_PARTITIONS.

    It asks before; in a pipe it takes --yes. Stopped in the middle it goes on where it was, and
    repeated it compares. Memory: about 300 bytes of each flow.

    Example: `taskflow repartition --to 12 --prefix taskflow-b --dry-run`

    Settings: as for `taskflow worker`; they name the old side.
    """
    if not (check or dry_run or yes or somebody_to_ask()):
        raise WrongUse("There is no terminal to ask at: take --yes, or --dry-run to look first.")
    settings = settings_and_logs(quiet=True)
    if prefix == settings.topic_prefix:
        raise WrongUse(f"--prefix {prefix} is the old side's own; take another.")
    if problem := _no_prefix(prefix):
        raise WrongUse(problem)
    move = Move(settings, Topics(settings.topic_prefix), Topics(prefix), to)
    plan = run(move.plan)
    if plan.finished or check:
        if not plan.finished:
            raise Refused(f"The topics of {prefix} are not whole; run it without --check first.")
        say(f"The topics of {prefix} are whole.")
        _end(run(lambda: move.compare(plan)), json)
        return
    _show(plan.row(), json)
    if plan.undecided and not carry_undecided:
        raise Refused(
            f"{plan.undecided:,} commands are undecided. Let a worker decide them, or take "
            "--carry-undecided: they are then decided on the new side."
        )
    if plan.members:
        raise Refused(
            f"{plan.members} workers are in the group {settings.group_id}; stop them first."
        )
    if dry_run:
        say("Nothing was changed.")
        return
    if not yes and not typer.confirm(f"Copy it to {to} partitions of {prefix}?", err=True):
        say("Nothing was changed.")
        raise typer.Exit(1)
    result = run(lambda: move.run())
    _end(result, json)


@dataclass
class Plan:
    """What there is to do. `finished`: the new topics are open for workers already."""

    partitions: int
    to: int
    prefix: str
    offsets: int
    undecided: int
    members: int
    finished: bool
    begun: bool

    def row(self) -> dict[str, Any]:
        return {
            "from": self.partitions,
            "to": self.to,
            "prefix": self.prefix,
            "offsets": self.offsets,
            "undecided": self.undecided,
            "goes_on": self.begun,
        }


class Result(NamedTuple):
    row: dict[str, Any]
    differences: list[str]


class Old(NamedTuple):
    """The old side at one moment."""

    extents: Extents
    cursors: dict[int, Position]

    def ends(self) -> dict[tuple[int, str], int]:
        return {(q, topic): one.end for q, topic, one in self._all()}

    @property
    def offsets(self) -> int:
        return sum(one.stable - one.start for _, _, one in self._all())

    def _all(self) -> Iterator[tuple[int, str, Extent]]:
        return ((q, topic, one) for q, some in self.extents.items() for topic, one in some.items())


@dataclass
class Target:
    """A new partition while it is filled: how far it is, and how far the old side is copied to
    it, as stands on its newest cursor."""

    number: int
    writer: Copier
    position: Position
    progress: dict[str, int] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)


class Move:
    def __init__(self, settings: Settings, old: Topics, new: Topics, to: int) -> None:
        self._settings = settings
        self._old = old
        self._new = new
        self._to = to

    async def plan(self) -> Plan:
        """Raises Refused, BrokerUnreachable, TopicsWrong."""
        counts = await partition_counts(self._settings)
        missing = [name for name, _ in self._old if name not in counts]
        if missing:
            raise Refused(f"{', '.join(missing)} does not exist.")
        numbers = {counts[name] for name, _ in self._old}
        if len(numbers) > 1:
            raise Refused("The old topics differ in their partitions; `taskflow topics check`.")
        types = await copier.time_types(self._settings, self._new)
        there = {name for name, _ in self._new} & types.keys()
        wrong = [name for name in there if counts[name] != self._to]
        if wrong:
            raise Refused(
                f"{wrong[0]} is there with {counts[wrong[0]]} partitions, not {self._to}."
            )
        finished = len(there) == len(list(self._new)) and copier.FILLING not in types.values()
        filling = {name for name in there if types[name] == copier.FILLING}
        if there - filling and not finished and not await self._opened_halfway(counts):
            raise Refused(f"{min(there - filling)} is there already; take another --prefix.")
        (count,) = numbers
        self._count = count
        old = await self._look()
        undecided = 0
        for q in range(count):
            async with self._history(self._old, q) as history:
                for topic in (self._old.commands, self._old.control):
                    undecided += await _count_from(history, topic, *self._rest(old, q, topic))
        rights = await inspection.rights(self._settings)
        return Plan(
            *(count, self._to, self._new.prefix, old.offsets, undecided),
            *(rights.members or 0, finished, bool(there)),
        )

    async def _opened_halfway(self, counts: Mapping[str, int]) -> bool:
        """Whether ours are being opened: each of them was filled by us."""
        if not all(name in counts for name, _ in self._new):
            return False
        async with self._history(self._new, 0) as history:
            _, progress = await self._newest(history, 0)
        return bool(progress)

    def _rest(self, old: Old, q: int, topic: str) -> tuple[int, int]:
        """First undecided offset and stable end."""
        extent = old.extents[q][topic]
        decided = getattr(old.cursors[q], topic.rpartition(".")[2])
        return max(decided, extent.start), extent.stable

    async def _look(self) -> Old:
        extents: Extents = {}
        cursors: dict[int, Position] = {}
        for q in range(self._count):
            async with self._history(self._old, q) as history:
                extents[q] = {}
                for name, _ in self._old:
                    whole = await history.extent(name)
                    stable = await history.stable_end(name)
                    extents[q][name] = Extent(whole.start, stable, whole.end)
                place = Place(q, self._count, self._old, self._settings.dedupe_window_ms)
                state = extents[q][self._old.state]
                at = {self._old.state: Whole(state.start, state.stable)}
                cursor = await newest_cursor(place, history, at)
                cursors[q] = cursor or Position(0, 0, 0)
        return Old(extents, cursors)

    async def run(self) -> Result:
        """Copy, compare, open. Raises Refused where the old side does not hold still."""
        await copier.make_for_filling(self._settings, self._new, self._to)
        await self._fence()
        old = await self._look()
        self._hold_still(old)
        try:
            async with AsyncExitStack() as stack:
                targets = [await self._target(number) for number in range(self._to)]
                for target in targets:
                    stack.callback(target.writer.discard)
                bar = stack.enter_context(progress_bar("copying"))
                bar.expect(old.offsets)
                with explained(self._settings):
                    await self._fill(old, targets, bar)
        finally:
            await producers_stopped(STOP_TIMEOUT_S)
        again = await self._look()
        if again.ends() != old.ends():
            raise Refused(
                "The old side went on meanwhile: a producer writes, or a worker decides. Pause "
                "them and run it again; nothing was opened."
            )
        result = await self.compare(None)
        if not result.differences:
            await copier.open_for_workers(self._settings, self._new)
        return result

    def _hold_still(self, old: Old) -> None:
        for q, some in old.extents.items():
            for topic, extent in some.items():
                if extent.stable < extent.end:
                    raise Refused(
                        f"A transaction is open on {topic}/{q} from offset {extent.stable} on; "
                        "`taskflow doctor` says more."
                    )
            if some[self._old.audit].start > 0:
                raise Refused(
                    f"{self._old.audit}/{q} begins at offset {some[self._old.audit].start}: its "
                    "chains have no beginning that could be written anew."
                )

    async def _fence(self) -> None:
        """Whoever still owns a partition of the old side cannot commit any more."""
        try:
            for q in range(self._count):
                writer = TransactionalWriter(
                    connection_options(self._settings, "repartition"),
                    self._old,
                    q,
                    compression=compression_type(self._settings),
                    commit_timeout_s=COMMIT_TIMEOUT_S,
                )
                with explained(self._settings):
                    await writer.start()
                writer.discard()
        finally:
            await producers_stopped(STOP_TIMEOUT_S)

    # Filling

    async def _target(self, number: int) -> Target:
        writer = Copier(
            connection_options(self._settings, "repartition"),
            self._new,
            number,
            compression=compression_type(self._settings),
            commit_timeout_s=COMMIT_TIMEOUT_S,
        )
        # First of all: what a killed run left open would hide the newest cursor.
        await writer.start()
        async with self._history(self._new, number) as history:
            position, progress = await self._newest(history, number)
        return Target(number, writer, position, progress)

    async def _newest(self, history: KafkaHistory, number: int) -> tuple[Position, dict[str, int]]:
        whole = await history.extent(self._new.state)
        end = await history.stable_end(self._new.state)
        key = f"{CURSOR_PREFIX}{number}".encode()
        found = await last_record(
            history, self._new.state, Whole(whole.start, end), lambda record: record.key == key
        )
        if found is None:
            return Position(0, 0, number * 2**40 + 1), {}
        cursor = orjson.loads(found.value or b"")
        position = Position(cursor["commands"], cursor["control"], cursor["next_event_id"])
        return position, progress_of(found.headers) or {}

    async def _fill(self, old: Old, targets: Sequence[Target], bar: Bar) -> None:
        rewriter = Rewriter(self._old, self._new, self._to, self._settings.dedupe_window_ms)
        for target in targets:
            bar.at(f"partition {target.number}: what was copied before")
            async with self._log(self._new, target.number) as log:
                end = (await log.extent(self._new.audit)).stable
                async for records in log.read(self._new.audit, 0, end):
                    for record in records:
                        rewriter.take_back(target.number, record)
        for q in range(self._count):
            carried = [t for t in targets if f"commands/{q}" in t.progress]
            outcomes = old.extents[q][self._old.outcomes].stable
            if any(t.progress.get(f"outcomes/{q}", 0) < outcomes for t in carried):
                raise Refused(
                    "The old side went on deciding after its undecided commands were carried over. "
                    f"Delete the topics of {self._new.prefix} and begin again."
                )
        async with AsyncExitStack() as stack:
            partitions = {}
            for q in range(self._count):
                log = await stack.enter_async_context(self._log(self._old, q))
                partitions[q] = OldPartition(self._old, q, old.extents[q], _opener(log, bar))
            ends = {q: await one.front_end() for q, one in partitions.items()}
            if any(ends.values()):
                await self._begin_later(targets)
            bar.at("events whose commands are gone")
            await self._write(
                targets, rewriter, merged_by_time([p.front(ends[q]) for q, p in partitions.items()])
            )
            bar.at("history")
            await self._write(
                targets, rewriter, merged_by_time([p.steps() for p in partitions.values()])
            )
            bar.at("the present")
            await self._present(old, targets, rewriter, bar)
            bar.at("undecided commands")
            await self._carry(old, targets, rewriter, partitions)

    async def _begin_later(self, targets: Sequence[Target]) -> None:
        """Answers whose commands are gone stay behind, and whoever verifies the new side takes a
        topic that begins at 0 for one that has them all."""
        for target in targets:
            async with self._history(self._new, target.number) as history:
                extent = await history.extent(self._new.outcomes)
            if extent.end == 0:
                filler = Outgoing(b"", b"", ())
                await target.writer.copy([(self._new.outcomes, filler, 0)], lambda _: [])
            if extent.start == 0:
                await copier.drop_before(self._settings, self._new.outcomes, target.number, 1)

    async def _write(
        self, targets: Sequence[Target], rewriter: Rewriter, steps: AsyncIterator[Step]
    ) -> None:
        seen: dict[str, int] = {}
        count = size_bytes = 0
        async for step in steps:
            if step.front:
                seen[f"audit/{step.partition}"] = step.events[0].offset + 1
            else:
                assert step.outcome is not None
                seen[f"outcomes/{step.partition}"] = step.outcome.offset + 1
            if not rewriter.dropped(step):
                target = targets[rewriter.home(step)]
                if not _is_copied(step, target.progress):
                    target.steps.append(step)
                    count += 1
                    size_bytes += sum(len(record.value or b"") for record in _records(step))
            if count >= STEPS_AT_ONCE or size_bytes >= BYTES_AT_ONCE:
                await self._flush(targets, rewriter, seen)
                count = size_bytes = 0
        await self._flush(targets, rewriter, seen)

    async def _flush(
        self, targets: Sequence[Target], rewriter: Rewriter, seen: Mapping[str, int]
    ) -> None:
        await asyncio.gather(
            *(self._flush_one(target, rewriter, seen) for target in targets if target.steps)
        )

    async def _flush_one(self, target: Target, rewriter: Rewriter, seen: Mapping[str, int]) -> None:
        steps, target.steps = target.steps, []
        progress = target.progress | {
            name: max(offset, target.progress.get(name, 0)) for name, offset in seen.items()
        }
        with_source = [step for step in steps if step.source is not None]
        position = target.position

        def then(offsets: Sequence[int]) -> list[Copy]:
            nonlocal position
            places = {id(step): at for step, at in zip(with_source, offsets, strict=True)}
            copies: list[Copy] = []
            for step in steps:
                offset = places.get(id(step))
                copies += rewriter.rest(target.number, step, offset)
                if step.source is not None and offset is not None:
                    name = "commands" if step.source.topic == self._old.commands else "control"
                    position = position._replace(**{name: offset + 1})
            position = position._replace(next_event_id=rewriter.next_ids[target.number])
            return [*copies, rewriter.cursor(target.number, position, progress)]

        await target.writer.copy([rewriter.source(step) for step in with_source], then)
        target.position, target.progress = position, progress

    async def _present(
        self, old: Old, targets: Sequence[Target], rewriter: Rewriter, bar: Bar
    ) -> None:
        state = self._old.state
        for q in range(self._count):
            mark = f"state/{q}"
            end = old.extents[q][state].stable
            pending: dict[int, dict[bytes, Copy]] = {}
            async with self._log(self._old, q) as log:
                async for records in log.read(state, old.extents[q][state].start, end):
                    bar.advance(len(records))
                    for record in records:
                        if (made := rewriter.snapshot(record)) is None:
                            continue
                        home, copy = made
                        if targets[home].progress.get(mark, 0) < end:
                            pending.setdefault(home, {})[copy.record.key or b""] = copy
                    for home, copies in pending.items():
                        if len(copies) >= STEPS_AT_ONCE:
                            await self._put(targets[home], rewriter, [*copies.values()], {})
                            copies.clear()
            for target in targets:
                if target.progress.get(mark, 0) < end:
                    copies = pending.get(target.number, {})
                    await self._put(target, rewriter, [*copies.values()], {mark: end})

    async def _carry(
        self,
        old: Old,
        targets: Sequence[Target],
        rewriter: Rewriter,
        partitions: Mapping[int, OldPartition],
    ) -> None:
        """What nobody decided, each topic's in the order of time; behind the cursor, so that the
        next owner decides it."""
        waiting: dict[int, list[Copy]] = {}
        marks: dict[str, int] = {}
        for topic in (self._old.commands, self._old.control):
            for q, partition in partitions.items():
                name = f"{topic.rpartition('.')[2]}/{q}"
                start, stable = self._rest(old, q, topic)
                marks[name] = stable
                async for record in partition.undecided(topic, start):
                    home = rewriter.command_home(record)
                    if record.offset >= targets[home].progress.get(name, 0):
                        waiting.setdefault(home, []).append(rewriter.command(record))
        for target in targets:
            copies = sorted(waiting.get(target.number, []), key=lambda copy: copy.at_ms)
            if copies or not marks.items() <= target.progress.items():
                await self._put(target, rewriter, copies, marks)

    async def _put(
        self,
        target: Target,
        rewriter: Rewriter,
        copies: Sequence[Copy],
        marks: Mapping[str, int],
    ) -> None:
        progress = {**target.progress, **marks}
        cursor = rewriter.cursor(target.number, target.position, progress)
        await target.writer.copy([*copies, cursor], lambda _: [])
        target.progress = progress

    # Comparing

    async def compare(self, plan: Plan | None) -> Result:
        """Both sides, as they are now."""
        sides = []
        with progress_bar("comparing") as bar, explained(self._settings):
            for topics, count in ((self._old, self._count), (self._new, self._to)):
                side = Side(count, copy=topics is self._new)
                for number in range(count):
                    async with self._log(topics, number) as log:
                        for topic, take in (
                            (topics.audit, side.event),
                            (topics.state, side.snapshot),
                            (topics.outcomes, side.answer),
                        ):
                            extent = await log.extent(topic)
                            bar.expect(extent.stable - extent.start)
                            async for records in log.read(topic, extent.start, extent.stable):
                                bar.advance(len(records))
                                for record in records:
                                    take(record)
                sides.append(side)
        old, new = sides
        since_ms = old.newest_ms() - self._settings.dedupe_window_ms
        old.forget(since_ms)
        new.forget(since_ms)
        differences = sorted(old.differences(new))
        row: dict[str, Any] = {
            "prefix": self._new.prefix,
            "partitions": self._to,
            **old.counts._asdict(),
            "went_on_since": len(new.went_on),
            "differences": len(differences),
        }
        return Result(row, differences)

    # Reading

    @asynccontextmanager
    async def _history(self, topics: Topics, number: int) -> AsyncIterator[KafkaHistory]:
        history = KafkaHistory(
            connection_options(self._settings, "repartition"),
            number,
            topics=[name for name, _ in topics],
        )
        try:
            with explained(self._settings):
                yield history
        finally:
            await history.close()

    @asynccontextmanager
    async def _log(self, topics: Topics, number: int) -> AsyncIterator[KafkaLog]:
        log = KafkaLog(self._settings, number, topics)
        try:
            yield log
        finally:
            await log.close()


def _opener(log: KafkaLog, bar: Bar) -> Any:
    return lambda topic, start, end: Stream(log, topic, start, end, bar.advance)


async def merged_by_time(streams: Sequence[AsyncIterator[Step]]) -> AsyncIterator[Step]:
    """By time, each stream in its own order."""
    heads = {n: head async for n, head in _firsts(streams)}
    while heads:
        first = min(heads, key=lambda n: (heads[n].at_ms, n))
        yield heads.pop(first)
        following = await anext(streams[first], None)
        if following is not None:
            heads[first] = following


async def _firsts(streams: Sequence[AsyncIterator[Step]]) -> AsyncIterator[tuple[int, Step]]:
    for number, stream in enumerate(streams):
        head = await anext(stream, None)
        if head is not None:
            yield number, head


def _is_copied(step: Step, progress: Mapping[str, int]) -> bool:
    if step.front:
        return step.events[0].offset < progress.get(f"audit/{step.partition}", 0)
    assert step.outcome is not None
    return step.outcome.offset < progress.get(f"outcomes/{step.partition}", 0)


def _records(step: Step) -> Any:
    beside = (step.source, step.outcome, step.letter)
    return chain(step.events, (record for record in beside if record is not None))


async def _count_from(history: KafkaHistory, topic: str, start: int, end: int) -> int:
    count = 0
    async for records in history.read(topic, start, end):
        count += len(records)
    return count


def _no_prefix(prefix: str) -> str | None:
    """What is wrong with it, in a sentence."""
    try:
        Settings(topic_prefix=prefix)
    except ValueError:
        return f"--prefix {prefix!r} is no topic prefix: letters, digits, . _ - are."
    return None


def _show(row: Mapping[str, Any], json: bool) -> None:
    if not for_people(json):
        write_json(dict(row))
        return
    cells = [f"{value:,}" if type(value) is int else str(value) for value in row.values()]
    console().print(table(None, [name.replace("_", " ") for name in row], [cells]))


def _end(result: Result, json: bool) -> None:
    _show(result.row, json)
    if result.differences:
        say(f"Both sides differ in {len(result.differences):,} places; the first:")
        say(result.differences[0])
        raise typer.Exit(1)
    say(
        f"Both sides agree. Start workers with TASKFLOW_TOPIC_PREFIX={result.row['prefix']} "
        f"TASKFLOW_PARTITIONS={result.row['partitions']}, and then the producers."
    )
