"""A history: what was decided in which order, and by which rules."""

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple, Protocol, Self

from processor.contract.topics import Topics
from processor.domain.decision import Limits
from processor.engine.batch import Outgoing, PartitionConfig
from processor.engine.codec import Record
from processor.errors import TaskflowError
from processor.ops.replay.store import ReplayStore

FORMAT: Final = 2
"""Of a history in a file."""


class HistoryUnusable(TaskflowError):
    """What is recorded does not suffice for a replay, or is damaged; the sentence says what."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings by which commands were decided."""

    prefix: str
    partitions: int
    dedupe_window_ms: int
    timer_max_horizon_ms: int

    def place(self, partition: int) -> PartitionConfig:
        """A partition under these rules."""
        return PartitionConfig(
            partition,
            self.partitions,
            Topics(self.prefix),
            self.dedupe_window_ms,
            Limits(self.timer_max_horizon_ms),
        )


class Head(NamedTuple):
    """What a file says of itself. `version` of taskflow wrote it, `at` a time."""

    version: str
    at: str
    rules: Rules
    partitions: Sequence[int]


class Decided(NamedTuple):
    """A command, and all that was written about it; `dead_letter` if it has one."""

    record: Record
    outcome: Outgoing
    events: Sequence[Outgoing] = ()
    dead_letter: Outgoing | None = None


@dataclass(slots=True)
class RecordedTransaction:
    """The commands of one transaction in the order of decision, and what was written about them,
    in columns: as a rule all of it is as the code at hand writes it, and is never taken apart."""

    records: list[Record] = field(default_factory=list)
    outcomes: list[Outgoing] = field(default_factory=list)
    """One for each record."""
    counts: list[int] = field(default_factory=list)
    """How many events each record caused."""
    events: list[Outgoing] = field(default_factory=list)
    """Of all records, one after the other."""
    dead_letters: dict[int, Outgoing] = field(default_factory=dict)
    """Dead letters, by the index of the record."""

    @classmethod
    def of(cls, some: Iterable[Decided]) -> Self:
        made = cls()
        for one in some:
            made.add(one)
        return made

    def add(self, one: Decided) -> None:
        if one.dead_letter is not None:
            self.dead_letters[len(self.records)] = one.dead_letter
        self.records.append(one.record)
        self.outcomes.append(one.outcome)
        self.counts.append(len(one.events))
        self.events.extend(one.events)

    def each(self) -> Iterator[Decided]:
        events, dead_letters = iter(self.events), self.dead_letters
        columns = zip(self.records, self.outcomes, self.counts, strict=True)
        for index, (record, outcome, count) in enumerate(columns):
            caused = [*islice(events, count)]
            yield Decided(record, outcome, caused, dead_letters.get(index))

    def __len__(self) -> int:
        return len(self.records)


class RecordedSnapshot(NamedTuple):
    """A flow or a step as `state` has it."""

    key: bytes
    value: bytes


class Beginning(NamedTuple):
    """Where a partition's history begins.

    `next_event_id` is the first event's id. `front_ms` is None at the very beginning; else what was
    decided before that time may not be known. `commands` and `control` are the first offsets.
    """

    next_event_id: int
    front_ms: int | None
    commands: int
    control: int


class RecordedPartition(Protocol):
    """The history of one partition, read once from front to end."""

    async def begin(self, store: ReplayStore) -> Beginning:
        """Put into `store` what was known before the first decision."""

    def decided(self) -> AsyncIterator[RecordedTransaction]:
        """One transaction at a time, in the order of decision. Each is whole, but dead letters may
        be missing where retention took them."""

    def snapshots(self) -> AsyncIterator[Sequence[RecordedSnapshot]]:
        """What `state` says of flows and steps, older snapshots too, once all decisions were read;
        some may be of later."""

    def waking(self) -> Sequence[str]:
        """Flows for which a wake of the processor's own stands behind the last decision."""
