"""WebhookTransport: HTTP to addresses that were checked, whatever a name resolves to later."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import httpx
from a2a.utils.push_url_validator import validate_push_notification_url

RESOLVE_TIMEOUT_S: Final = 10.0


class AddressRefused(httpx.RequestError):
    """A host resolves to an address that may not be called."""


class WebhookTransport(httpx.AsyncBaseTransport):
    """Resolves a request's host once, checks all of its addresses, and connects to one of them.

    A check before the request would not hold: whoever owns a name may have it resolve to a public
    address first, and to a private one when it is called (DNS rebinding). The request itself stays
    as it is: `Host`, SNI and the name in the certificate are those of the URL. A connection is used
    once, since httpx would keep it by its address, for which another name may not be certified.
    Raises AddressRefused beside the errors of httpx. Proxies of the environment are not used.
    """

    def __init__(
        self,
        *,
        url_validator: Callable[[str], Awaitable[bool]] = validate_push_notification_url,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`url_validator` is asked about URLs of addresses alone, such as `https://192.0.2.1:443`;
        by default public ones may be called. `transport` makes the connections."""
        self._url_validator = url_validator
        self._transport = transport or httpx.AsyncHTTPTransport(
            limits=httpx.Limits(max_keepalive_connections=0)
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        failure: httpx.TransportError | None = None
        for address in await self._addresses(request):
            pinned = httpx.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": _dns_name(request.url)},
            )
            try:
                return await self._transport.handle_async_request(pinned)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure or httpx.ConnectError("it has no address", request=request)

    async def aclose(self) -> None:
        await self._transport.aclose()

    async def _addresses(self, request: httpx.Request) -> list[str]:
        """The addresses of the request's host, in the order of the resolver."""
        url = request.url
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(RESOLVE_TIMEOUT_S):
                found = await asyncio.get_running_loop().getaddrinfo(
                    _dns_name(url), port, type=socket.SOCK_STREAM
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout("its name did not resolve", request=request) from error
        except OSError as error:
            raise httpx.ConnectError("its name does not resolve", request=request) from error
        addresses = list(dict.fromkeys(str(info[4][0]) for info in found))
        for address in addresses:
            literal = f"[{address}]" if ":" in address else address
            if not await self._url_validator(f"{url.scheme}://{literal}:{port}"):
                raise AddressRefused(f"{url.host} is at {address}", request=request)
        return addresses


def _dns_name(url: httpx.URL) -> str:
    """The host as `Host` names it. Python would encode other letters by IDNA 2003: `straße.de`
    as another host."""
    return url.raw_host.decode("ascii")
