"""Kafka's log files, batch by batch: which producer wrote what, which no consumer is told.

Used for invariant I8 alone, on the embedded broker, whose directory is at hand.
"""

import asyncio
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
        yield from (batch for batch, _ in _parsed(path.read_bytes()))


def _parsed(data: bytes) -> Iterator[tuple[LogBatch, int]]:
    """Each whole batch, and where it ends."""
    at = 0
    while at + _HEADER.size <= len(data):
        base, length, _, magic, _, attributes, _, _, _, pid, epoch, _, _ = _HEADER.unpack_from(
            data, at
        )
        at += 12 + length
        if magic != 2 or length <= 0 or at > len(data):
            return  # room that Kafka has set aside, or what it is just writing
        yield (
            LogBatch(
                base, pid, epoch, bool(attributes & _TRANSACTIONAL), bool(attributes & _CONTROL)
            ),
            at,
        )


async def until_in_transaction(data_dir: Path, topic: str, partition: int) -> None:
    """Wait until a transaction is open there, and say so while it is."""
    (path,) = (data_dir / "logs" / f"{topic}-{partition}").glob("*.log")
    with path.open("rb") as log:
        at, seen = 0, False
        while True:
            log.seek(at)
            if new := list(_parsed(log.read())):
                last, end = new[-1]
                at += end
                if seen and not last.control:
                    return
            seen = True  # from here on, what is new is of this moment
            await asyncio.sleep(0.002)


def foreign_writers(data_dir: Path, prefix: str, partitions: int) -> list[str]:
    """I8: where a transaction of one owner holds another producer's batch, or an epoch comes back.

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
        writer = (batch.producer_id, batch.epoch)
        at = f"I8 {name} offset {batch.offset}: "
        if not batch.transactional:
            found.append(f"{at}written outside of a transaction")
        elif batch.control:
            # The coordinator ends a dead owner's transaction under an epoch raised by one.
            if open_by is not None and batch.producer_id != open_by[0]:
                found.append(f"{at}the marker of {writer} within a transaction of {open_by}")
            open_by = None
        else:
            if open_by is not None and writer != open_by:
                found.append(f"{at}{writer} within a transaction of {open_by}")
            if newest is not None and (writer[0] != newest[0] or writer[1] < newest[1]):
                found.append(f"{at}{writer} after {newest}")
            open_by = newest = writer
    return found


def owners(data_dir: Path, prefix: str, partitions: int) -> tuple[int, int]:
    """How many owners have written, over all partitions, and how many transactions of theirs were
    ended by their successors. Without this, a test of takeovers may have tested none."""
    seen: set[tuple[int, int, int]] = set()
    interrupted = 0
    for partition in range(partitions):
        open_epoch: int | None = None
        for batch in batches(data_dir, f"{prefix}.outcomes", partition):
            if not batch.control:
                seen.add((partition, batch.producer_id, batch.epoch))
                open_epoch = batch.epoch
            else:
                interrupted += open_epoch is not None and batch.epoch > open_epoch
                open_epoch = None
    return len(seen), interrupted
