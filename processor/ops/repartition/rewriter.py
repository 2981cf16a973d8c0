"""Rewrite records for the new side, with the ids, chains and places that they have there."""

from collections import deque
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from processor.contract import dead_letters
from processor.contract.events import CHAIN_HEADER, CHAIN_START
from processor.contract.headers import (
    MOVED_FROM,
    PROGRESS,
    Header,
    Headers,
    chain_of,
    split_dead_letter,
    without_cloudevents,
    without_forwarding,
)
from processor.contract.outcomes import Verdict
from processor.contract.state import CURSOR_PREFIX
from processor.contract.topics import Topics
from processor.contract.values import parse_timestamp
from processor.engine.batch import Outgoing, cursor_record, first_event_id
from processor.engine.partitioner import partition_of
from processor.engine.rows import Position
from processor.ops.repartition.steps import MoveStep
from processor.ops.verify.ports import LogRecord

LATE_MAX_MS: Final = 16 * 60_000


class CopiedRecord(NamedTuple):
    """A record to write; `at_ms` is the time that it keeps."""

    topic: str
    record: Outgoing
    at_ms: int


class Tail(NamedTuple):
    """Where a flow's history stands: chain, id of the newest event, and the id it had."""

    chain: bytes
    event_id: int
    old_id: int


class Rewriter:
    """Rewrites steps, each flow's in order. Holds about 300 bytes of each flow, and the ids of the
    events that a resend may still name."""

    def __init__(self, old: Topics, new: Topics, partitions: int, window_ms: int) -> None:
        self._old = old
        self._new = new
        self._partitions = partitions
        self._keep_ms = 2 * window_ms + LATE_MAX_MS
        self.next_ids = [first_event_id(partition) for partition in range(partitions)]
        self._tails: dict[str, Tail] = {}
        self._ids: dict[int, int] = {}
        self._recent: deque[tuple[int, int]] = deque()

    def home(self, step: MoveStep) -> int:
        if step.events:
            return self._of_key(step.events[0].key, step.partition)
        assert step.outcome is not None
        assert step.source is not None
        return self._of_key(step.source.key or step.outcome.key, step.partition)

    def _of_key(self, key: bytes | None, otherwise: int) -> int:
        if key is None:
            return otherwise % self._partitions
        return partition_of(key, self._partitions)

    def dropped(self, step: MoveStep) -> bool:
        """A forward is no outcome: its copy has one, and the new side places it right."""
        return step.doc is not None and step.doc["verdict"] == Verdict.FORWARDED

    def source(self, step: MoveStep) -> CopiedRecord:
        """The decided record as it lies on the new side."""
        assert step.source is not None
        return self.command(step.source)

    def command(self, record: LogRecord) -> CopiedRecord:
        headers = without_forwarding(record.headers)
        return CopiedRecord(
            self._renamed(record.topic),
            Outgoing(record.key, record.value, headers),
            record.timestamp,
        )

    def command_home(self, record: LogRecord) -> int:
        return self._of_key(record.key, record.partition)

    def rest(self, partition: int, step: MoveStep, offset: int | None) -> list[CopiedRecord]:
        """What the step caused, on partition `number`; `offset` is its record's there."""
        while self._recent and self._recent[0][0] < step.at_ms - self._keep_ms:
            self._ids.pop(self._recent.popleft()[1], None)
        source: dict[str, Any] | None = None
        if step.source is not None:
            topic = self._renamed(step.source.topic)
            source = {"topic": topic, "partition": partition, "offset": offset}
        copies = [self._event(partition, event, source) for event in step.events]
        if step.outcome is not None and step.doc is not None:
            doc = dict(step.doc)
            doc["source"] = source
            doc["event_ids"] = [self._ids[event_id] for event_id in doc["event_ids"]]
            value = orjson.dumps(doc)
            # Their ids are those of the old side.
            headers = without_cloudevents(step.outcome.headers)
            record = Outgoing(step.outcome.key, value, headers)
            copies.append(CopiedRecord(self._new.outcomes, record, step.outcome.timestamp))
        if step.dead_letter is not None and source is not None:
            copies.append(self._dead_letter(step.dead_letter, source))
        return copies

    def _event(
        self, partition: int, record: LogRecord, source: Mapping[str, Any] | None
    ) -> CopiedRecord:
        event = orjson.loads(record.value or b"")
        old_id, event_id = event["id"], self.next_ids[partition]
        event["id"] = event_id
        if source is not None:
            event["source"] = source
        value = orjson.dumps(event)
        tail = self._tails.get(event["flow_id"])
        chain = blake2b((tail.chain if tail else CHAIN_START) + value, digest_size=16).digest()
        kept = _without(without_cloudevents(record.headers), CHAIN_HEADER, MOVED_FROM)
        moved = f"{self._old.prefix}/{old_id}".encode()
        headers = [(CHAIN_HEADER, chain), *kept, (MOVED_FROM, moved)]
        self._happened(partition, event, chain, old_id)
        return CopiedRecord(self._new.audit, Outgoing(record.key, value, headers), record.timestamp)

    def _happened(
        self, partition: int, event: Mapping[str, Any], chain: bytes, old_id: int
    ) -> None:
        event_id, flow_id = event["id"], event["flow_id"]
        self.next_ids[partition] = event_id + 1
        if event["kind"] == "pruned":
            self._tails.pop(flow_id, None)
        else:
            self._tails[flow_id] = Tail(chain, event_id, old_id)
        self._ids[old_id] = event_id
        self._recent.append((parse_timestamp(event["at"]), old_id))

    def _dead_letter(self, dead_letter: LogRecord, source: Mapping[str, Any]) -> CopiedRecord:
        places = {
            dead_letters.SOURCE_TOPIC: source["topic"],
            dead_letters.SOURCE_PARTITION: source["partition"],
            dead_letters.SOURCE_OFFSET: source["offset"],
        }
        originals, _ = split_dead_letter(dead_letter.headers)
        added = [
            (name, str(places[name]).encode() if name in places else value)
            for name, value in dead_letter.headers[len(originals) :]
        ]
        record = Outgoing(
            dead_letter.key, dead_letter.value, [*without_forwarding(originals), *added]
        )
        return CopiedRecord(self._new.dead_letters, record, dead_letter.timestamp)

    def take_back(self, partition: int, record: LogRecord) -> None:
        """An event that was copied before, when this goes on where it was left."""
        event = orjson.loads(record.value or b"")
        old_id = int((dict(record.headers)[MOVED_FROM] or b"").rpartition(b"/")[2])
        self._happened(partition, event, chain_of(record.headers), old_id)

    def snapshot(self, record: LogRecord) -> tuple[int, CopiedRecord] | None:
        """What a record of the old `state` becomes, and on which partition; None if nothing: a
        cursor, or a flow's that is not its newest."""
        key = (record.key or b"").decode()
        if key.startswith(CURSOR_PREFIX):
            return None
        flow_id, slash, _ = key.partition("/")
        value = record.value
        if not slash:
            tail = self._tails.get(flow_id)
            snapshot = orjson.loads(value) if value else None
            if tail is None or snapshot is None or snapshot["last_event_id"] != tail.old_id:
                return None
            value = orjson.dumps(
                snapshot | {"last_event_id": tail.event_id, "chain": tail.chain.hex()}
            )
        made = Outgoing(record.key, value, list(record.headers))
        home = partition_of(flow_id.encode(), self._partitions)
        return home, CopiedRecord(self._new.state, made, record.timestamp)

    def cursor(
        self, partition: int, position: Position, progress: Mapping[str, int]
    ) -> CopiedRecord:
        # On the new `steps` there are no work items yet: the first owner writes those of all steps
        # that are offered.
        key, value, _ = cursor_record(partition, position, first_event_id(partition))
        headers = [(PROGRESS, orjson.dumps(progress))]
        # No time of its own: it is no older than anything that it stands for.
        return CopiedRecord(self._new.state, Outgoing(key, value, headers), -1)

    def _renamed(self, topic: str) -> str:
        return f"{self._new.prefix}.{topic.rpartition('.')[2]}"


def progress_of(headers: Headers) -> dict[str, int] | None:
    """How far the old side is copied, as a cursor says."""
    found = dict(headers).get(PROGRESS)
    return None if found is None else dict(orjson.loads(found))


def _without(headers: Headers, *names: str) -> list[Header]:
    return [(name, value) for name, value in headers if name not in names]
