"""The requests that are answered: those with the read token or of the other view workers."""

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import SecretStr

from processor.telemetry.http.problem import ProblemError
from processor.telemetry.http.tokens import carries
from processor.views.access.peer_key import QUESTION, RESPONSE, Exchange, ForgedError
from processor.views.http.problem_details import problem_of
from processor.views.query.peers import Peers

_EXCHANGE: Final = web.RequestKey("exchange", Exchange)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Readers:
    """`token`: what readers must send, if any. `peers`: with our address and key."""

    def __init__(self, token: SecretStr | None, peers: Peers) -> None:
        self._token = None if token is None else token.get_secret_value()
        self._peers = peers

    def check(self, request: web.Request) -> None:
        """Raises ProblemError unless the request may be answered from the views."""
        if not self.may_read(request):
            raise ProblemError("unauthorized", "Send the read token as `Authorization: Bearer …`.")

    def may_read(self, request: web.Request) -> bool:
        return (
            self._token is None or exchange_of(request) is not None or carries(request, self._token)
        )

    @property
    def middleware(self) -> Middleware:
        """Admits the questions of other workers, and signs what they are answered."""

        @web.middleware
        async def admit(request: web.Request, handler: _Handler) -> web.StreamResponse:
            header = request.headers.get(QUESTION)
            if header is None:
                return await handler(request)
            if self._peers.key is None:
                raise ProblemError("unauthorized", "This view worker knows no peer secret.")
            try:
                exchange = self._peers.key.admit(header, self._peers.own, request.raw_path)
            except ForgedError:
                raise ProblemError(
                    "unauthorized", "The question is none of a view worker with the same secret."
                ) from None
            request[_EXCHANGE] = exchange
            try:
                response = await handler(request)
            except ConnectionError:
                raise
            except Exception as error:
                response = problem_of(error).response()
            if isinstance(response, web.Response):
                body = response.body
                assert body is None or isinstance(body, bytes)
                response.headers[RESPONSE] = exchange.sign(response.status, body or b"")
            return response

        return admit


def exchange_of(request: web.Request) -> Exchange | None:
    """The exchange that the request is a part of, if another view worker sent it."""
    return request.get(_EXCHANGE)
