"""Fold a partition of `audit` into the open waits for external events, and facts about them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.signals.facts import SignalFact, WaitClosed, WaitKey, WaitMoved, WaitOpened

FLOW_ENTRY: Final = b"wait/"
EXTERNAL_EVENT: Final = "external_event"

KeyedFact = tuple[WaitKey, SignalFact]


@dataclass(frozen=True, slots=True)
class FlowWait:
    """A flow's wait for an external event; `wait` is the id of its `waiting` event."""

    topic: str
    correlation_id: str
    wait: int
    revision: int

    @property
    def key(self) -> WaitKey:
        return WaitKey(self.topic, self.correlation_id)


class WaitIndex:
    """The waits for external events of the flows of one partition."""

    def __init__(self) -> None:
        self._waits: dict[str, FlowWait] = {}
        self._changed: dict[str, None] = {}

    def apply(self, events: Iterable[tuple[Mapping[str, Any], int]]) -> list[KeyedFact]:
        """Return the facts of FlowEvents, which are given with their append times in ms. A wait
        that both begins and ends among them makes no facts."""
        facts: list[KeyedFact] = []
        opened: set[int] = set()
        ended: set[int] = set()
        for event, at_ms in events:
            for key, fact in self._apply(event, at_ms):
                facts.append((key, fact))
                if isinstance(fact, WaitOpened):
                    opened.add(fact.wait)
                elif isinstance(fact, WaitClosed) and fact.wait in opened:
                    ended.add(fact.wait)
        return [(key, fact) for key, fact in facts if _wait_of(fact) not in ended]

    def take_changes(self) -> dict[bytes, bytes | None]:
        """The entries that have changed since the last call; None: removed."""
        changed, self._changed = self._changed, {}
        return {
            FLOW_ENTRY + flow_id.encode(): _entry(self._waits.get(flow_id)) for flow_id in changed
        }

    def load(self, entry_key: bytes, value: bytes) -> None:
        """Load an entry of `take_changes`."""
        self._waits[entry_key.removeprefix(FLOW_ENTRY).decode()] = FlowWait(**orjson.loads(value))

    def _apply(self, event: Mapping[str, Any], at_ms: int) -> Iterator[KeyedFact]:
        flow_id, revision = event["flow_id"], event["revision"]
        known = self._waits.get(flow_id)
        if event["kind"] == EventKind.WAITING:
            wait = event["payload_json"]["wait"]
            if wait["kind"] == EXTERNAL_EVENT:
                new = FlowWait(wait["topic"], wait["correlation_id"], event["id"], revision)
                self._set(flow_id, new)
                yield new.key, WaitOpened(flow_id, event["id"], revision, at_ms)
        elif known is None:
            return
        elif event["status"] != FlowStatus.WAITING:
            self._set(flow_id, None)
            yield known.key, WaitClosed(flow_id, known.wait, revision, event["command_id"])
        elif revision != known.revision:
            self._set(flow_id, FlowWait(*known.key, known.wait, revision))
            yield known.key, WaitMoved(flow_id, known.wait, revision)

    def _set(self, flow_id: str, wait: FlowWait | None) -> None:
        if wait is None:
            del self._waits[flow_id]
        else:
            self._waits[flow_id] = wait
        self._changed[flow_id] = None


def _entry(wait: FlowWait | None) -> bytes | None:
    return None if wait is None else orjson.dumps(wait)


def _wait_of(fact: SignalFact) -> int | None:
    return fact.wait if isinstance(fact, WaitOpened | WaitMoved | WaitClosed) else None
