"""Stream events to clients (server-sent events), of all partitions or of one flow."""

import asyncio
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

import orjson
from aiohttp import web

from processor.contract.values import EVENTS_PER_PARTITION
from processor.engine.partitioner import partition_of
from processor.runtime import end_tasks
from processor.views.database import TooExpensive
from processor.views.models import StreamQuery
from processor.views.pagination import BadCursor, read_vector, vector
from processor.views.peers import PeerFailed, Peers
from processor.views.queries import BadQuery, events_after
from processor.views.read_model import ReadModel

CHUNK: Final = 200
QUEUED_MAX: Final = 400
HEARTBEAT_S: Final = 10.0
PAUSE_S: Final = 0.05
"""Between two looks at the database, so that a stream costs the same however fast events come."""
RETRY_S: Final = 0.5

Item = tuple[int, str | None, Any]
"""Event id, owner, document. Id 0: this source has sent what was there when it began; the document
then says how far that is, by partition, since events that nobody asked for were passed over."""


class EventStreams:
    """All streams of this worker."""

    def __init__(self, view: ReadModel, peers: Peers, partitions: int) -> None:
        self._view = view
        self._peers = peers
        self._partitions = partitions

    async def serve(self, request: web.Request, query: StreamQuery) -> web.StreamResponse:
        """Until the client goes. Raises BadQuery."""
        after = self._start(request, query)
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        ready = False
        # That a client has gone shows when it is written to.
        with self._view.metrics.streams.track_inprogress(), suppress(ConnectionResetError):
            await response.write(b"retry: 1000\n: hello\n\n")
            while True:
                ready = await self._serve_share(response, query, after, ready)
        return response

    def _start(self, request: web.Request, query: StreamQuery) -> dict[int, int]:
        """Where to go on, of the partitions for which somebody says so."""
        last = request.headers.get("Last-Event-ID") or query.last_event_id
        if last is None:
            return {}
        try:
            return read_vector(last)
        except BadCursor:
            raise BadQuery("last_event_id", "it is no id of an event of ours") from None

    async def _serve_share(
        self, response: web.StreamResponse, query: StreamQuery, after: dict[int, int], ready: bool
    ) -> bool:
        """Until the partitions are shared out anew: who was sent nothing more has lost nothing,
        since `after` says how far each is. Whether `ready` was sent."""
        queue: asyncio.Queue[Item] = asyncio.Queue(QUEUED_MAX)
        wanted = (
            set(range(self._partitions))
            if query.flow is None
            else {partition_of(query.flow.encode(), self._partitions)}
        )
        sources = [asyncio.ensure_future(self._local(queue, query, after, wanted))]
        if query.scope == "all":
            sources += [
                asyncio.ensure_future(self._remote(url, theirs, queue, query, after))
                for url, theirs in self._peers.others().items()
                if theirs & wanted
            ]
        waited = len(sources)
        again = asyncio.ensure_future(self._view.reassigned.wait())
        try:
            while not again.done():
                item = await _next(queue, again)
                if item is None:
                    if not again.done():
                        await response.write(b": still here\n\n")
                    continue
                event_id, owner, doc = item
                if event_id:
                    partition = event_id // EVENTS_PER_PARTITION
                    if event_id <= after.get(partition, 0):
                        continue
                    after[partition] = event_id
                    data = orjson.dumps({"event": doc, "owner": owner})
                    await response.write(_event("event", after, data))
                    continue
                for partition, at in doc.items():
                    after[partition] = max(after.get(partition, 0), at)
                waited -= 1
                if waited == 0 and not ready:
                    ready = True
                    await response.write(_event("ready", after, b"{}"))
        finally:
            await end_tasks(*sources, again)
        return ready

    async def _local(
        self,
        queue: "asyncio.Queue[Item]",
        query: StreamQuery,
        after: dict[int, int],
        wanted: Collection[int],
    ) -> None:
        view = self._view
        ours = sorted(view.owned & set(wanted))
        for partition in ours:
            first = partition * EVENTS_PER_PARTITION
            now = first if query.since == "beginning" else view.position(partition).event_id
            after.setdefault(partition, now)
        looked = {partition: after[partition] for partition in ours}
        goal = {partition: view.position(partition).event_id for partition in ours}
        told = False
        while True:
            for partition in ours:
                upto = view.position(partition).event_id
                while looked[partition] < upto:
                    try:
                        rows, looked[partition] = await events_after(
                            view.database,
                            partition,
                            looked[partition],
                            upto,
                            flow_id=query.flow,
                            owner=query.owner,
                            limit=CHUNK,
                        )
                    except TooExpensive:
                        await asyncio.sleep(RETRY_S)
                        continue
                    for event_id, owner, doc in rows:
                        await queue.put((event_id, owner, orjson.Fragment(doc)))
            if not told and all(looked[p] >= goal[p] for p in ours):
                told = True
                await queue.put((0, None, dict(looked)))
            await asyncio.sleep(PAUSE_S)
            if all(view.position(p).event_id <= looked[p] for p in ours):
                await view.changed.wait()

    async def _remote(
        self,
        url: str,
        theirs: Collection[int],
        queue: "asyncio.Queue[Item]",
        query: StreamQuery,
        after: dict[int, int],
    ) -> None:
        told = False
        while True:
            parameters = {"scope": "local", "since": query.since}
            if query.flow is not None:
                parameters["flow"] = query.flow
            if query.owner is not None:
                parameters["owner"] = query.owner
            if after:
                parameters["last_event_id"] = vector(after)
            try:
                async with self._peers.stream(url, "/v1/stream", parameters) as events:
                    async for name, event_id, data in events:
                        if name == "event":
                            value = orjson.loads(data)
                            event = value["event"]
                            await queue.put((event["id"], value["owner"], event))
                        elif name == "ready" and not told:
                            told = True
                            await queue.put((0, None, _of(theirs, read_vector(event_id))))
            except (PeerFailed, BadCursor, ValueError, KeyError):
                pass
            await asyncio.sleep(RETRY_S)


async def _next(queue: "asyncio.Queue[Item]", again: "asyncio.Future[None]") -> Item | None:
    """None: nothing came for HEARTBEAT_S, or `again` is done."""
    if not queue.empty():
        return queue.get_nowait()
    getting = asyncio.ensure_future(queue.get())
    try:
        both: set[asyncio.Future[Any]] = {getting, again}
        await asyncio.wait(both, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        return getting.result() if getting.done() else None
    finally:
        await end_tasks(getting)


def _of(partitions: Collection[int], positions: dict[int, int]) -> dict[int, int]:
    return {partition: at for partition, at in positions.items() if partition in partitions}


def _event(name: str, after: dict[int, int], data: bytes) -> bytes:
    return b"event: %b\nid: %b\ndata: %b\n\n" % (name.encode(), vector(after).encode(), data)
