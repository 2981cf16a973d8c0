"""Publish a range of events again, in their order, to another topic.

Each transaction writes some of them and, with them, how far each source partition is done: a run
that is killed leaves all of a transaction or nothing, and the next one goes on behind it.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from processor.contract.headers import Headers
from processor.ops.replay.selection import Mark, Selection, Sieve
from processor.ops.verify.ports import LogRecord
from processor.ops.verify.record_stream import RecordStream

TRANSACTION_MAX: Final = 500
TRANSACTION_BYTES: Final = 1024 * 1024
TURN_S: Final = 0.25
"""How long the events of one transaction last at the pace that is asked for."""
UNWANTED_MAX: Final = 100_000
"""Events that are passed over before that is written down, too."""


class RepublishedRecord(NamedTuple):
    """An event to write again: as it was, with one header more. `partition` is the source's."""

    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    at_ms: int


class ReplayTarget(Protocol):
    """Where they go."""

    async def write(
        self, copies: Sequence[RepublishedRecord], positions: Mapping[int, int]
    ) -> None:
        """All in one transaction: events, and the next offsets of source partitions."""


class ReplayRange(NamedTuple):
    """Of a source partition: its events of [start, end). `past` is where to begin reading, for
    what must be known of them."""

    past: int
    start: int
    end: int


@dataclass(slots=True)
class RepublishProgress:
    """What was done, as far as it is committed."""

    replayed: int = 0
    positions: dict[int, int] = field(default_factory=dict)


OpenStream = Callable[[int, int, int], RecordStream]
"""Partition, start, end."""


async def republish(  # noqa: PLR0913
    ranges: Mapping[int, ReplayRange],
    selection: Selection,
    open_stream: OpenStream,
    target: ReplayTarget,
    run: str,
    *,
    per_s: float | None = None,
    written: Callable[[int], None] = lambda _: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> RepublishProgress:
    """Write the events of `ranges`, by their append times as far as partitions allow.

    `per_s` events a second at most; `written` is called with how many more were committed.
    """
    done = RepublishProgress()
    events = _Merged(ranges, selection, open_stream)
    copies: list[RepublishedRecord] = []
    size_bytes = unwanted = 0
    positions: dict[int, int] = {}
    most = TRANSACTION_MAX if per_s is None else max(1, min(TRANSACTION_MAX, int(per_s * TURN_S)))
    began_s = monotonic()

    async def commit() -> None:
        nonlocal size_bytes, unwanted
        if per_s is not None and copies:
            await sleep(max(0.0, began_s + done.replayed / per_s - monotonic()))
        await target.write(copies, positions)
        done.replayed += len(copies)
        done.positions |= positions
        written(len(copies))
        copies.clear()
        positions.clear()
        size_bytes = unwanted = 0

    while (found := await events.take()) is not None:
        record, wanted = found
        positions[record.partition] = record.offset + 1
        if not wanted:
            unwanted += 1
        else:
            mark = Mark(run, record.topic, record.partition, record.offset)
            headers = [*record.headers, mark.header()]
            place = (record.partition, record.key, record.value)
            copies.append(RepublishedRecord(*place, headers, record.timestamp))
            size_bytes += len(record.value or b"")
        if len(copies) >= most or size_bytes >= TRANSACTION_BYTES or unwanted >= UNWANTED_MAX:
            await commit()
    # Behind the last events there may be markers: the end is the end.
    ends = {p: one.end for p, one in ranges.items() if one.start < one.end}
    positions |= {p: end for p, end in ends.items() if done.positions.get(p) != end}
    if copies or positions:
        await commit()
    return done


class _Merged:
    """The partitions' events by time, each partition's in its order; the past is only looked at."""

    def __init__(
        self, ranges: Mapping[int, ReplayRange], selection: Selection, open_stream: OpenStream
    ) -> None:
        self._ranges = {p: one for p, one in ranges.items() if one.start < one.end}
        self._streams = {p: open_stream(p, one.past, one.end) for p, one in self._ranges.items()}
        self._sieves = {p: Sieve(selection) for p in self._ranges}
        self._heads: dict[int, LogRecord] = {}
        self._begun = False

    async def take(self) -> tuple[LogRecord, bool] | None:
        """The next event, and whether it is wanted; None at the end."""
        if not self._begun:
            self._begun = True
            for partition in self._ranges:
                await self._advance(partition)
        if not self._heads:
            return None
        partition = min(self._heads, key=lambda p: (self._heads[p].timestamp, p))
        record = self._heads.pop(partition)
        wanted = self._sieves[partition].wants(record)
        await self._advance(partition)
        return record, wanted

    async def _advance(self, partition: int) -> None:
        stream, one = self._streams[partition], self._ranges[partition]
        while (record := await stream.take()) is not None:
            if record.offset >= one.start:
                self._heads[partition] = record
                return
            self._sieves[partition].wants(record)
