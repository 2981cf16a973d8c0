"""Select the events that are replayed, and mark them."""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from processor.contract.headers import Headers, place_of
from processor.ops.verify.ports import LogRecord

REPLAY_HEADER: Final = "taskflow-replay"
"""On a replayed event: run/topic/partition/offset of the record that it repeats."""


class Mark(NamedTuple):
    """What the header says."""

    run: str
    topic: str
    partition: int
    offset: int

    def header(self) -> tuple[str, bytes]:
        return REPLAY_HEADER, f"{self.run}/{self.topic}/{self.partition}/{self.offset}".encode()


def mark_of(headers: Headers) -> Mark | None:
    """The mark of a record; None if it has none, or one that is not ours."""
    if not headers or headers[-1][0] != REPLAY_HEADER:
        return None
    place = place_of(headers[-1][1])
    run, slash, topic = ("", "", "") if place is None else place.topic.rpartition("/")
    return Mark(run, topic, place.partition, place.offset) if place and slash else None


def run_id(*chosen: Any) -> str:
    """A name for what was asked for: asked again, it has the same one and goes on."""
    return blake2b(orjson.dumps(chosen), digest_size=6).hexdigest()


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events, besides their range; empty: all of them."""

    flow_ids: frozenset[str] = frozenset()
    owners: frozenset[str] = frozenset()
    kinds: frozenset[str] = frozenset()

    @property
    def needs_the_past(self) -> bool:
        """Whether all that came before a range must have been seen, too: whose a flow is says
        only its first event."""
        return bool(self.owners)


class Sieve:
    """A selection applied to a partition's events, in their order."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._keys = frozenset(flow_id.encode() for flow_id in selection.flow_ids)
        self._theirs: set[bytes | None] = set()
        """Flows of the owners, by their keys."""

    def wants(self, record: LogRecord) -> bool:
        """Must be asked about each event of the past, where the selection needs it."""
        chosen = self._selection
        if self._keys and record.key not in self._keys:
            return False
        if not (chosen.owners or chosen.kinds):
            return True
        event = orjson.loads(record.value or b"")
        kind = event["kind"]
        if chosen.owners:
            if kind == "created":
                theirs = event["payload_json"]["owner_session_key"] in chosen.owners
                (self._theirs.add if theirs else self._theirs.discard)(record.key)
            if record.key not in self._theirs:
                return False
        return not chosen.kinds or kind in chosen.kinds
