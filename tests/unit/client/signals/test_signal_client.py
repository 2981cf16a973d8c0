"""What SignalClient says of a signal that is not sent, or may not be."""

from typing import Any

import pytest

from processor.client.errors import CommandNotSent, SendUncertain
from processor.client.kafka.command_producer import CommandProducer
from processor.client.signals.signal_client import SignalClient, SignalNotAcknowledged
from processor.client.signals.signal_reader import InvalidSignal
from processor.settings import Settings


@pytest.mark.parametrize(
    ("refusal", "raised"),
    [(CommandNotSent, CommandNotSent), (SendUncertain, SignalNotAcknowledged)],
)
async def test_a_signal_of_which_kafka_may_have_a_copy_is_not_said_to_be_unsent(
    monkeypatch: pytest.MonkeyPatch, refusal: type[Exception], raised: type[Exception]
) -> None:
    async def refuse(*_: Any, **__: Any) -> None:
        raise refusal("Kafka refused it.")

    monkeypatch.setattr(CommandProducer, "send", refuse)
    with pytest.raises(raised, match=r"Kafka refused it\."):
        await SignalClient(Settings()).send("payments", "order-17", id="s1")


@pytest.mark.parametrize("payload", [float("nan"), {"amounts": [1.5, float("inf")]}, {1, 2}])
async def test_a_payload_that_is_no_json_is_refused(payload: Any) -> None:
    with pytest.raises(InvalidSignal, match="not JSON"):
        await SignalClient(Settings()).send("payments", "order-17", payload)
