"""Read what a partition has decided in one pass: outcomes in their order, each with its command,
events and dead letter.

Memory holds a look ahead of each topic; all else is in the scratch file.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from processor.contract.headers import forwarded_from
from processor.contract.topics import Topics
from processor.ops.verify.contract import Doc
from processor.ops.verify.event_checks import EventChecks
from processor.ops.verify.outcomes.checks import OutcomeChecks
from processor.ops.verify.outcomes.dead_letters import DeadLetterChecks
from processor.ops.verify.outcomes.forwards import copied
from processor.ops.verify.ports import LogRange, LogRecord
from processor.ops.verify.record_stream import RecordStream
from processor.ops.verify.report import Report
from processor.ops.verify.scratch_store import ScratchStore
from processor.ops.verify.steps.checks import StepChecks
from processor.ops.verify.transaction_checks import Transactions

LATE_MAX: Final = 1_000
"""Commands without an outcome that are kept, in case it only stands in the wrong place."""
FORGET_EVERY: Final = 10_000

OpenStream = Callable[[str, int, int], RecordStream]


@dataclass(slots=True)
class SourceTopic:
    """`commands` or `control`. `stream` is opened with the first outcome where outcomes do not
    begin at the beginning. `decided_to` is the offset behind the last that was looked for."""

    topic: str
    offset_range: LogRange
    cut: int
    stream: RecordStream | None = None
    decided_to: int = 0
    first_ms: int | None = None
    late: OrderedDict[int, LogRecord] = field(default_factory=OrderedDict)


@dataclass(slots=True)
class Parts:
    """What a pass works with. `starts` are the first offsets of `outcomes`, `audit`, dead letters;
    `cut` is the newest cursor; `tables_are_at` is called with the event before which the fold
    is, and where it began."""

    topics: Topics
    partition: int
    report: Report
    scratch: ScratchStore
    fold: EventChecks
    outcome_checks: OutcomeChecks
    transactions: Transactions
    offset_ranges: Mapping[str, LogRange]
    starts: Mapping[str, int]
    cut: Doc
    open_stream: OpenStream
    tables_are_at: Callable[[int, int | None], None]
    since: bool
    at_rest: bool
    only: str | None


class HistoryReader:
    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._report = parts.report
        self._fold = parts.fold
        topics, offset_ranges, starts = parts.topics, parts.offset_ranges, parts.starts
        self._cut_event: int = parts.cut["next_event_id"]
        self._outcomes = self._stream(topics.outcomes)
        self._audit = self._stream(topics.audit)
        self._dead_letters = None
        if parts.only is None:
            front = bool(starts[topics.dead_letters] or starts[topics.outcomes])
            stream = self._stream(topics.dead_letters)
            self._dead_letters = DeadLetterChecks(parts.report, stream, front=front)
        self._front = starts[topics.outcomes] > 0 or parts.since
        parts.outcome_checks.begin(late=self._front)
        self.sources: dict[str, SourceTopic] = {}
        for name, cut in (
            (topics.commands, parts.cut["commands"]),
            (topics.control, parts.cut["control"]),
        ):
            source = self.sources[name] = SourceTopic(name, offset_ranges[name], cut)
            if not self._front:
                self._open(source, source.offset_range.start)
        self._event: tuple[LogRecord, Doc] | None = None
        self._last_id: int | None = None
        self.first_event_id: int | None = None
        """Where the fold began; None: at the beginning."""
        self.beyond: Doc | None = None
        """The first outcome behind the cut."""

    @property
    def steps(self) -> StepChecks:
        """The managed steps as they are folded."""
        return self._fold.steps

    @property
    def newest_ms(self) -> int:
        """The latest append time of all that was read."""
        streams = [self._outcomes, self._audit, *(one.stream for one in self.sources.values())]
        if self._dead_letters is not None:
            streams.append(self._dead_letters.stream)
        return max(stream.newest_ms for stream in streams if stream is not None)

    async def read(self) -> None:
        """All up to the cut."""
        outcome_checks, count = self._parts.outcome_checks, 0
        while (record := await self._outcomes.head()) is not None:
            outcome = outcome_checks.read(record)
            if outcome is not None:
                source = self.sources.get(outcome["source"]["topic"])
                if source is not None and outcome["source"]["offset"] >= source.cut:
                    self.beyond = outcome
                    break
                if self._front:
                    outcome_checks.resends.begin(record.timestamp)
            await self._outcomes.take()
            if outcome is not None:
                await self._one(record, outcome)
            count += 1
            if count % FORGET_EVERY == 0:
                await self._forget()
        await self._rest()
        # Behind the cut, these two are not read to their ends.
        await self._outcomes.close()
        await self._audit.close()

    async def _one(self, record: LogRecord, outcome: Doc) -> None:
        found, source = await self._source_of(record, outcome)
        if not found:
            return
        outcome_checks = self._parts.outcome_checks
        concerns = outcome_checks.concerns(outcome, record, source)
        command = outcome_checks.before(outcome, record, source) if concerns else None
        caused: Sequence[tuple[LogRecord, Doc]] = ()
        if outcome["event_ids"] and outcome["verdict"] == "accepted":
            caused = await self._events(outcome, record, command, source)
        if concerns:
            outcome_checks.after(outcome, record, source, command, caused)
        self._requests(caused)
        if outcome["verdict"] == "quarantined" and self._dead_letters is not None:
            decided_to = {name: one.decided_to for name, one in self.sources.items()}
            await self._dead_letters.check(outcome, record, source, decided_to)

    def _requests(self, caused: Sequence[tuple[LogRecord, Doc]]) -> None:
        for record, event in caused:
            if event["kind"] == "cancel_requested" and event["status"] == "waiting":
                control = self.sources[self._parts.topics.control].decided_to
                self._parts.transactions.requested(record, event, control)

    # Commands

    async def _source_of(self, record: LogRecord, outcome: Doc) -> tuple[bool, LogRecord | None]:
        """Whether the outcome is to be looked at, and its command; None if retention took it."""
        place = outcome["source"]
        source, offset = self.sources.get(place["topic"]), place["offset"]
        if source is None or place["partition"] != self._parts.partition:
            self._add(record, "I12", "outcome_elsewhere", f"It is of {place}.", outcome)
            return False, None
        if source.stream is None:
            self._open(source, max(offset, source.offset_range.start))
            source.decided_to = offset
        assert source.stream is not None
        while (head := await source.stream.head()) is not None and head.offset < offset:
            await self._passed(source)
            await self._late(source, head)
        if head is not None and head.offset == offset:
            await self._passed(source)
            return True, head
        if offset in source.late:
            self._add(
                record,
                "I1",
                "outcome_out_of_order",
                f"It is of {place}, but follows a later one's.",
                outcome,
            )
            return True, source.late.pop(offset)
        if offset < source.decided_to:
            self._add(record, "I1", "outcome_repeated", f"{place} had its outcome before.", outcome)
            return False, None
        source.decided_to = offset + 1
        if offset < source.offset_range.start:
            self._report.counts["outcomes_without_kept_command"] += 1
            return True, None
        self._add(record, "I1", "outcome_without_command", f"There is no {place}.", outcome)
        return True, None

    async def _passed(self, source: SourceTopic) -> LogRecord | None:
        """Go on behind the next command."""
        assert source.stream is not None
        record = await source.stream.take()
        if record is None:
            return None
        source.decided_to = record.offset + 1
        if source.first_ms is None:
            source.first_ms = record.timestamp
        self._report.counts[source.topic.rpartition(".")[2]] += 1
        self._report.checked["I10"] += 1
        if source.topic == self._parts.topics.control:
            self._parts.transactions.passed(record)
        if (origin := forwarded_from(record.headers)) is not None and self._parts.only is None:
            self._parts.scratch.put_copy(str(origin), copied(record))
        return record

    async def _late(self, source: SourceTopic, record: LogRecord) -> None:
        source.late[record.offset] = record
        if len(source.late) > LATE_MAX:
            self._unanswered(source.late.popitem(last=False)[1])

    def _unanswered(self, record: LogRecord) -> None:
        key = (record.key or b"").decode("utf-8", "replace")
        if self._parts.only in (None, key):
            self._add(
                record,
                "I1",
                "command_without_outcome",
                "The cursor is behind it, but it has no outcome.",
                {"flow_id": key},
            )

    def _open(self, source: SourceTopic, start: int) -> None:
        source.stream = self._parts.open_stream(source.topic, start, source.offset_range.stable)

    async def _forget(self) -> None:
        """Drop outcomes that no command still to come can be a resend of."""
        heads = [await s.stream.head() for s in self.sources.values() if s.stream is not None]
        times = [head.timestamp for head in heads if head is not None]
        if times:
            self._parts.outcome_checks.resends.forget(min(times))

    # Events

    async def _events(
        self, outcome: Doc, record: LogRecord, command: Doc | None, source: LogRecord | None
    ) -> list[tuple[LogRecord, Doc]]:
        caused = []
        if self._parts.since and self.first_event_id is None:
            self.first_event_id = outcome["event_ids"][0]
            self._fold.next_id = None
        for event_id in outcome["event_ids"]:
            while (head := await self._head_event()) is not None and head[1]["id"] < event_id:
                await self._unnamed(*head)
                self._event = None
            if head is None or head[1]["id"] != event_id:
                self._add(
                    record,
                    "I9",
                    "event_missing",
                    f"It names event {event_id}, which is not there.",
                    outcome,
                )
                continue
            self._event = None
            await self._fold_one(*head, command, source)
            caused.append(head)
        self._front = False
        self._parts.outcome_checks.begin(late=False)
        return caused

    async def _head_event(self) -> tuple[LogRecord, Doc] | None:
        while self._event is None:
            record = await self._audit.take()
            if record is None:
                return None
            self._report.counts["events"] += 1
            event = self._fold.read(record)
            if event is not None:
                self._event = record, event
        return self._event

    async def _unnamed(self, record: LogRecord, event: Doc) -> None:
        """An event that no outcome names."""
        if self._front or (self.first_event_id or 0) > event["id"]:
            if self._parts.since:
                return  # of before
            self._report.counts["events_without_kept_outcome"] += 1
        else:
            about = f"Event {event['id']} ({event['kind']}) is named by no outcome."
            self._add(record, "I9", "event_without_outcome", about, event)
        await self._fold_one(record, event, None, None)

    async def _fold_one(
        self, record: LogRecord, event: Doc, command: Doc | None, source: LogRecord | None
    ) -> None:
        if self.first_event_id is None and not self._fold.whole:
            self.first_event_id = event["id"]
        await self._parts.transactions.before(event["id"])
        self._parts.tables_are_at(event["id"], self.first_event_id)
        self._fold.apply(record, event, command, source)
        self._parts.transactions.folded(event)
        self._last_id = event["id"]

    # The end

    async def _rest(self) -> None:
        """What is left below the cut, and what lies behind it."""
        for source in self.sources.values():
            await self._rest_of(source)
        control = self.sources[self._parts.topics.control]
        while (head := await self._head_event()) is not None and head[1]["id"] < self._cut_event:
            self._event = None
            await self._unnamed(*head)
        if self._last_id is not None and self._last_id + 1 != self._cut_event:
            self._report.add(
                *("I9", "events_end_elsewhere"),
                f"The audit ends with event {self._last_id}, the cursor's next is "
                f"{self._cut_event}.",
                topic=self._audit.topic,
                partition=self._parts.partition,
            )
        elif self._last_id is None and self._fold.whole and self._fold.next_id != self._cut_event:
            self._report.add(
                *("I9", "events_end_elsewhere"),
                f"There are no events, the cursor's next is {self._cut_event}.",
                topic=self._audit.topic,
                partition=self._parts.partition,
            )
        if self.first_event_id is None and not self._fold.whole:
            self.first_event_id = self._cut_event
        await self._parts.transactions.before(self._cut_event)
        self._parts.transactions.end_requests(control.offset_range.start)
        self._parts.tables_are_at(self._cut_event, self.first_event_id)
        if self._dead_letters is not None:
            await self._dead_letters.rest({name: one.cut for name, one in self.sources.items()})
        self._report.counts["outcomes"] += self._outcomes.count

    async def _rest_of(self, source: SourceTopic) -> None:
        if source.stream is None:
            self._open(source, max(source.cut, source.offset_range.start))
            source.decided_to = source.cut
        assert source.stream is not None
        while (head := await source.stream.head()) is not None:
            await self._passed(source)
            if head.offset < source.cut:
                await self._late(source, head)
                continue
            self._report.counts["undecided"] += 1
            if self._parts.at_rest:
                self._add(
                    head,
                    "I10",
                    "command_unanswered",
                    "It has no outcome, and nothing is under way any more.",
                    {"flow_id": None},
                )
        for record in source.late.values():
            self._unanswered(record)
        source.late.clear()

    def _stream(self, topic: str) -> RecordStream:
        parts = self._parts
        return parts.open_stream(topic, parts.starts[topic], parts.offset_ranges[topic].stable)

    def _add(
        self, record: LogRecord, invariant: str, kind: str, message: str, about: Mapping[str, Any]
    ) -> None:
        flow_id = about.get("flow_id")
        if self._parts.only in (None, flow_id):
            self._report.at(record, invariant, kind, message, flow_id)
