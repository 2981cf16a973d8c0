"""Kafka's log files, batch by batch: which producer wrote what, which no consumer is told.

Used for invariant I8 alone, on the embedded broker, whose directory is at hand.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_HEADER = struct.Struct(">qiibIhiqqqhii")
_TRANSACTIONAL, _CONTROL = 0x10, 0x20
WRITTEN_IN_TRANSACTIONS = ("audit", "outcomes", "state", "deadletters")


@dataclass(frozen=True, slots=True)
class LogBatch:
    offset: int
    producer_id: int
    epoch: int
    transactional: bool
    control: bool
    """A marker: the end of the producer's transaction."""


def batches(data_dir: Path, topic: str, partition: int) -> Iterator[LogBatch]:
    for path in sorted((data_dir / "logs" / f"{topic}-{partition}").glob("*.log")):
        data, at = path.read_bytes(), 0
        while at + _HEADER.size <= len(data):
            base, length, _, magic, _, attributes, _, _, _, pid, epoch, _, _ = _HEADER.unpack_from(
                data, at
            )
            if magic != 2 or length <= 0:
                break  # room that Kafka has set aside
            yield LogBatch(
                base, pid, epoch, bool(attributes & _TRANSACTIONAL), bool(attributes & _CONTROL)
            )
            at += 12 + length


def foreign_hands(data_dir: Path, prefix: str, partitions: int) -> list[str]:
    """I8: where a transaction of one owner holds another hand's batch, or an epoch comes back.

    A transactional id keeps its producer id; each fencing raises the epoch.
    """
    return [
        sentence
        for topic in WRITTEN_IN_TRANSACTIONS
        for partition in range(partitions)
        for sentence in foreign_in(
            f"{topic}/{partition}", batches(data_dir, f"{prefix}.{topic}", partition)
        )
    ]


def foreign_in(name: str, log: Iterator[LogBatch]) -> list[str]:
    found: list[str] = []
    open_by: tuple[int, int] | None = None
    newest: tuple[int, int] | None = None
    for batch in log:
        hand = (batch.producer_id, batch.epoch)
        at = f"I8 {name} offset {batch.offset}: "
        if not batch.transactional:
            found.append(f"{at}written outside of a transaction")
        elif batch.control:
            # The coordinator ends a dead owner's transaction under an epoch raised by one.
            if open_by is not None and batch.producer_id != open_by[0]:
                found.append(f"{at}the marker of {hand} within a transaction of {open_by}")
            open_by = None
        else:
            if open_by is not None and hand != open_by:
                found.append(f"{at}{hand} within a transaction of {open_by}")
            if newest is not None and (hand[0] != newest[0] or hand[1] < newest[1]):
                found.append(f"{at}{hand} after {newest}")
            open_by = newest = hand
    return found
