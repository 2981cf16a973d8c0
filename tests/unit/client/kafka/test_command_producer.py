"""CommandProducer before producers that do as the test says."""

import asyncio
from typing import Any

import pytest
from aiokafka.errors import MessageSizeTooLargeError

from processor.adapters.kafka.producer import plain_producer
from processor.client.errors import CommandNotSent, SendUncertain
from processor.client.kafka import command_producer as module
from processor.client.kafka.command_producer import CommandProducer
from processor.settings import Settings
from tests.support.machine import patience


class Client:
    async def close(self) -> None: ...


class Producer:
    """Acknowledges with `written`, or never."""

    def __init__(self, written: object | None) -> None:
        self.client = Client()
        self.stopped = False
        self._written = written

    async def send(self, topic: str, value: bytes, **how: Any) -> "asyncio.Future[object]":
        future = asyncio.get_running_loop().create_future()
        if self._written is not None:
            future.set_result(self._written)
        return future

    async def stop(self) -> None:
        self.stopped = True


async def test_a_producer_that_never_says_anything_is_replaced_and_the_record_written_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ACK_TIMEOUT_S", 0.01)
    monkeypatch.setattr(module, "RETRY_PAUSE_S", 0.0)
    silent, sound = Producer(None), Producer("written")
    producers = [silent, sound]
    producer = CommandProducer(Settings())

    async def current() -> Any:
        producer._producer = producer._producer or producers.pop(0)
        return producer._producer

    monkeypatch.setattr(producer, "_current", current)
    handed_over: list[None] = []

    async with asyncio.timeout(patience(10)):
        written = await producer.send(
            "t", b"k", b"v", [], handed_over=lambda: handed_over.append(None)
        )
        await producer.close()

    assert written == "written"
    assert len(handed_over) == 2
    assert silent.stopped


class Refusing(Producer):
    """Refuses a record before it sends it, as aiokafka does with one that is too large."""

    async def send(self, topic: str, value: bytes, **how: Any) -> "asyncio.Future[object]":
        raise MessageSizeTooLargeError


@pytest.mark.parametrize(
    ("before", "error"), [([], CommandNotSent), ([Producer(None)], SendUncertain)]
)
async def test_a_refusal_is_certain_unless_an_earlier_try_may_have_written_the_record(
    monkeypatch: pytest.MonkeyPatch, before: list[Producer], error: type[Exception]
) -> None:
    monkeypatch.setattr(module, "ACK_TIMEOUT_S", 0.01)
    monkeypatch.setattr(module, "RETRY_PAUSE_S", 0.0)
    producers = [*before, Refusing(None)]
    producer = CommandProducer(Settings())

    async def current() -> Any:
        producer._producer = producer._producer or producers.pop(0)
        return producer._producer

    monkeypatch.setattr(producer, "_current", current)
    with pytest.raises(error):
        await producer.send("t", b"k", b"v", [], handed_over=lambda: None)
    await producer.close()


async def test_a_producer_is_idempotent_and_does_not_linger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing else shows it: another producer works, and writes twice or later."""
    chosen: dict[str, Any] = {}

    class Started(Producer):
        def __init__(self, **options: Any) -> None:
            super().__init__("written")
            chosen.update(options)

        async def start(self) -> None: ...

    monkeypatch.setattr(plain_producer, "AIOKafkaProducer", Started)
    monkeypatch.setattr(plain_producer, "back_off_metadata", lambda client: None)
    monkeypatch.setattr(plain_producer, "quiet_failures", lambda producer: None)
    producer = CommandProducer(Settings())

    await producer.send("t", b"k", b"v", [], handed_over=lambda: None)
    await producer.close()

    assert not chosen.get("linger_ms")
    assert chosen["acks"] == "all"
    assert chosen["enable_idempotence"]
