"""The Kafka of a history: what its cleaner and its retention take, and what is wrong with it."""

from collections.abc import Sequence
from typing import Final

from processor.testing.memory.kafka import MemoryKafka, Transaction, TxnState
from processor.testing.memory.timed_kafka import At, SimKafka

TOMBSTONES_LIVE_MS: Final = 86_400_000
"""`delete.retention.ms` of the state topic."""


class HistoryKafka(SimKafka):
    """Kafka on a loop's clock, with what a history does to it and asks of it."""

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
