"""Why pyproject.toml lets an unclosed connection of aiokafka pass."""

import asyncio
from unittest import mock

import pytest
from aiokafka.client import AIOKafkaClient


async def test_a_client_that_is_cancelled_amid_its_first_request_forgets_the_connection() -> None:
    """aiokafka 0.14: the connection closes itself when it is collected, in whatever test that is.
    Where this fails, the filter of the warning can go."""
    asked = asyncio.Event()
    connection = mock.Mock()

    async def send(_: object) -> None:
        asked.set()
        await asyncio.Event().wait()

    connection.send = send
    client = AIOKafkaClient(bootstrap_servers="127.0.0.1:1")
    with mock.patch("aiokafka.client.create_conn", mock.AsyncMock(return_value=connection)):
        starting = asyncio.create_task(client.bootstrap())
        await asked.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        await client.close()
    connection.close.assert_not_called()
