"""The product's proxy, for clients that are made in a test and know the broker's own address."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import client
from aiokafka.protocol.transaction import EndTxnRequest

from processor.testing.chaos import proxy
from processor.testing.chaos.proxy import Fate, Proxy

__all__ = ["END_TXN", "Fate", "Proxy", "proxied"]

END_TXN: int = EndTxnRequest.API_KEY
assert END_TXN == proxy.END_TXN


@asynccontextmanager
async def proxied(bootstrap: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """A proxy that all clients made within go through, whatever address the broker names."""
    connect: Callable[..., Any] = client.create_conn
    async with proxy.proxied(bootstrap) as made:

        async def through_proxy(host: str, port: int, *args: Any, **how: Any) -> Any:
            return await connect("127.0.0.1", made.port, *args, **how)

        with monkeypatch.context() as patch:
            patch.setattr(client, "create_conn", through_proxy)
            yield made
