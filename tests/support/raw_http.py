"""HTTP as bytes over a socket, for requests that no client library would send."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.support.machine import patience

PATIENCE_S = patience(20.0)


@dataclass(frozen=True)
class RawResponse:
    """What came back until the body was whole or the connection ended."""

    status: int
    headers: dict[str, str]
    body: bytes

    def problem(self) -> dict[str, Any]:
        """The problem document. Raises AssertionError if the response is none."""
        assert self.headers.get("content-type") == "application/problem+json", self
        document: dict[str, Any] = json.loads(self.body)
        assert document["status"] == self.status
        assert document["type"] == f"urn:taskflow:problem:{document['code']}"
        return document


class RawConnection:
    """One connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def response(self) -> RawResponse:
        async with asyncio.timeout(PATIENCE_S):
            head = await self.reader.readuntil(b"\r\n\r\n")
            line, *lines = head.decode().split("\r\n")
            pairs = (one.split(": ", 1) for one in lines if one)
            headers = {name.lower(): value for name, value in pairs}
            length = int(headers.get("content-length", "0"))
            return RawResponse(int(line.split()[1]), headers, await self.reader.readexactly(length))

    async def ends(self) -> None:
        """Wait until the server has closed the connection."""
        async with asyncio.timeout(PATIENCE_S):
            with suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


@asynccontextmanager
async def connected(address: tuple[str, int], first: bytes = b"") -> AsyncIterator[RawConnection]:
    """A connection; `first`, some bytes, is there before a server on this loop sees the connection,
    and so before the time that it has begins."""
    made = socket.create_connection(address)
    made.sendall(first)
    made.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=made)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(address: tuple[str, int], request: bytes) -> RawResponse:
    """The response to the bytes of a request, on a connection of its own."""
    async with connected(address) as connection:
        await connection.send(request)
        return await connection.response()


def get(path: str, *headers: str, host: str = "localhost") -> bytes:
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", *headers]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"
