"""FlowEventStream: the SDK's stream of a task's events, from the audit."""

import asyncio
from collections import OrderedDict, defaultdict, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import orjson
from a2a.server.cluster import TaskEventStream, TaskVersion, VersionedEvent

from processor.a2a.documents import SavedEvent, event_after, flow_id_of, version_of
from processor.client import AuditStream, CurrentFlow, CurrentFlows, fold
from processor.contract import parse_timestamp

RECENT_EVENTS_MAX: Final = 64
RECENT_TASKS_MAX: Final = 10_000


@dataclass(slots=True)
class _Recent:
    """The newest events of a task, and the version that they follow."""

    after: int
    events: deque[SavedEvent] = field(default_factory=deque)

    def add(self, event: SavedEvent) -> None:
        self.events.append(event)
        if len(self.events) > RECENT_EVENTS_MAX:
            self.after = self.events.popleft().nth


class FlowEventStream(TaskEventStream):
    """The events of tasks, each once and in the order of the task's versions.

    An event is the one that `save` got with the task. New and recent events come from `flows`,
    which follows the audit once for all subscribers. Older events are read from `audit`, also by a
    replica that did not run when they happened.
    """

    def __init__(self, flows: CurrentFlows) -> None:
        self._flows = flows
        self._recent: OrderedDict[str, _Recent] = OrderedDict()
        self._queues: dict[str, set[asyncio.Queue[SavedEvent | None]]] = defaultdict(set)
        flows.listen(self._take)

    async def publish(self, task_id: str, event: VersionedEvent) -> None:
        """Do nothing: an event is written by its save."""

    async def destroy(self, task_id: str) -> None:
        """Do nothing: the audit is kept, and subscribers stop by themselves."""

    async def subscribe(
        self, task_id: str, *, after: TaskVersion
    ) -> AsyncGenerator[VersionedEvent, None]:
        """Yield the events of the task that are newer than `after`, without an end."""
        async with aclosing(self.follow(task_id, after)) as events:
            async for event in events:
                yield event

    async def follow(
        self,
        task_id: str,
        after: TaskVersion,
        until: Callable[[CurrentFlow], bool] = lambda current: False,
    ) -> AsyncGenerator[SavedEvent, None]:
        """As `subscribe`, but end after the present events once `until` holds of the flow."""
        flow_id = flow_id_of(task_id)
        current = self._flows.get(flow_id)
        recent = self._recent.get(flow_id)
        last = after
        newer: list[SavedEvent] = []
        if current is not None and TaskVersion(version_of(current)).is_after(after):
            if recent is None or TaskVersion(recent.after).is_after(after):
                async with aclosing(self._history(current, after, until)) as history:
                    async for event in history:
                        yield event
                return
            newer = list(recent.events)
        queue: asyncio.Queue[SavedEvent | None] = asyncio.Queue()
        self._queues[flow_id].add(queue)
        try:
            for event in newer:
                if event.version.is_after(last):
                    last = event.version
                    yield event
            while True:
                current = self._flows.get(flow_id)
                if queue.empty() and (current is None or until(current)):
                    return
                found = await queue.get()
                if found is not None and found.version.is_after(last):
                    last = found.version
                    yield found
        finally:
            self._queues[flow_id].discard(queue)
            if not self._queues[flow_id]:
                del self._queues[flow_id]

    async def _history(
        self,
        current: CurrentFlow,
        after: TaskVersion,
        until: Callable[[CurrentFlow], bool],
    ) -> AsyncGenerator[SavedEvent, None]:
        """As `follow`, from the flow's creation on, by a separate reader of the audit."""
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
                if versioned is not None and versioned.version.is_after(after):
                    yield versioned
                newest = self._flows.get(flow_id)
                if newest is None or (known.last_event_id >= newest.last_event_id and until(known)):
                    return

    def _take(
        self, before: CurrentFlow | None, after: CurrentFlow | None, event: Mapping[str, Any]
    ) -> None:
        flow_id = event["flow_id"]
        versioned = None if after is None else event_after(before, after, event)
        if versioned is not None:
            recent = self._recent.get(flow_id)
            if recent is None:
                recent = self._recent[flow_id] = _Recent(versioned.nth - 1)
                if len(self._recent) > RECENT_TASKS_MAX:
                    self._recent.popitem(last=False)
            recent.add(versioned)
        for queue in self._queues.get(flow_id, ()):
            queue.put_nowait(versioned)
