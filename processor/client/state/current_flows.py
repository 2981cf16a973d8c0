"""CurrentFlows: present flows with their steps, in memory, kept up to date from the audit."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

from processor.client.audit_stream import AuditStream
from processor.client.connection import connect
from processor.contract import Topics
from processor.contract.state import CURSOR_PREFIX
from processor.domain.evolve import STEP_KIND_NAMES, evolve, evolve_step
from processor.domain.flow import Flow, read_flow
from processor.domain.step import Step, read_step
from processor.engine.codec import Record, fact_of
from processor.runtime import end_tasks
from processor.settings import Settings, load_settings

POLL_WAIT_S: Final = 0.5

_log = logging.getLogger(__name__)
_CURSOR: Final = CURSOR_PREFIX.encode()


@dataclass(frozen=True, slots=True)
class CurrentFlow:
    """A flow after its newest event; `steps` by run id. Read-only."""

    flow: Flow
    steps: Mapping[str, Step]
    last_event_id: int


Listener = Callable[[CurrentFlow | None, CurrentFlow | None, Mapping[str, Any]], None]
"""Called after each event of a flow that is kept: the flow before it (None: created), the flow
after it (None: pruned), and the FlowEvent as JSON."""


def fold(current: CurrentFlow | None, event: Mapping[str, Any]) -> CurrentFlow | None:
    """Return the flow after `event`, a FlowEvent as JSON; None once it is pruned."""
    fact = fact_of(event)
    flow = evolve(None if current is None else current.flow, fact)
    if flow is None:
        return None
    steps = {} if current is None or event["kind"] == "created" else current.steps
    if event["kind"] in STEP_KIND_NAMES:
        payload = event["payload_json"]
        run_id = payload["step"]["run_id"] if "step" in payload else payload["run_id"]
        steps = {**steps, run_id: evolve_step(steps.get(run_id), fact)}
    return CurrentFlow(flow, steps, event["id"])


class CurrentFlows:
    """The flows that `keep` selects, with their steps; an async context manager.

    Entering reads `state` once, from its beginning to its end, and then follows `audit`. Each event
    after a flow's snapshot is applied exactly once, in the order of its partition. The flows are a
    little behind the newest outcome; `until` waits. Nothing is kept on disk: memory and the time to
    start grow with the topic `state`.

    `keep` is called once for each flow, and must depend only on fields that never change: id,
    controller, owner, origin and goal. `settings`: from the environment if None.

    Entering raises what AuditStream raises; so do `get` and `until` once following has failed.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        keep: Callable[[Flow], bool] = lambda flow: True,
    ) -> None:
        self.settings = settings = settings or load_settings()
        self._keep = keep
        self._topic = Topics(settings.topic_prefix).state
        self._connection = connect(settings)
        self._audit = AuditStream(settings, start="end")
        self._flows: dict[str, CurrentFlow] = {}
        self._listeners: list[Listener] = []
        self._waiting: dict[str, list[asyncio.Future[None]]] = defaultdict(list)
        self._following: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        # In this order: events written meanwhile are read twice, but none is missed.
        await self._audit.__aenter__()
        try:
            await self._read_state()
        except BaseException:
            await self._audit.__aexit__(None, None, None)
            raise
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._following is not None:
            await end_tasks(self._following)
        await self._audit.__aexit__(None, None, None)

    def get(self, flow_id: str) -> CurrentFlow | None:
        """Return the flow; None if there is none yet, or it was pruned."""
        if self._failure is not None:
            raise self._failure
        return self._flows.get(flow_id)

    def __iter__(self) -> Iterator[CurrentFlow]:
        return iter(list(self._flows.values()))

    def listen(self, listener: Listener) -> None:
        """Call `listener` for each event from now on; what it raises is logged."""
        self._listeners.append(listener)

    async def until(
        self, flow_id: str, wanted: Callable[[CurrentFlow | None], bool]
    ) -> CurrentFlow | None:
        """Return the flow as soon as `wanted` holds of it. Bound it with `asyncio.timeout`."""
        while not wanted(current := self.get(flow_id)):
            future = asyncio.get_running_loop().create_future()
            futures = self._waiting[flow_id]
            futures.append(future)
            try:
                await future
            finally:
                futures.remove(future)
                if not futures:
                    self._waiting.pop(flow_id, None)
        return current

    async def _read_state(self) -> None:
        reader = self._connection.reader(self._topic)
        flows: dict[str, Mapping[str, Any]] = {}
        steps: dict[str, dict[str, bytes]] = defaultdict(dict)
        try:
            count = (await self._connection.count_partitions([self._topic]))[self._topic]
            ends = await reader.open(range(count), "beginning")
            while any(reader.positions[p] < end for p, end in ends.items()):
                for record in await reader.poll(wait_s=POLL_WAIT_S):
                    self._take(record, flows, steps)
        finally:
            await reader.close()
        for flow_id, snapshot in flows.items():
            self._flows[flow_id] = CurrentFlow(
                read_flow(snapshot["flow"]),
                {
                    run_id: read_step(orjson.loads(value)["step"])
                    for run_id, value in steps[flow_id].items()
                },
                snapshot["last_event_id"],
            )

    def _take(
        self,
        record: Record,
        flows: dict[str, Mapping[str, Any]],
        steps: dict[str, dict[str, bytes]],
    ) -> None:
        key, value = record.key or b"", record.value
        if key.startswith(_CURSOR):
            return
        flow_id, slash, run_id = key.decode().partition("/")
        if slash:
            if value is None:
                steps[flow_id].pop(run_id, None)
            else:
                steps[flow_id][run_id] = value
        elif value is None:
            flows.pop(flow_id, None)
        else:
            snapshot = orjson.loads(value)
            if self._keep(read_flow(snapshot["flow"])):
                flows[flow_id] = snapshot

    async def _follow(self) -> None:
        try:
            async for record in self._audit.records():
                self._apply(orjson.loads(record.value))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            _log.error("flows are no longer followed: %s", error)
            self._failure = error
            for futures in self._waiting.values():
                for future in futures:
                    if not future.done():
                        future.set_exception(error)

    def _apply(self, event: Mapping[str, Any]) -> None:
        flow_id = event["flow_id"]
        before = self._flows.get(flow_id)
        if before is None:
            if event["kind"] != "created":
                return
        elif event["id"] <= before.last_event_id:
            return
        after = fold(before, event)
        if after is None:
            del self._flows[flow_id]
        elif before is None and not self._keep(after.flow):
            return
        else:
            self._flows[flow_id] = after
        for listener in self._listeners:
            try:
                listener(before, after, event)
            except Exception:  # any producer may write what a listener cannot make sense of
                _log.exception("event %s of flow %s has no effect here", event["id"], flow_id)
        for future in self._waiting.get(flow_id, ()):
            if not future.done():
                future.set_result(None)
