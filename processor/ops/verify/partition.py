"""Verify a partition: what is read, up to where, and in which order.

The newest cursor on `state` is the cut: what it covers must be there on every topic, and what comes
behind it is under way.
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from processor.contract.values import EVENTS_PER_PARTITION
from processor.ops.verify.contract import Doc, parsed
from processor.ops.verify.event_checks import EventChecks
from processor.ops.verify.history_reader import HistoryReader, Parts, SourceTopic
from processor.ops.verify.outcomes.checks import OutcomeChecks
from processor.ops.verify.outcomes.forwards import Range
from processor.ops.verify.ports import Log, LogRange, LogRecord, TableProblem, Tables, Watcher
from processor.ops.verify.record_stream import RecordStream
from processor.ops.verify.report import Report
from processor.ops.verify.scope import Scope
from processor.ops.verify.scratch_store import ScratchStore
from processor.ops.verify.snapshot_checks import SnapshotChecks, StateReader, TableSnapshot
from processor.ops.verify.transaction_checks import Transactions

SETTLE_POLL_S: Final = 0.05
CURSOR_SPAN: Final = 2_000
"""How many offsets at the end of `state` are looked through for a cursor at first."""
REST_S: Final = 0.5
"""How long the ends must stand for the topics to be at rest."""
BEFORE_SINCE_MS: Final = 60_000
"""How much earlier than `since` audit and state are read: the records of one transaction are not
all appended in the same millisecond."""


class PartitionVerification:
    """Verifies one partition number of all topics, and its tables."""

    def __init__(
        self,
        scope: Scope,
        partition: int,
        log: Log,
        tables: Sequence[Tables],
        scratch: ScratchStore,
        report: Report,
        watcher: Watcher,
    ) -> None:
        self._scope = scope
        self._topics = scope.topics
        self._partition = partition
        self._log = log
        self._tables = tables
        self._scratch = scratch
        self._report = report
        self._watcher = watcher
        self._snapshots: list[TableSnapshot] = []
        """Tables that the fold has not come to yet."""
        self.first_event_id: int | None = None
        """Where the fold began; None: with the first event that ever was."""
        self.cut: Doc = {"commands": 0, "control": 0, "offered": 0}
        self.cut["next_event_id"] = partition * EVENTS_PER_PARTITION + 1
        """The newest cursor."""
        self._whole = False
        self.expected = 0
        """Offsets that were to be read."""

    async def ahead(self) -> int:
        """About how many offsets there are to be read."""
        count = 0
        for name in self._names:
            offset_range = await self._log.offset_range(name)
            begin = await self._begin(name, offset_range, early=True)
            count += max(offset_range.stable - begin, 0)
        return count

    @property
    def _names(self) -> list[str]:
        """The topics that have this partition number for the same flows."""
        return [name for name, _ in self._topics if name != self._topics.steps]

    def _at(self, what: str) -> None:
        self._watcher.at(f"partition {self._partition}: {what}")

    async def verify(self) -> dict[tuple[str, int], Range]:
        scope, topics, partition = self._scope, self._topics, self._partition
        if scope.at_rest:
            self._at("waiting for rest")
            await self._settled(self._names, rest_s=REST_S)
        self._at("table")
        self._look_at_tables()
        state = (await self._settled([topics.state]))[topics.state]
        self._at("state")
        cursor, cursor_at = await self._newest_cursor(state)
        self.cut = cursor or self.cut
        offset_ranges = await self._settled([name for name in self._names if name != topics.state])
        self._at("history")
        reader = StateReader(self._scratch, self._report, partition, scope.flow_id)
        written = self._stream(
            topics.state, await self._begin(topics.state, state, early=True), state.stable
        )
        history, transactions = await self._history(offset_ranges, reader, written)
        await history.read()
        await transactions.end()
        self._report.counts["state"] += written.count
        self.first_event_id = history.first_event_id
        await self._cursor_covers(history.beyond, cursor, state.stable)
        self._positions(cursor, cursor_at, offset_ranges)
        if cursor is not None or self._whole:
            self._at("comparing")
            newest_ms = max(history.newest_ms, written.newest_ms)
            overdue_ms = newest_ms - scope.punctual_ms if scope.at_rest else None
            levels = self._levels(overdue_ms)
            levels.compare("state", topics.state, self.first_event_id)
            if overdue_ms is not None:
                history.steps.overdue(overdue_ms, self._add_overdue)
            flows, steps = self._scratch.counts()
            self._report.counts["flows"] += flows
            self._report.counts["steps"] += steps
        return {(source.topic, partition): _range(source) for source in history.sources.values()}

    async def _history(
        self,
        offset_ranges: dict[str, LogRange],
        reader: StateReader,
        written: RecordStream,
    ) -> tuple[HistoryReader, Transactions]:
        scope, topics, partition = self._scope, self._topics, self._partition
        starts = {
            topics.outcomes: await self._begin(topics.outcomes, offset_ranges[topics.outcomes]),
            **{
                name: await self._begin(name, offset_ranges[name], early=True)
                for name in (topics.audit, topics.dead_letters)
            },
        }
        self._whole = scope.since_ms is None and starts[topics.audit] == 0
        self._report_starts(offset_ranges)
        common = (self._scratch, self._report)
        where = (partition, scope.partitions)
        fold = EventChecks(*common, *where, whole=self._whole, only=scope.flow_id)
        outcome_checks = OutcomeChecks(
            *common, fold, topics, *where, window_ms=scope.window_ms, only=scope.flow_id
        )
        transactions = Transactions(*common, reader, written, whole=self._whole, only=scope.flow_id)
        history = HistoryReader(
            Parts(
                topics=topics,
                partition=partition,
                report=self._report,
                scratch=self._scratch,
                fold=fold,
                outcome_checks=outcome_checks,
                transactions=transactions,
                offset_ranges=offset_ranges,
                starts=starts,
                cut=self.cut,
                open_stream=self._stream,
                tables_are_at=self._tables_are_at,
                since=scope.since_ms is not None,
                at_rest=scope.at_rest,
                only=scope.flow_id,
            )
        )
        return history, transactions

    def _report_starts(self, offset_ranges: dict[str, LogRange]) -> None:
        """What retention has taken."""
        topics = self._topics
        for name, what in (
            (topics.outcomes, "the events before are folded, but not held against their commands"),
            (topics.audit, "what happened before is taken as given"),
            (topics.commands, "outcomes before are not held against their commands"),
            (topics.control, "outcomes before are not held against their commands"),
        ):
            if offset_ranges[name].start > 0 and self._scope.since_ms is None:
                self._report.uncovered(
                    f"{name}/{self._partition} begins at offset {offset_ranges[name].start}: "
                    f"{what}."
                )

    # What is where

    async def _settled(self, names: Sequence[str], *, rest_s: float = 0.0) -> dict[str, LogRange]:
        """The extents of topics, once what is open now has ended, and once they have not moved for
        `rest_s`. A transaction that stays open is reported; what it hides is not looked at."""
        began = time.monotonic()
        wanted = last = {name: await self._log.offset_range(name) for name in names}
        moved_at = began
        while True:
            now = {name: await self._log.offset_range(name) for name in names}
            if rest_s and now != last:
                wanted, last, moved_at = now, now, time.monotonic()
            is_open = [name for name in names if now[name].stable < wanted[name].end]
            at = time.monotonic()
            if not (is_open or at - moved_at < rest_s) or at - began > self._scope.grace_s:
                break
            await asyncio.sleep(SETTLE_POLL_S)
        self._report.checked["I11"] += len(names)
        for name in is_open:
            self._add(
                *("I11", "transaction_open", name, now[name].stable),
                f"A transaction that began at offset {now[name].stable} was still open after "
                f"{self._scope.grace_s:g} s; it hides what comes behind.",
            )
        return now

    async def _begin(self, topic: str, offset_range: LogRange, *, early: bool = False) -> int:
        """The first offset to be read."""
        since = self._scope.since_ms
        if since is None:
            return offset_range.start
        at_ms = since - BEFORE_SINCE_MS if early else since
        found = await self._log.offset_at(topic, max(at_ms, 0))
        return offset_range.stable if found is None else max(found, offset_range.start)

    def _stream(self, topic: str, start: int, end: int) -> RecordStream:
        self.expected += max(end - start, 0)
        return RecordStream(self._log, topic, start, end, self._watcher.advance)

    # The state topic and the table

    async def _newest_cursor(self, offset_range: LogRange) -> tuple[Doc | None, LogRecord | None]:
        """The newest cursor and its record, looked for from the end backwards."""
        reader = StateReader(
            self._scratch, Report("", None, None, []), self._partition, only="none"
        )
        end, span = offset_range.stable, CURSOR_SPAN
        while reader.cursor is None and end > offset_range.start:
            start = max(offset_range.start, end - span)
            async for records in self._log.read(self._topics.state, start, end):
                for record in records:
                    reader.take(record)
            end, span = start, 2 * span
        return reader.cursor, reader.cursor_at

    def _look_at_tables(self) -> None:
        found = [self._look_at_table(tables, nth) for nth, tables in enumerate(self._tables)]
        if not any(found):
            self._report.uncovered(f"Partition {self._partition}: there is no table at hand.")

    def _look_at_table(self, tables: Tables, nth: int) -> bool:
        """Whether there is a table, or what should be one."""
        where = self._scratch.place(nth)
        snapshot = TableSnapshot(
            self._scratch, self._report, self._partition, self._scope.flow_id, where
        )
        problem = tables.read_table(self._partition, snapshot.take)
        if isinstance(problem, TableProblem):
            if problem.damaged:
                self._add("I5", "table_damaged", "table", -1, problem.sentence)
            else:
                self._report.uncovered(f"Partition {self._partition}: {problem.sentence}")
            return True
        position = snapshot.position
        if position is None:
            return False
        if not position.restored:
            self._report.uncovered(f"{position.path} is not restored yet.")
        elif position.partitions != self._scope.partitions:
            self._add(
                *("I12", "table_of_other_topics", position.path, -1),
                f"It holds a partition of {position.partitions}, not of {self._scope.partitions}.",
            )
        else:
            self._snapshots.append(snapshot)
            snapshot.report_odd()
        return True

    def _levels(self, overdue_ms: int | None = None) -> SnapshotChecks:
        where = (self._partition, self._scope.partitions)
        return SnapshotChecks(self._scratch, self._report, *where, overdue_ms)

    def _tables_are_at(self, event_id: int, first: int | None) -> None:
        """The fold is about to go on with `event_id`; compare the tables whose place that is."""
        if not self._snapshots:
            return
        reached = [snapshot for snapshot in self._snapshots if snapshot.next_event_id <= event_id]
        for snapshot in reached:
            self._snapshots.remove(snapshot)
            if first is not None and snapshot.next_event_id < first:
                self._report.uncovered(f"{snapshot.path} is older than what is looked at.")
                continue
            self._report.tables.append(snapshot.path)
            self._levels().compare(snapshot.where, snapshot.path, first)

    def _positions(
        self, cursor: Doc | None, cursor_at: LogRecord | None, offset_ranges: dict[str, LogRange]
    ) -> None:
        """I6, of the newest cursor and of the tables."""
        topics = self._topics
        ends = {
            "commands": offset_ranges[topics.commands],
            "control": offset_ranges[topics.control],
        }
        if cursor is not None and cursor_at is not None:
            for name, offset_range in ends.items():
                self._report.checked["I6"] += 1
                if cursor[name] > offset_range.stable:
                    self._add(
                        *("I6", "cursor_ahead", topics.state, cursor_at.offset),
                        f"It is at {cursor[name]} of {name}, which ends at {offset_range.stable}.",
                    )
        for snapshot in self._snapshots:  # the fold never came to where these are
            self._report.checked["I6"] += 1
            self._add(
                *("I6", "table_ahead", snapshot.path, -1),
                f"The table's next event is {snapshot.next_event_id}, the topics' is "
                f"{cursor['next_event_id'] if cursor else 'none'}.",
            )

    async def _cursor_covers(self, beyond: Doc | None, cursor: Doc | None, read_to: int) -> None:
        """An outcome behind the cut came with a cursor, which must be there by now, too."""
        if beyond is None:
            return
        self._report.checked["I9"] += 1
        topics = self._topics
        state = (await self._settled([topics.state]))[topics.state]
        newest = cursor
        async for records in self._log.read(topics.state, read_to, state.stable):
            for record in records:
                if record.key == f"cursor/{self._partition}".encode():
                    newest = parsed(record.value) or newest
        name = "control" if beyond["source"]["topic"] == topics.control else "commands"
        if newest is None or newest[name] <= beyond["source"]["offset"]:
            self._add(
                *("I9", "outcome_without_cursor", topics.state, -1),
                f"{name} offset {beyond['source']['offset']} has an outcome, but the newest cursor "
                f"is at {newest[name] if newest else 'nothing'}.",
                beyond["flow_id"],
            )

    def _add_overdue(self, flow_id: str, invariant: str, kind: str, message: str) -> None:
        self._add(invariant, kind, self._topics.state, -1, message, flow_id)

    def _add(
        self,
        invariant: str,
        kind: str,
        topic: str,
        offset: int,
        message: str,
        flow_id: str | None = None,
    ) -> None:
        self._report.add(
            *(invariant, kind, message),
            topic=topic,
            partition=self._partition,
            offset=offset,
            flow_id=flow_id,
        )


def _range(source: SourceTopic) -> Range:
    start = source.offset_range.stable if source.stream is None else source.stream.start
    return Range(start, source.offset_range.stable, source.first_ms)
