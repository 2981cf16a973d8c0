"""FlowEventStream: the SDK's stream of a task's events, from the audit."""

import operator
import sys
from bisect import bisect_left
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import orjson
from a2a.server.cluster import TaskEventStream, TaskVersion, VersionedEvent
from a2a.utils.errors import InternalError

from processor.a2a.documents import SavedEvent, event_after, flow_id_of, version_of
from processor.client import AuditStream, CurrentFlow, CurrentFlows, fold
from processor.contract import parse_timestamp

RECENT_EVENTS_MAX: Final = 64
"""Events of one task that are kept in memory."""
RECENT_TASKS_MAX: Final = 10_000
RECENT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Size of the recent events of all tasks."""
SUBSCRIBER_EVENTS_MAX: Final = 256
"""Events that wait for one subscriber."""


class StreamEnded(InternalError):
    """A stream that cannot go on. Its subscriber has all events up to number `after`, from which it
    can follow again."""

    def __init__(self, reason: str, after: int) -> None:
        self.after = after
        super().__init__(
            f"{reason} The subscriber has all events up to number {after}. Subscribe again: the "
            "stream begins with the task as it is then.",
            {"after": str(after)},  # metadata of google.rpc.ErrorInfo is text
        )


class SubscriberBehind(StreamEnded):
    """A subscriber took no event while SUBSCRIBER_EVENTS_MAX others came."""

    def __init__(self, after: int) -> None:
        super().__init__(f"The subscriber is {SUBSCRIBER_EVENTS_MAX} events behind.", after)


class _Subscription:
    """The events that a subscriber has not taken yet."""

    def __init__(self) -> None:
        self._events: deque[SavedEvent] = deque()
        self._behind: SubscriberBehind | None = None

    def add(self, event: SavedEvent) -> None:
        if self._behind is None:
            self._events.append(event)
            if len(self._events) > SUBSCRIBER_EVENTS_MAX:
                self._behind = SubscriberBehind(self._events[0].nth - 1)
                self._events.clear()

    def take(self) -> SavedEvent | None:
        """Return the next event; None if there is none yet. Raises SubscriberBehind."""
        if self._behind is not None:
            raise self._behind
        return self._events.popleft() if self._events else None


@dataclass(slots=True)
class _Recent:
    """The newest events of a task, their size, and the version that they follow."""

    after: int
    events: deque[SavedEvent] = field(default_factory=deque)
    size_bytes: int = 0


class _RecentEvents:
    """The newest events of the tasks that changed last, by flow id."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, _Recent] = OrderedDict()
        self._size_bytes = 0

    def get(self, flow_id: str) -> _Recent | None:
        return self._tasks.get(flow_id)

    def add(self, flow_id: str, event: SavedEvent) -> None:
        recent = self._tasks.setdefault(flow_id, _Recent(event.nth - 1))
        self._tasks.move_to_end(flow_id)
        recent.events.append(event)
        self._resize(recent, event.event.ByteSize())
        if len(recent.events) > RECENT_EVENTS_MAX:
            oldest = recent.events.popleft()
            recent.after = oldest.nth
            self._resize(recent, -oldest.event.ByteSize())
        while len(self._tasks) > RECENT_TASKS_MAX or self._size_bytes > RECENT_MAX_BYTES:
            self.forget(next(iter(self._tasks)))

    def forget(self, flow_id: str) -> None:
        recent = self._tasks.pop(flow_id, None)
        if recent is not None:
            self._size_bytes -= recent.size_bytes

    def _resize(self, recent: _Recent, by_bytes: int) -> None:
        recent.size_bytes += by_bytes
        self._size_bytes += by_bytes


class FlowEventStream(TaskEventStream):
    """The events of tasks, each once and in the order of the task's versions.

    An event is the one that `save` got with the task. New and recent events come from `flows`,
    which follows the audit once for all subscribers. Older events are read from `audit`, also by a
    replica that did not run when they happened.

    A subscriber that does not take its events ends with SubscriberBehind, and one whose events can
    no longer be read with StreamEnded.
    """

    def __init__(self, flows: CurrentFlows) -> None:
        self._flows = flows
        self._recent = _RecentEvents()
        self._subscriptions: dict[str, set[_Subscription]] = defaultdict(set)
        flows.listen(self._take)

    async def publish(self, task_id: str, event: VersionedEvent) -> None:
        """Do nothing: an event is written by its save."""

    async def destroy(self, task_id: str) -> None:
        """Do nothing: the audit is kept, and subscribers stop by themselves."""

    async def subscribe(
        self, task_id: str, *, after: TaskVersion
    ) -> AsyncGenerator[VersionedEvent, None]:
        """Yield the events of the task that are newer than `after`, without an end."""
        # The SDK's versions can be compared, and nothing else.
        last = bisect_left(
            range(1, sys.maxsize), True, key=lambda nth: TaskVersion(nth).is_after(after)
        )
        async with aclosing(self.follow(task_id, last)) as events:
            async for event in events:
                yield event

    async def follow(
        self,
        task_id: str,
        after: int,
        until: Callable[[CurrentFlow], bool] = lambda current: False,
    ) -> AsyncGenerator[SavedEvent, None]:
        """Yield the events whose numbers are higher than `after`; end after the present ones once
        `until` holds of the flow. Raises StreamEnded."""
        try:
            async with aclosing(self._events(flow_id_of(task_id), after, until)) as events:
                async for event in events:
                    after = event.nth
                    yield event
        except SubscriberBehind:
            raise
        except Exception as error:
            reason = str(error).rstrip(".") or repr(error)
            raise StreamEnded(f"The audit cannot be followed: {reason}.", after) from error

    async def _events(
        self, flow_id: str, after: int, until: Callable[[CurrentFlow], bool]
    ) -> AsyncGenerator[SavedEvent, None]:
        """As `follow`. Raises what CurrentFlows and AuditStream raise."""
        current = self._flows.get(flow_id)
        recent = self._recent.get(flow_id)
        newer: list[SavedEvent] = []
        if current is not None and version_of(current) > after:
            if recent is None or recent.after > after:
                async with aclosing(self._history(current, after, until)) as history:
                    async for event in history:
                        yield event
                return
            newer = list(recent.events)
        subscription = _Subscription()
        self._subscriptions[flow_id].add(subscription)
        try:
            for event in newer:
                if event.nth > after:
                    after = event.nth
                    yield event
            while True:
                while (found := subscription.take()) is not None:
                    if found.nth > after:
                        after = found.nth
                        yield found
                current = self._flows.get(flow_id)
                if current is None or until(current):
                    return
                await self._flows.until(flow_id, partial(operator.is_not, current))
        finally:
            self._subscriptions[flow_id].discard(subscription)
            if not self._subscriptions[flow_id]:
                del self._subscriptions[flow_id]

    async def _history(
        self, current: CurrentFlow, after: int, until: Callable[[CurrentFlow], bool]
    ) -> AsyncGenerator[SavedEvent, None]:
        """As `_events`, from the flow's creation on, by a separate reader of the audit."""
        flow_id = current.flow.id
        start = datetime.fromtimestamp(parse_timestamp(current.flow.created_at) / 1000, UTC)
        known: CurrentFlow | None = None
        async with AuditStream(self._flows.settings, start=start, flow_id=flow_id) as stream:
            async for record in stream.records():
                event = orjson.loads(record.value)
                if known is None and event["kind"] != "created":
                    continue  # an event of an earlier flow with this id, which was pruned
                before, known = known, fold(known, event)
                if known is None:
                    continue
                versioned = event_after(before, known, event)
                if versioned is not None and versioned.nth > after:
                    yield versioned
                newest = self._flows.get(flow_id)
                if newest is None or (known.last_event_id >= newest.last_event_id and until(known)):
                    return

    def _take(
        self, before: CurrentFlow | None, after: CurrentFlow | None, event: Mapping[str, Any]
    ) -> None:
        flow_id = event["flow_id"]
        versioned = None if after is None else event_after(before, after, event)
        if after is None:
            self._recent.forget(flow_id)
        elif versioned is not None:
            self._recent.add(flow_id, versioned)
            for subscription in self._subscriptions.get(flow_id, ()):
                subscription.add(versioned)
