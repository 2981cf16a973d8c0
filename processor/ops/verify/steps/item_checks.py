"""Checks of work items: I15, each names an offering, each offering has one."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from processor.contract.events import TRACEPARENT_HEADER
from processor.contract.headers import Headers
from processor.contract.steps import TASK_HEADER
from processor.contract.values import EVENTS_PER_PARTITION
from processor.ops.verify.contract import Doc, canonical, hash16, home_of, parsed
from processor.ops.verify.ports import Log, LogRange, LogRecord, Logs, Watcher
from processor.ops.verify.record_stream import RecordStream
from processor.ops.verify.report import Report
from processor.ops.verify.scope import Scope
from processor.ops.verify.steps.store import Awaited, StepStore

ITEM_FIELDS: Final[Mapping[str, type]] = {
    "flow_id": str,
    "run_id": str,
    "task": str,
    "attempt": int,
    "max_attempts": int,
    "input_json": object,
    "lease_ms": int,
    "event_id": int,
    "at": str,
}
LOOK_AGAIN_S: Final = 0.2
HASHES: Final = 1 << 31


class Folded(NamedTuple):
    """Which events of a partition are known: from `first` on, below `end`; the items of those up to
    `offered` are written, as the cursor says."""

    first: int
    end: int
    offered: int


def item_of(event: Doc, step: Doc, headers: Headers) -> bytes:
    """The digest of the work item of an event that offered `step`, which is as the event left it;
    `headers` are the event's."""
    execution = step["execution"]
    item = {
        **{name: step[name] for name in ("flow_id", "run_id", "task", "input_json")},
        **{name: execution[name] for name in ("max_attempts", "lease_ms")},
        "attempt": execution["attempt"] + 1,
        "event_id": event["id"],
        "at": event["at"],
    }
    return _digest(item, step["task"].encode(), _traces(headers))


def _traces(headers: Headers) -> list[bytes]:
    return [value or b"" for name, value in headers if name == TRACEPARENT_HEADER]


def _digest(item: Doc, task: bytes, traces: Sequence[bytes]) -> bytes:
    return hash16(canonical([item, task.hex(), [trace.hex() for trace in traces]]))


class ItemChecks:
    """Holds `steps` against the offerings of all partitions that were folded."""

    def __init__(self, scope: Scope, store: StepStore, report: Report) -> None:
        self._scope = scope
        self._store = store
        self._report = report
        self._topic = scope.topics.steps
        self._partitions = scope.steps_partitions or scope.partitions
        self._folded: dict[int, Folded] = {}
        self._next: dict[int, int] = {}
        self._lost_ms: dict[int, float] = {}
        """By partition of `steps`: up to which append time retention has taken items."""

    def folded(self, partition: int, cursor: Doc, first: int | None) -> None:
        """Take in that a partition was folded from event `first` on (None: from its first), up to
        its newest cursor."""
        start = partition * EVENTS_PER_PARTITION + 1 if first is None else first
        self._folded[partition] = Folded(start, cursor["next_event_id"], cursor["offered"])

    async def read(self, logs: Logs, watcher: Watcher) -> None:
        """Check all of `steps`. At rest, look again for what is missing, within the grace."""
        began = time.monotonic()
        while True:
            for partition in range(self._partitions):
                watcher.at(f"partition {partition}: work items")
                async with logs(partition) as log:
                    await self._read(partition, log, watcher)
            missing = any(self._is_missing(one) for one in self._store.awaited())
            grace_s = self._scope.grace_s if self._scope.at_rest else 0.0
            if not missing or time.monotonic() - began >= grace_s:
                break
            await asyncio.sleep(LOOK_AGAIN_S)
        self._end()

    async def _read(self, partition: int, log: Log, watcher: Watcher) -> None:
        """Read what has come to a partition of `steps` since the last time."""
        offset_range, since = await log.offset_range(self._topic), self._scope.since_ms
        start = self._next.get(partition)
        if start is None:
            start = offset_range.start
            if since is not None:
                found = await log.offset_at(self._topic, max(since, 0))
                start = offset_range.stable if found is None else found
        watcher.expect(offset_range.stable - start)
        stream = RecordStream(log, self._topic, start, offset_range.stable, watcher.advance)
        await self._stream(partition, stream, offset_range)
        self._next[partition] = offset_range.stable

    async def _stream(self, partition: int, stream: RecordStream, offset_range: LogRange) -> None:
        if partition not in self._lost_ms:
            self._lost_ms[partition] = -1
            if offset_range.start > 0:
                head = await stream.head()
                self._lost_ms[partition] = float("inf") if head is None else head.timestamp
                self._report.uncovered(
                    f"{self._topic}/{partition} begins at offset {offset_range.start}: whether the "
                    "steps that were offered before had their work items is not known."
                )
        while (record := await stream.take()) is not None:
            self._report.counts["work_items"] += 1
            self._take(record)

    def _take(self, record: LogRecord) -> None:
        item = parsed(record.value)
        if item is None or not _shaped(item):
            self._add(record, "not_an_item", "The record does not have the fields of a work item.")
            return
        flow_id, event_id = item["flow_id"], item["event_id"]
        if self._scope.flow_id not in (None, flow_id):
            return
        self._report.checked["I15"] += 1
        key = f"{flow_id}/{item['run_id']}".encode()
        if record.key != key:
            self._add(record, "item_key", "The key is not that of its step.", flow_id)
        elif not self._may_lie_on(record.partition, key):
            self._add(record, "item_misplaced", "Its key belongs to another partition.", flow_id)
        partition = event_id // EVENTS_PER_PARTITION
        folded = self._folded.get(partition)
        if folded is None:
            if not 0 <= partition < self._scope.partitions:
                self._add(record, "item_of_no_offering", f"There is no event {event_id}.", flow_id)
            return
        if event_id < folded.first or (event_id >= folded.end and not self._scope.at_rest):
            return  # retention took the event, or it is newer than what was folded
        offered, expected = self._store.offering(event_id)
        if not offered:
            about = f"Event {event_id} did not offer a step."
            self._add(record, "item_of_no_offering", about, flow_id)
            return
        self._store.seen(event_id)
        headers = dict(record.headers)
        stated = _digest(item, headers.get(TASK_HEADER) or b"", _traces(record.headers))
        if expected is not None and stated != expected:
            about = f"It is not what event {event_id} says of its step."
            self._add(record, "item_differs", about, flow_id)

    def _may_lie_on(self, partition: int, key: bytes) -> bool:
        """Whether the key belongs there by one of the numbers of partitions that `steps` may have
        had: it grows, and items stay where they are."""
        full = home_of(key, HASHES)
        counts = range(min(self._scope.partitions, self._partitions), self._partitions + 1)
        return any(full % count == partition for count in counts)

    def _is_missing(self, awaited: Awaited) -> bool:
        folded = self._folded.get(awaited.event_id // EVENTS_PER_PARTITION)
        if folded is None or not folded.first <= awaited.event_id < folded.end:
            return False
        if not self._scope.at_rest and awaited.event_id > folded.offered:
            return False  # it may be under way
        key = f"{awaited.flow_id}/{awaited.run_id}".encode()
        return not any(
            self._may_lie_on(partition, key) and awaited.at_ms <= lost_ms
            for partition, lost_ms in self._lost_ms.items()
        )

    def _end(self) -> None:
        for awaited in self._store.awaited():
            if not self._is_missing(awaited):
                continue
            self._report.checked["I15"] += 1
            self._report.add(
                *("I15", "offering_without_item"),
                f"Event {awaited.event_id} offered step {awaited.run_id!r}, which is pending, but "
                f"{self._topic} has no work item of it.",
                topic=self._scope.topics.audit,
                partition=awaited.event_id // EVENTS_PER_PARTITION,
                offset=awaited.offset,
                flow_id=awaited.flow_id,
            )

    def _add(self, record: LogRecord, kind: str, message: str, flow_id: str | None = None) -> None:
        self._report.at(record, "I15", kind, message, flow_id)


def _shaped(item: Doc) -> bool:
    return item.keys() == ITEM_FIELDS.keys() and all(
        _is(item[name], kind) for name, kind in ITEM_FIELDS.items()
    )


def _is(value: Any, kind: type) -> bool:
    return type(value) is int if kind is int else isinstance(value, kind)
