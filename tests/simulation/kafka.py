"""The Kafka of a history: markers that take their time, transactions that time out, requests that
arrive late, a broker that may be away; what retention takes, and what is wrong in the end.

test_kafka_contract.py holds it and the real one to the same scenarios.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from processor.contract.topics import Topics
from processor.testing.memory.kafka import MemoryKafka, Transaction, TxnState
from processor.testing.memory.timed_kafka import At, TimedKafka

TRANSACTION_TIMEOUT_S: Final = 15.0
"""As adapters/kafka/producer/transactional_producer.py asks for."""
TOMBSTONES_LIVE_MS: Final = 86_400_000
"""`delete.retention.ms` of the state topic."""


class HistoryKafka(TimedKafka):
    """Kafka on a loop's clock, with what a history does to it and asks of it."""

    def __init__(self, topics: Topics, partitions: int, clock: Callable[[], float]) -> None:
        super().__init__(topics, partitions, clock)
        self.marker_delay_s: Callable[[], float] = lambda: 0.0
        """How long the next marker takes; asked for each partition of a transaction that ends."""
        self.timed_out: Callable[[], None] = lambda: None
        self.refused: Callable[[], None] = lambda: None
        """Called when a request of a fenced producer is refused."""
        self.away_until_s = 0.0
        self.held: dict[str, int] = {}
        """Requests to commit that are under way, by transactional id: the epoch of each."""
        self._completing: dict[str, Transaction] = {}

    @property
    def away(self) -> bool:
        return self._clock() < self.away_until_s

    # A transactional id

    def end(self, transaction: Transaction, state: TxnState) -> None:
        """Decided at once; each partition shows it when its marker is written."""
        transaction.state = state
        for at in sorted(transaction.touched):
            delay_s = self.marker_delay_s()
            if delay_s:
                loop = asyncio.get_running_loop()
                loop.call_later(delay_s, self.mark, transaction, at)
            else:
                self.mark(transaction, at)

    def completing(self, transactional_id: str) -> bool:
        """Whether markers of its last transaction are still to be written: whoever begins or
        fences must ask again, as Kafka says CONCURRENT_TRANSACTIONS."""
        last = self._completing.get(transactional_id)
        return last is not None and bool(last.unmarked)

    def fence(self, transactional_id: str) -> int:
        left = self._open.get(transactional_id)
        if left is not None:
            self._completing[transactional_id] = left
        return super().fence(transactional_id)

    def begin_for(self, transactional_id: str, epoch: int) -> Transaction:
        if self.is_open(transactional_id, epoch):
            return self._open[transactional_id]
        transaction = super().begin_for(transactional_id, epoch)
        asyncio.get_running_loop().call_later(
            TRANSACTION_TIMEOUT_S, self._time_out, transactional_id, transaction
        )
        return transaction

    def commit_for(self, transactional_id: str, epoch: int) -> None:
        self.check(transactional_id, epoch)
        self._completing[transactional_id] = self._open[transactional_id]
        super().commit_for(transactional_id, epoch)

    def is_open(self, transactional_id: str, epoch: int) -> bool:
        return self._epochs.get(transactional_id) == epoch and transactional_id in self._open

    def commit_arrives(self, transactional_id: str, epoch: int) -> None:
        """A request to commit that was under way for long: it ends whatever is open by then."""
        if self.is_open(transactional_id, epoch):
            self.commit_for(transactional_id, epoch)

    def _time_out(self, transactional_id: str, transaction: Transaction) -> None:
        if self._open.get(transactional_id) is transaction:
            # With a new epoch, as Kafka does it: its producer is of no more use.
            self._completing[transactional_id] = self._open.pop(transactional_id)
            self._epochs[transactional_id] += 1
            self._end(transaction, TxnState.ABORTED)
            self.timed_out()

    def check(self, transactional_id: str, epoch: int) -> None:
        if self._epochs.get(transactional_id) != epoch:
            self.refused()
        super().check(transactional_id, epoch)

    # Retention

    def compact_state(self, partition: int) -> int:
        """As the cleaner does it: older values go, tombstones once they are old enough. How many
        records went."""
        log, gone = self.log(self.topics.state, partition), 0
        newest: set[bytes | None] = set()
        tombstones_before_ms = self.now_ms - TOMBSTONES_LIVE_MS
        for entry in reversed(log.entries[log.start : log.stable_end]):
            record = entry.record
            if record is None or not entry.readable:
                continue
            old = record.value is None and record.timestamp < tombstones_before_ms
            if record.key in newest or old:
                entry.compacted = True
                gone += 1
            newest.add(record.key)
        return gone

    def expire_before(self, at: At, at_ms: int, below: int) -> int:
        """Retention removes from the front what is older than `at_ms`, up to the offset `below`;
        how many offsets."""
        log = self.log(*at)
        start = log.start
        for entry in log.entries[start : min(below, log.stable_end)]:
            if entry.record is not None and entry.record.timestamp >= at_ms:
                break
            start += 1
        gone, log.start = start - log.start, start
        return gone

    # Looking at it

    def undecided(self, partition: int) -> int:
        """How many visible commands have no outcome yet."""
        topics = self.topics
        counts = [
            sum(1 for _ in _all_committed(self, topic, partition))
            for topic in (topics.commands, topics.control, topics.outcomes)
        ]
        return counts[0] + counts[1] - counts[2]

    def open_on(self, partition: int) -> list[str]:
        """Topics on which a transaction hides something."""
        logs = {name: self.log(name, partition) for name, _ in self.topics}
        return [name for name, log in logs.items() if log.stable_end < log.end]

    def mixed(self, partition: int) -> list[str]:
        """I8: places where an owner's committed transaction goes on after another record."""
        found = []
        topics = self.topics
        for topic in (topics.audit, topics.outcomes, topics.state, topics.dead_letters):
            done: set[int] = set()
            last: Transaction | None = None
            for offset, entry in enumerate(self.log(topic, partition).entries):
                txn = entry.transaction
                if entry.record is None or txn is None or txn.state is not TxnState.COMMITTED:
                    continue
                if txn is not last:
                    if id(txn) in done:
                        found.append(f"I8 {topic}/{partition}/{offset}: two owners at a time")
                    done.add(id(txn))
                    last = txn
        return found


def _all_committed(kafka: MemoryKafka, topic: str, partition: int) -> Sequence[int]:
    log = kafka.log(topic, partition)
    return [
        offset
        for offset, entry in enumerate(log.entries[: log.stable_end])
        if entry.record is not None
        and (entry.transaction is None or entry.transaction.state is TxnState.COMMITTED)
    ]
