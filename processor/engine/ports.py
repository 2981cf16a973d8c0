"""The ports of a partition processor: Kafka and the table as it sees them.

The adapters give it the real ones, tests scripted ones.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple, Protocol

from processor.contract.steps import StepStatus
from processor.engine.batch import ChangePack, Forward, Outgoing, Pack
from processor.engine.codec import Record
from processor.engine.rows import (
    Checkpoint,
    Deadline,
    FlowRow,
    LedgerEntry,
    Position,
    RestoreChunk,
    StepDue,
    StepRow,
)


class Fetched(NamedTuple):
    """New records of one partition number, each topic in the order of its offsets."""

    commands: Sequence[Record]
    control: Sequence[Record]


class HiddenRecords(NamedTuple):
    """Offsets of a topic's partition, from `start` to before `end`, behind a transaction that is
    open: nothing of them can be read until it ends."""

    topic: str
    partition: int
    start: int
    end: int

    def __str__(self) -> str:
        return (
            f"a foreign transaction is open on {self.topic} partition {self.partition} from offset "
            f"{self.start} on and hides {self.end - self.start} offsets; it ends by its own "
            "timeout, or by `kafka-transactions.sh --bootstrap-server ... abort --topic "
            f"{self.topic} --partition {self.partition} --start-offset {self.start}`"
        )


class GroupConsumer(Protocol):
    """The group's consumer, shared by all partitions of a worker."""

    @property
    def generation(self) -> int:
        """Grows with each assignment and each revocation; what was fetched before is void."""

    async def assigned(self, partition: int) -> int:
        """Wait until `partition` is ours; the generation in which it is."""

    async def confirm(self, partition: int, position: Position) -> None:
        """Prove to the group that the partition is still ours. Raises OwnershipLost."""

    def attach(self, partition: int, position: Position) -> None:
        """Fetch from `position` on, from now on."""

    def decided(self, partition: int, position: Position) -> None:
        """The partition is decided up to `position`; the next commit of offsets includes it.
        For lag tools: no owner starts from the group's offsets."""

    async def fetch(self, partition: int, *, max_records: int, timeout_s: float) -> Fetched:
        """What came since the last fetch, or nothing after `timeout_s`."""

    async def commands_end(self, partition: int) -> int:
        """Where `commands` ends now, open transactions included: its high watermark."""

    def ahead(self, partition: int) -> Position | None:
        """Where the consumer stands, past transaction markers too (`next_event_id` is 0);
        None if it is not known."""

    def lags(self, partition: int) -> tuple[int | None, int | None]:
        """How many offsets of commands and of control are not fetched yet, as far as the
        consumer knows; None where the topic's end is unknown."""

    def hidden(self, partition: int) -> Sequence[HiddenRecords]:
        """What of commands and control lies behind an open transaction, as of the last fetch."""


class OffsetRange(NamedTuple):
    """First and next offset of a topic's partition."""

    start: int
    end: int


OnHanging = Callable[[Sequence[str]], Awaitable[None]]
"""Called with the topics on which a transaction stays open; may end it."""


OnWait = Callable[[str | None], None]
"""Called with what is waited for, in a sentence, and with None when that is over."""


Start = Literal["beginning", "end"] | datetime | Mapping[int, int]
"""Where to begin to read a topic: an end of it, a time (aware), or the next offset of each
partition; a partition that a mapping does not name begins at its beginning."""


class LogReader(Protocol):
    """The topics of one partition number, read back to a real end."""

    async def settled(
        self, topics: Sequence[str], on_hanging: OnHanging | None = None
    ) -> dict[str, OffsetRange]:
        """The extents of `topics`, once no transaction is open below their high watermarks.

        Waits for as long as that takes, and reports it; calls `on_hanging` when it takes longer
        than a batch under way would, and again at ever longer intervals.
        """

    async def visible(self, topics: Sequence[str]) -> dict[str, OffsetRange]:
        """The extents of `topics` as far as they can be read now: up to the last stable offsets."""

    def read(self, topic: str, start: int, end: int) -> AsyncIterator[Sequence[Record]]:
        """Committed records from `start` up to `end`, some at a time."""

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        """The first offset appended at or after `at_ms`; None if there is none."""

    async def offset_range(self, topic: str) -> OffsetRange:
        """What the topic holds now, open transactions included."""

    async def stable_end(self, topic: str) -> int:
        """Where the first open transaction begins, or the end: what can be read now."""

    async def close(self) -> None: ...


class Written(NamedTuple):
    """A committed transaction: the next offset of each topic after its records, the newest append
    time among them (ms), and how long ago the broker sent it (s)."""

    ends: Mapping[str, int]
    at_ms: int
    age_s: float


class TransactionalProducer(Protocol):
    """The partition's transactional producer."""

    @property
    def suspect(self) -> bool:
        """Whether a late request may still be under way: replace the producer, then."""

    async def start(self) -> None:
        """Fence the earlier producer of this partition's transactional id."""

    def new_pack(self, topic: str) -> Pack:
        """An empty one of records of `topic`, for the next `write`."""

    async def begin(self, topics: Sequence[str]) -> None:
        """Begin the transaction of the next `write`, which writes to `topics` at least: the broker
        may learn of them while the records are made."""

    async def write(self, records: Mapping[str, Any]) -> Written:
        """Write everything in one transaction, begun or not: by topic, a pack of this writer's or a
        sequence of Outgoing. Raises if anything of it may not be committed; what then became of it
        stands on the topics."""

    async def abort_open(self) -> None:
        """Abort what stands open in this partition under our transactional id although its
        coordinator takes it for ended; nothing else is touched. Raises as `write` does."""

    def discard(self) -> None:
        """Let go of the producer; whatever it left open is the next one's to end."""


class Forwarder(Protocol):
    """Re-sends records that lie on the wrong partition."""

    async def forward(self, forwards: Sequence[Forward]) -> frozenset[tuple[str, int]]:
        """Send all, acknowledged; the sources (topic, offset) of those too large to be sent."""


class WorkItemProducer(Protocol):
    """Writes work items to the topic `steps`, outside of any transaction."""

    async def write(self, records: Sequence[Outgoing]) -> None:
        """Write all, acknowledged, each to the partition of its own key, in order there. Raises if
        any may be missing."""


class Table(Protocol):
    """The partition's local table; see adapters/sqlite."""

    async def checkpoint(self) -> Checkpoint | None: ...
    async def next_row_number(self) -> int: ...
    async def count_flows(self) -> int: ...
    async def flows(self, ids: Sequence[str]) -> dict[str, FlowRow]: ...
    async def steps(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StepRow]: ...
    async def run_ids(self, flow_ids: Sequence[str]) -> dict[str, list[str]]: ...
    async def live_steps(self, flow_ids: Sequence[str]) -> dict[str, list[StepRow]]:
        """The managed steps of each flow that have not ended; flows without any are left out."""

    async def steps_due(
        self, status: StepStatus, after: StepDue | None, until_ms: int, limit: int
    ) -> list[StepDue]:
        """Up to `limit` managed steps of this status, pending or running, that are to be looked at
        by `until_ms`, the earliest first, from behind `after` on. To be believed only once the step
        itself was looked at."""

    async def count_live(self) -> tuple[int, int]:
        """How many managed steps are pending, and how many are running; looks at each."""

    async def ledger_entries(self, keys: Sequence[bytes]) -> dict[bytes, LedgerEntry]: ...
    async def due(self, after: Deadline | None, until_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` waits that end by themselves at or before `until_ms`, the earliest first,
        from behind `after` on. To be believed only once the flow itself was looked at."""

    async def armed(self) -> int:
        """How many waits end by themselves; looks at each, some 80 ms for a million."""

    async def ended(self, after: Deadline | None, before_ms: int, limit: int) -> list[Deadline]:
        """Up to `limit` terminal flows whose last change is older than `before_ms`, the oldest
        first, from behind `after` on. To be believed only once the flow itself was looked at."""

    async def untouched(self) -> bool: ...
    def new_pack(self) -> ChangePack:
        """An empty one, for the next `write`."""

    async def write(self, changes: Any, *, before: Checkpoint | None, after: Checkpoint) -> None:
        """Write a pack of this table's, or Changes, in one transaction."""

    async def clear(self) -> None: ...
    async def begin_restore(self, unfinished: Checkpoint) -> None:
        """Remove all rows and take `unfinished` as the position. Until `end_restore`, the table is
        asked nothing and written by `fill` alone; a crash leaves it unfinished."""

    async def restore(self, chunk: RestoreChunk) -> None: ...
    async def end_restore(self, after: Checkpoint) -> None:
        """The restore is complete: the table is at `after`."""

    def size_bytes(self) -> int: ...
