"""Serve an aiohttp application, for those who may ask it, within limits."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from processor.errors import TaskflowError
from processor.settings import Address
from processor.telemetry.http.hosts import HostPolicy
from processor.telemetry.http.internals import ConnectionPool, HttpConnection, too_large_head
from processor.telemetry.http.limits import HttpLimits
from processor.telemetry.http.problem import HEADERS, ProblemError

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
ToProblem = Callable[[Exception], ProblemError]
BACKLOG = 512
_log = logging.getLogger(__name__)


class AddressInUse(TaskflowError):
    """Another process listens at the address; the server was not started."""


@asynccontextmanager
async def listening(
    app: web.Application,
    address: Address,
    otherwise: str,
    *,
    limits: HttpLimits,
    hosts: HostPolicy,
    problem_of: ToProblem | None = None,
) -> AsyncIterator[Address]:
    """Serve `app` until the block ends; the address that is really listened on.

    `problem_of`: what an exception of the application means to its clients. Raises AddressInUse;
    `otherwise`: what to set then, and to what.
    """
    app.on_response_prepare.append(_protect)
    # A handler ends with its client: nothing is looked up for one that has left.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5, handler_cancellation=True)
    await runner.setup()
    try:
        server = runner.server
        assert server is not None
        server.request_handler = _guarded(
            server.request_handler, limits, hosts, problem_of or default_problem_of
        )
        site = _Site(runner, address, ConnectionPool(limits))
        try:
            await site.start()
        except OSError as error:
            raise AddressInUse(
                f"Cannot listen on {address} ({error.strerror or error}); set {otherwise}."
            ) from None
        host, port, *_ = runner.addresses[0]
        bound = Address(host, port)
        hosts.allow(address.host)
        yield bound
    finally:
        await runner.cleanup()


class _Site(web.BaseSite):
    """Listens at one address, with connections of ours."""

    def __init__(self, runner: web.AppRunner, address: Address, pool: ConnectionPool) -> None:
        super().__init__(runner, backlog=BACKLOG)
        self._address = address
        self._pool = pool

    @property
    def name(self) -> str:
        return f"http://{self._address}"

    async def start(self) -> None:
        await super().start()
        loop = asyncio.get_running_loop()
        server = self._runner.server
        assert server is not None
        self._server = await loop.create_server(
            lambda: HttpConnection(self._pool, server, loop),
            self._address.host,
            self._address.port,
            backlog=self._backlog,
        )


def _guarded(
    handler: Handler, limits: HttpLimits, hosts: HostPolicy, problem_of: ToProblem
) -> Handler:
    """`handler` for requests that are let in; a problem document for all others and all errors."""

    async def guarded(request: web.BaseRequest) -> web.StreamResponse:
        connection = request.protocol
        assert isinstance(connection, HttpConnection)
        connection.works()
        try:
            hosts.check(request)
            _check_sizes(request, limits)
            return await handler(request)
        except ConnectionError:
            raise
        except web.HTTPException as error:
            if error.status < 400:
                raise
            return problem_of_http(error).response()
        except ProblemError as problem:
            return problem.response()
        except Exception as error:
            return problem_of(error).response()

    return guarded


def _check_sizes(request: web.BaseRequest, limits: HttpLimits) -> None:
    if sum(len(name) + len(value) + 4 for name, value in request.raw_headers) > limits.head_bytes:
        raise too_large_head(limits)
    if (request.content_length or 0) > limits.body_bytes:
        raise too_large_body(limits.body_bytes)
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ProblemError("unsupported_media_type", "Send the body as it is, without an encoding.")


async def read_body(request: web.BaseRequest, limits: HttpLimits) -> bytes:
    """The body of a request. Raises ProblemError: too large, too late, or broken."""
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_s):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > limits.body_bytes:
                    raise too_large_body(limits.body_bytes)
    except TimeoutError:
        raise ProblemError(
            "request_timeout", f"A body may take {limits.body_s:g} seconds."
        ) from None
    except web.RequestPayloadError:
        raise ProblemError("bad_request", "The body is not framed as its headers say.") from None
    return bytes(body)


def too_large_body(limit_bytes: int) -> ProblemError:
    return ProblemError("too_large", f"A body has at most {limit_bytes} bytes here.")


def problem_of_http(error: web.HTTPException) -> ProblemError:
    """The problem document for an error of aiohttp's own."""
    match error:
        case web.HTTPNotFound():
            return ProblemError("not_found", "There is nothing at this path.")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return ProblemError(
                "method_not_allowed", f"This path takes {allowed}.", headers={"Allow": allowed}
            )
        case web.HTTPExpectationFailed():
            return ProblemError("expectation_failed", "Only `Expect: 100-continue` is understood.")
        case web.HTTPRequestEntityTooLarge():
            return ProblemError("too_large", "The body is too large.")
    return ProblemError("bad_request", f"{error.reason}.")


def default_problem_of(error: Exception) -> ProblemError:
    _log.error("a request failed", exc_info=error)
    return ProblemError("internal_error", "The log of the server says more.")


async def _protect(_: web.Request, response: web.StreamResponse) -> None:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
