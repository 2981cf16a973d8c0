"""Connections of aiohttp's server, held to limits. The one module that overrides its internals.

aiohttp 3.14 limits lines, headers and idle time only; it answers what it cannot parse in plain
text, logs a client's mistake with a traceback, and waits without end for a client that does not
read.
"""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any, Final, cast

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from processor.telemetry.http.limits import HttpLimits
from processor.telemetry.http.problem import ProblemError

EVICTED_AFTER_S: Final = 1.0
"""A response must have waited so long for its client before the connection makes room."""

_log = logging.getLogger(__name__)


class ConnectionPool:
    """The open connections of a server.

    One more than `limits.connections` closes the oldest that has sent no whole request yet, else
    the one that has been idle for longest, else one whose client does not read; else it is refused.
    """

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self._limit = limits.connections_now
        # Dictionaries for the sake of their order: the oldest is the first.
        self._open: dict[HttpConnection, None] = {}
        self._fresh: dict[HttpConnection, None] = {}
        self._idle: dict[HttpConnection, None] = {}
        self._stalled: dict[HttpConnection, float] = {}

    def __len__(self) -> int:
        return len(self._open)

    def admit(self, connection: "HttpConnection") -> bool:
        """Take a connection in; False: there is no room."""
        if len(self._open) >= self._limit:
            if (victim := self._victim()) is None:
                return False
            victim.drop()
            self.forget(victim)
        self._open[connection] = self._fresh[connection] = None
        return True

    def _victim(self) -> "HttpConnection | None":
        for candidates in (self._fresh, self._idle):
            if candidates:
                return next(iter(candidates))
        for connection, since_s in self._stalled.items():
            return connection if time.monotonic() - since_s > EVICTED_AFTER_S else None
        return None

    def works(self, connection: "HttpConnection") -> None:
        """A request of the connection has begun."""
        self._fresh.pop(connection, None)
        self._idle.pop(connection, None)

    def rests(self, connection: "HttpConnection") -> None:
        """Its response is written."""
        if connection in self._open:
            self._idle[connection] = None

    def stalls(self, connection: "HttpConnection") -> None:
        """Its client does not read; the longest wait is ended where too much waits."""
        self._stalled[connection] = time.monotonic()
        unsent = sum(one.unsent_bytes for one in self._stalled)
        while unsent > self.limits.unsent_bytes:
            longest = next(iter(self._stalled))
            unsent -= longest.unsent_bytes
            self._stalled.pop(longest)
            longest.drop()

    def flows(self, connection: "HttpConnection") -> None:
        self._stalled.pop(connection, None)

    def forget(self, connection: "HttpConnection") -> None:
        for group in (self._open, self._fresh, self._idle, self._stalled):
            group.pop(connection, None)


class HttpConnection(web.RequestHandler):
    """One connection: aiohttp's, with deadlines, a place in the pool, and problem documents."""

    def __init__(
        self, pool: ConnectionPool, server: web.Server, loop: asyncio.AbstractEventLoop
    ) -> None:
        limits = pool.limits
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.idle_s,
            lingering_time=limits.linger_s,
            max_line_size=limits.line_bytes,
            max_field_size=limits.line_bytes,
            max_headers=limits.headers,
            auto_decompress=False,
            access_log=None,  # type: ignore[arg-type]  # its own way to switch it off
            logger=_log,
        )
        self._pool = pool
        self._limits = limits
        self._body: StreamReader = EMPTY_PAYLOAD
        """Of the last request whose headers are here."""
        self._head_bytes = 0
        """Of a request whose headers are not all here."""
        self._line_bytes: int | None = 0
        """Of its request line as far as it is here; None: all of it, and it is not too long."""
        self._line_too_long = False
        self._unreadable = False
        """Whether what the client sends makes no sense any more."""
        self._head_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None

    @property
    def unsent_bytes(self) -> int:
        return 0 if self.transport is None else self.transport.get_write_buffer_size()

    def works(self) -> None:
        self._pool.works(self)

    def drop(self) -> None:
        """Close it now, whatever is unsent."""
        self._force_close = True
        if self.transport is not None:
            self.transport.abort()

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._pool.admit(self):
            self._force_close = True
            refusing = cast(asyncio.Transport, transport)
            refusing.write(ProblemError("busy", "All connections are taken.").closing_bytes())
            refusing.close()
            return
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._pool.forget(self)
        for timer in (self._head_timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._unreadable:
            return
        before = self._request_count
        in_head = self._body.is_eof() and not self._force_close
        if in_head:
            self._count(data)
        super().data_received(data)  # with no data, it goes on with what it has kept
        if self._request_count != before:
            self._body = self._messages[-1][1] if self._messages else EMPTY_PAYLOAD
            self._line_too_long = (self._line_bytes or 0) > self._limits.line_bytes
            self._head_bytes, self._line_bytes = 0, 0
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None
        elif in_head and data:
            if self._head_bytes > self._limits.head_bytes:
                self._refuse(too_large_head(self._limits))
            elif self._head_timer is None:
                self._await_head()

    def pause_writing(self) -> None:
        super().pause_writing()
        limits = self._limits
        patience_s = limits.stall_s + self.unsent_bytes / limits.stall_bytes_s
        self._stall_timer = self._loop.call_later(patience_s, self.drop)
        self._pool.stalls(self)

    def resume_writing(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
        self._pool.flows(self)
        super().resume_writing()

    # What aiohttp calls

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        try:
            return await super().finish_response(request, resp, start_time)
        finally:
            if isinstance(resp, web.Response):
                resp.body = None  # aiohttp keeps the response until the connection's next request
            self._pool.rests(self)
            if self._unreadable:
                await self._linger()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What cannot be parsed is the client's mistake, and no error of ours."""
        if request.writer.output_size > 0 or isinstance(exc, ConnectionError):
            raise ConnectionError("the client has left, or has a part of the response")
        response = self._problem_of(exc).response()
        response.force_close()
        self._unreadable = True
        return response

    def _problem_of(self, exc: BaseException | None) -> ProblemError:
        if isinstance(exc, LineTooLong):
            if self._line_too_long:
                return ProblemError(
                    "uri_too_long", f"A request line has at most {self._limits.line_bytes} bytes."
                )
            return too_large_head(self._limits)
        if isinstance(exc, BadHttpMessage):
            if str(exc.args[0]).startswith("Too many headers"):
                return too_large_head(self._limits)
            return ProblemError("bad_request", "This is no valid HTTP/1.1 request.")
        _log.error("a request failed", exc_info=exc)
        return ProblemError("internal_error", "The log of the server says more.")

    # Deadlines

    def _count(self, data: bytes) -> None:
        self._head_bytes += len(data)
        if self._line_bytes is not None:
            end = data.find(b"\n")
            self._line_bytes += len(data) if end < 0 else end
            if end >= 0 and self._line_bytes <= self._limits.line_bytes:
                self._line_bytes = None

    def _await_head(self) -> None:
        self._head_timer = self._loop.call_later(self._limits.head_s, self._head_is_late)

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            self._refuse(
                ProblemError(
                    "request_timeout", f"Headers may take {self._limits.head_s:g} seconds."
                )
            )
        else:
            self.force_close()

    def _refuse(self, problem: ProblemError) -> None:
        """Answer a request whose headers are not all here, and close."""
        self._unreadable = True
        waits: asyncio.Future[Any] | None = self._waiter
        if waits is None or waits.done() or self.transport is None:
            self.force_close()  # in the middle of another response
            return
        self.transport.write(problem.closing_bytes())
        self._end_writing()
        self._loop.call_later(self._limits.linger_s, self.force_close)

    async def _linger(self) -> None:
        """Give a client that is still sending the time to read the response: closing at once would
        take it away from it. Ended with the connection."""
        self._end_writing()
        await asyncio.sleep(self._limits.linger_s)

    def _end_writing(self) -> None:
        if self.transport is not None and self.transport.can_write_eof():
            with suppress(OSError, RuntimeError):
                self.transport.write_eof()


def too_large_head(limits: HttpLimits) -> ProblemError:
    return ProblemError(
        "headers_too_large",
        f"A request has at most {limits.headers} headers, each of at most {limits.line_bytes} "
        f"bytes, and {limits.head_bytes} bytes of them in all.",
    )
