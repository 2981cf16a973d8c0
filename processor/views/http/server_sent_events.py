"""Stream events to clients (server-sent events), of all partitions or of one flow."""

import asyncio
from collections import deque
from collections.abc import Collection
from contextlib import suppress
from typing import Any, Final

import orjson
from aiohttp import web

from processor.contract.values import EVENTS_PER_PARTITION
from processor.engine.partitioner import partition_of
from processor.runtime import end_tasks
from processor.telemetry.http.problem import ProblemError
from processor.views.access.peer_key import RESPONSE, Exchange
from processor.views.access.readers import exchange_of
from processor.views.http.pagination import BadCursor, read_vector, vector
from processor.views.http.parameters import StreamQuery
from processor.views.model.positions import Positions
from processor.views.model.read_model import ReadModel
from processor.views.model.reader_pool import Overloaded, TooExpensive
from processor.views.query.peers import PeerFailed, Peers
from processor.views.query.queries import events_after

CHUNK: Final = 200
CHUNK_BYTES: Final = 64 * 1024
"""Of the events that are read at once, and of those that wait for the client."""
HEARTBEAT_S: Final = 10.0
PAUSE_S: Final = 0.05
"""Between two looks at the database, so that a stream costs the same however fast events come."""
RETRY_S: Final = 0.5

Item = tuple[int, str | None, Any]
"""Event id, owner, document. Id 0: this source has sent what was there when it began; the document
then says how far that is, by partition, since events outside of the filter were passed over."""


class StreamQueue:
    """Items of `limit_bytes` together, or a single larger one."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._items: deque[tuple[Item, int]] = deque()
        self._bytes = 0
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._items)

    async def put(self, item: Item, size_bytes: int) -> None:
        """Waits for room."""
        while self._items and self._bytes + size_bytes > self._limit_bytes:
            self._room.clear()
            await self._room.wait()
        self._items.append((item, size_bytes))
        self._bytes += size_bytes
        self._arrived.set()

    async def arrived(self) -> None:
        """Return once there is an item."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()

    def take(self) -> Item:
        item, size_bytes = self._items.popleft()
        self._bytes -= size_bytes
        self._room.set()
        return item


class EventWriter:
    """Writes events to a client; for another view worker, each with a code."""

    def __init__(self, response: web.StreamResponse, exchange: Exchange | None) -> None:
        self._response = response
        self._exchange = exchange
        self._sequence = 0

    async def write(self, name: str, event_id: str, data: bytes) -> None:
        lines = b"event: %b\nid: %b\ndata: %b\n" % (name.encode(), event_id.encode(), data)
        if self._exchange is not None:
            code = self._exchange.event_code(self._sequence, name, event_id, data)
            lines += b"code: %b\n" % code.encode()
        self._sequence += 1
        await self._response.write(lines + b"\n")

    async def comment(self, text: bytes) -> None:
        await self._response.write(b": %b\n\n" % text)


class EventStreams:
    """All streams of this worker, at most `streams_max` beside those of other workers."""

    def __init__(self, view: ReadModel, peers: Peers, partitions: int, *, streams_max: int) -> None:
        self._view = view
        self._peers = peers
        self._partitions = partitions
        self._positions = Positions(partitions)
        self._streams_max = streams_max
        self._open = 0

    async def serve(self, request: web.Request, query: StreamQuery) -> web.StreamResponse:
        """Until the client leaves. Raises BadQuery, and ProblemError if too many are open."""
        last = request.headers.get("Last-Event-ID") or query.last_event_id
        after = self._positions.of_stream(last)
        exchange = exchange_of(request)
        # Another worker opens one for each of its own.
        counted = exchange is None
        if counted and self._open >= self._streams_max:
            raise ProblemError("busy", f"All {self._streams_max} streams are taken.")
        self._open += counted
        try:
            return await self._serve(request, query, after, exchange)
        finally:
            self._open -= counted

    async def _serve(
        self,
        request: web.Request,
        query: StreamQuery,
        after: dict[int, int],
        exchange: Exchange | None,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-store",
                "X-Accel-Buffering": "no",
            }
        )
        if exchange is not None:
            response.headers[RESPONSE] = exchange.sign(200, b"")
        await response.prepare(request)
        writer = EventWriter(response, exchange)
        ready = False
        # That a client has gone shows when it is written to.
        with self._view.metrics.streams.track_inprogress(), suppress(ConnectionError):
            await response.write(b"retry: 1000\n: hello\n\n")
            while True:
                ready = await self._serve_share(writer, query, after, ready)
        return response

    async def _serve_share(
        self, writer: EventWriter, query: StreamQuery, after: dict[int, int], ready: bool
    ) -> bool:
        """Until the partitions are shared out again: who was sent nothing more has lost nothing,
        since `after` says how far each is. Whether `ready` was sent."""
        queue = StreamQueue(CHUNK_BYTES)
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
                        await writer.comment(b"still here")
                    continue
                event_id, owner, doc = item
                if event_id:
                    partition = event_id // EVENTS_PER_PARTITION
                    if event_id <= after.get(partition, 0):
                        continue
                    after[partition] = event_id
                    data = orjson.dumps({"event": doc, "owner": owner})
                    await writer.write("event", vector(after), data)
                    continue
                for partition, at in doc.items():
                    after[partition] = max(after.get(partition, 0), at)
                waited -= 1
                if waited == 0 and not ready:
                    ready = True
                    await writer.write("ready", vector(after), b"{}")
        finally:
            await end_tasks(*sources, again)
        return ready

    async def _local(
        self,
        queue: StreamQueue,
        query: StreamQuery,
        after: dict[int, int],
        wanted: Collection[int],
    ) -> None:
        view = self._view
        ours = sorted(view.own_partitions & set(wanted))
        for partition in ours:
            first = partition * EVENTS_PER_PARTITION
            now = first if query.since == "beginning" else view.position(partition).event_id
            after.setdefault(partition, now)
        looked = {partition: after[partition] for partition in ours}
        goal = {partition: view.position(partition).event_id for partition in ours}
        announced = False
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
                            limit_bytes=CHUNK_BYTES,
                        )
                    except (TooExpensive, Overloaded):
                        await asyncio.sleep(RETRY_S)
                        continue
                    for event_id, owner, doc in rows:
                        await queue.put((event_id, owner, orjson.Fragment(doc)), len(doc))
            if not announced and all(looked[p] >= goal[p] for p in ours):
                announced = True
                await queue.put((0, None, dict(looked)), 0)
            await asyncio.sleep(PAUSE_S)
            if all(view.position(p).event_id <= looked[p] for p in ours):
                await view.changed.wait()

    async def _remote(
        self,
        url: str,
        theirs: Collection[int],
        queue: StreamQueue,
        query: StreamQuery,
        after: dict[int, int],
    ) -> None:
        announced = False
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
                            item = (event["id"], value["owner"], event)
                            await queue.put(item, len(data))
                        elif name == "ready" and not announced:
                            announced = True
                            await queue.put((0, None, _of(theirs, read_vector(event_id))), 0)
            except (PeerFailed, BadCursor, ValueError, KeyError):
                pass
            await asyncio.sleep(RETRY_S)


async def _next(queue: StreamQueue, again: "asyncio.Future[None]") -> Item | None:
    """None: nothing came for HEARTBEAT_S, or `again` is done."""
    if not queue:
        arrived = asyncio.ensure_future(queue.arrived())
        try:
            both: set[asyncio.Future[Any]] = {arrived, again}
            await asyncio.wait(both, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(arrived)
    return queue.take() if queue else None


def _of(partitions: Collection[int], positions: dict[int, int]) -> dict[int, int]:
    return {partition: at for partition, at in positions.items() if partition in partitions}
