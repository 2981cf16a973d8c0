"""Kafka in memory, as far as a partition processor can tell it from the real one: logs with
transactions, markers and retention, and a producer epoch that fences."""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from processor.contract.headers import Headers
from processor.contract.topics import Topics
from processor.engine.batch import Outgoing
from processor.testing.memory.deployment import SOURCES, TOPICS, Deployment, TableContents
from processor.testing.memory.record import Appended

NOON_MS = 1_780_010_800_000
"""The first append time, in ms since 1970."""


class TxnState(StrEnum):
    OPEN = "open"
    COMMITTED = "committed"
    ABORTED = "aborted"


@dataclass(eq=False, slots=True)
class Transaction:
    state: TxnState = TxnState.OPEN
    touched: set[tuple[str, int]] = field(default_factory=set)
    unmarked: set[tuple[str, int]] = field(default_factory=set)
    """Those of `touched` without a marker yet; readers of them see it as open."""
    ends_late: bool = False
    """Whether a commit is under way, which takes effect when the next producer fences."""


@dataclass(slots=True)
class LogEntry:
    """One offset of a log: a record, or a marker."""

    record: Appended | None
    transaction: Transaction | None = None
    compacted: bool = False

    @property
    def readable(self) -> bool:
        committed = self.transaction is None or self.transaction.state is TxnState.COMMITTED
        return self.record is not None and committed and not self.compacted


@dataclass(slots=True)
class SimLog:
    """A topic's partition. The entries before `start` are gone for readers, not for
    `deployment`."""

    start: int = 0
    entries: list[LogEntry] = field(default_factory=list)
    at: tuple[str, int] = ("", 0)
    _stable_end: int = 0

    @property
    def end(self) -> int:
        """The high watermark."""
        return len(self.entries)

    @property
    def stable_end(self) -> int:
        """The last stable offset: where the first open transaction begins."""
        entries, stable_end = self.entries, self._stable_end
        while stable_end < len(entries):
            transaction = entries[stable_end].transaction
            if transaction is not None and self.at in transaction.unmarked:
                break
            stable_end += 1
        self._stable_end = stable_end
        return stable_end

    def committed(self, start: int, end: int) -> Iterator[Appended]:
        for entry in self.entries[max(start, self.start) : min(end, self.stable_end)]:
            if entry.readable and entry.record is not None:
                yield entry.record


class MemoryKafka(ABC):
    """All topics of one prefix."""

    def __init__(self, topics: Topics, partitions: int = 1) -> None:
        self.topics = topics
        self.partitions = partitions
        self.steps_partitions = partitions
        """How many `steps` has; it may grow."""
        self.now_ms = NOON_MS
        self.group_offsets: dict[tuple[str, int], int] = {}
        self.journal: list[str] = []
        """What was done to it, in order: `fence`, `begin`, `commit`, `abort`, `forward`."""
        self._logs: dict[tuple[str, int], SimLog] = {}
        self._epochs: dict[str, int] = {}
        self._open: dict[str, Transaction] = {}

    def log(self, topic: str, partition: int = 0) -> SimLog:
        at = (topic, partition)
        log = self._logs.get(at)
        if log is None:
            log = self._logs[at] = SimLog(at=at)
        return log

    @abstractmethod
    def notify(self) -> None:
        """Something has changed."""

    @abstractmethod
    def watch(self, ats: Iterable[tuple[str, int]]) -> Awaitable[None]:
        """Return what is done at the next append or marker on one of `ats`, if not sooner."""

    # Writing

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        transaction: Transaction | None = None,
    ) -> int:
        log = self.log(topic, partition)
        record = Appended(topic, partition, log.end, self.now_ms, key, value, tuple(headers))
        log.entries.append(LogEntry(record, transaction))
        if transaction is not None:
            transaction.touched.add(log.at)
            transaction.unmarked.add(log.at)
        self.notify()
        return record.offset

    def end(self, transaction: Transaction, state: TxnState) -> None:
        transaction.state = state
        for at in sorted(transaction.touched):
            self.mark(transaction, at)

    def mark(self, transaction: Transaction, at: tuple[str, int]) -> None:
        """Write the marker that ends it on one partition."""
        self.log(*at).entries.append(LogEntry(None))
        transaction.unmarked.discard(at)
        self.notify()

    # A transactional id

    def fence(self, transactional_id: str) -> int:
        """The next epoch; what the last one left open is aborted, or completed."""
        left = self._open.pop(transactional_id, None)
        if left is not None:
            self._end(left, TxnState.COMMITTED if left.ends_late else TxnState.ABORTED)
        self.journal.append("fence")
        self._epochs[transactional_id] = self._epochs.get(transactional_id, 0) + 1
        self.notify()
        return self._epochs[transactional_id]

    def begin_for(self, transactional_id: str, epoch: int) -> Transaction:
        self.check(transactional_id, epoch)
        self.journal.append("begin")
        return self._open.setdefault(transactional_id, Transaction())

    def commit_for(self, transactional_id: str, epoch: int) -> None:
        self.check(transactional_id, epoch)
        self._end(self._open.pop(transactional_id), TxnState.COMMITTED)

    def abort_for(self, transactional_id: str, epoch: int) -> None:
        """A marker on all its topics; it ends whatever of the producer's is open there."""
        self.check(transactional_id, epoch)

    def check(self, transactional_id: str, epoch: int) -> None:
        if self._epochs.get(transactional_id) != epoch:
            raise Fenced(f"{transactional_id} is at epoch {self._epochs[transactional_id]}")

    def _end(self, transaction: Transaction, state: TxnState) -> None:
        self.journal.append("commit" if state is TxnState.COMMITTED else "abort")
        self.end(transaction, state)

    def put(
        self, records: Iterable[Outgoing], topic: str, partition: int, transaction: Transaction
    ) -> int:
        """Append in a transaction; the offset after the last."""
        for key, value, headers in records:
            self.append(topic, partition, key, value, headers, transaction)
        return self.log(topic, partition).end

    # Looking at it

    def deployment(self, window_ms: int, tables: Sequence[TableContents] = ()) -> Deployment:
        """All that was ever committed, whatever retention and compaction have taken since."""
        counts = {**dict.fromkeys(TOPICS, self.partitions), "steps": self.steps_partitions}
        seen = Deployment(
            self.partitions,
            window_ms,
            self.topics,
            tables=[*tables],
            steps_partitions=self.steps_partitions,
        )
        for name, partitions in counts.items():
            for partition in range(partitions):
                log = self.log(f"{self.topics.prefix}.{name}", partition)
                if name in SOURCES:
                    seen.ends[name, partition] = (log.stable_end, log.end)
                for entry in log.entries:
                    txn = entry.transaction
                    if entry.record and (txn is None or txn.state is TxnState.COMMITTED):
                        seen.of(name, partition).append(entry.record)
        return seen


class Fenced(Exception):
    """A newer epoch of the transactional id exists."""
