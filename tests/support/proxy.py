"""The product's proxy, for clients that are made in a test and know the broker's own address."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import client
from aiokafka.protocol.transaction import EndTxnRequest

from processor.testing.chaos import proxy
from processor.testing.chaos.proxy import KINDS, Fate, Proxy, Treatment, Weather

__all__ = ["END_TXN", "HEARTBEAT", "Fate", "Proxy", "foul", "proxied"]

END_TXN: int = EndTxnRequest.API_KEY
assert END_TXN == proxy.END_TXN
HEARTBEAT: int = KINDS["Heartbeat"]


def foul(
    chance: float, *, seed: int, kinds: Sequence[str] = tuple(KINDS), late_max_s: float = 1.0
) -> Weather:
    """Befalls each request of `kinds` with a probability of `chance`, as `seed` draws it."""
    dice = random.Random(seed)
    keys = {KINDS[kind] for kind in kinds}
    fates = [fate for fate in Fate if fate not in (Fate.PASS, Fate.HOLD)]

    def befalls(api_key: int) -> Treatment:
        if api_key not in keys or dice.random() >= chance:
            return Treatment()
        return Treatment(dice.choice(fates), dice.uniform(0.0, late_max_s))

    return befalls


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
