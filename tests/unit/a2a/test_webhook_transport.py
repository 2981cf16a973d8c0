"""Webhooks are called at the address that was checked, by the name that was given."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trustme

from processor.a2a.webhook_transport import AddressRefused, WebhookTransport

HOST, PUBLIC, OTHER, PRIVATE = "hooks.example", "93.184.216.34", "2606:2800:21f::1", "127.0.0.1"


class Resolver:
    """Resolves each name to the next of the given addresses; the last ones stay."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *resolved: list[str]) -> None:
        self.asked: list[str] = []
        self._resolved = list(resolved)
        monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", self._getaddrinfo)

    async def _getaddrinfo(self, host: str, port: int, **_: Any) -> list[Any]:
        if host[0].isdigit() or ":" in host:
            addresses = [host]
        else:
            self.asked.append(host)
            addresses = self._resolved.pop(0) if len(self._resolved) > 1 else self._resolved[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]


class Connections(httpx.AsyncBaseTransport):
    """Takes requests where httpx would connect; `down`: addresses that do not respond."""

    def __init__(self, *down: str) -> None:
        self.requests: list[httpx.Request] = []
        self._down = down

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.host in self._down:
            raise httpx.ConnectError("down")
        return httpx.Response(204, request=request)


async def post(transport: httpx.AsyncBaseTransport, url: str = f"https://{HOST}/a2a") -> int:
    async with httpx.AsyncClient(transport=transport) as client:
        return (await client.post(url, json={"n": 1})).status_code


async def test_the_address_that_was_checked_is_called_whatever_the_name_resolves_to_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolver, connections = Resolver(monkeypatch, [PUBLIC], [PRIVATE]), Connections()
    assert await post(WebhookTransport(transport=connections)) == 204
    (request,) = connections.requests
    assert resolver.asked == [HOST]
    assert str(request.url) == f"https://{PUBLIC}/a2a"
    assert request.headers["host"] == HOST
    assert request.extensions["sni_hostname"] == HOST

    with pytest.raises(AddressRefused):
        await post(WebhookTransport(transport=connections))
    assert len(connections.requests) == 1


@pytest.mark.parametrize(
    "addresses", [[PRIVATE], [PUBLIC, "10.0.0.1"], ["169.254.169.254"], ["::1"], ["::ffff:7f00:1"]]
)
async def test_no_address_is_called_if_one_may_not_be(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    Resolver(monkeypatch, addresses)
    connections = Connections()
    with pytest.raises(AddressRefused, match=HOST):
        await post(WebhookTransport(transport=connections))
    assert connections.requests == []


async def test_an_address_that_is_down_is_followed_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Resolver(monkeypatch, [OTHER, PUBLIC])
    connections = Connections(OTHER)
    assert await post(WebhookTransport(transport=connections)) == 204
    assert [request.url.host for request in connections.requests] == [OTHER, PUBLIC]
    with pytest.raises(httpx.ConnectError):
        await post(WebhookTransport(transport=Connections(OTHER, PUBLIC)))


async def test_a_name_is_resolved_and_certified_as_dns_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python would resolve `straße.example` by IDNA 2003, as `strasse.example`: another host."""
    resolver, connections = Resolver(monkeypatch, [PUBLIC]), Connections()
    url = "https://straße.example/a2a"
    assert await post(WebhookTransport(transport=connections), url) == 204
    (request,) = connections.requests
    host = "xn--strae-oqa.example"
    assert request.headers["host"] == host
    assert (resolver.asked, request.extensions["sni_hostname"]) == ([host], host)


@asynccontextmanager
async def webhook(ca: trustme.CA, name: str, taken: list[bytes]) -> AsyncIterator[int]:
    """A server with a certificate for `name`, on a port of 127.0.0.1."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert(name).configure_cert(context)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        taken.append(head + await reader.readexactly(len(b'{"n":1}')))
        writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, PRIVATE, 0, ssl=context)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize("certified", [HOST, "other.example"])
async def test_the_certificate_must_be_that_of_the_name(
    monkeypatch: pytest.MonkeyPatch, certified: str
) -> None:
    async def any_url(url: str) -> bool:
        return True

    ca, taken = trustme.CA(), list[bytes]()
    trusting = ssl.create_default_context()
    ca.configure_trust(trusting)
    Resolver(monkeypatch, [PRIVATE])
    transport = WebhookTransport(
        url_validator=any_url, transport=httpx.AsyncHTTPTransport(verify=trusting)
    )
    async with webhook(ca, certified, taken) as port:
        url = f"https://{HOST}:{port}/a2a"
        if certified != HOST:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await post(transport, url)
            assert taken == []
            return
        assert await post(transport, url) == 204
    (request,) = taken
    assert request.startswith(b"POST /a2a HTTP/1.1\r\n")
    assert f"host: {HOST}:{port}\r\n".encode() in request.lower()
    assert request.endswith(b'{"n":1}')
