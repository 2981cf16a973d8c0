"""SignalClient: send signals, events for the flows that wait for them."""

import asyncio
from typing import Any, Final, NamedTuple, Self
from uuid import uuid4

from processor.client.connection import connect
from processor.client.errors import SendUncertain
from processor.client.preparation import has_nonfinite
from processor.client.signals.signal_reader import InvalidSignal, read_signal
from processor.contract.events import TRACEPARENT_HEADER
from processor.contract.rights import Operation
from processor.contract.topics import SignalTopics
from processor.engine.encoding import encode
from processor.errors import TaskflowError
from processor.settings import Settings, load_settings

TIMEOUT_S: Final = 30.0


class SignalNotAcknowledged(TaskflowError):
    """Kafka did not acknowledge a signal in time: it may be sent. Send it again with its id."""

    retriable = True


class SignalReceipt(NamedTuple):
    """A signal's id and position in Kafka. `offset` is None in the rare case that Kafka did not
    return it."""

    id: str
    topic: str
    partition: int
    offset: int | None


class SignalClient:
    """Sends signals; an async context manager.

    `settings`: from the environment if None. `taskflow signals` must run: it delivers a signal to
    the flow that waits, or will wait within TASKFLOW_SIGNAL_TTL, for an external event with its
    topic and correlation id. Entering raises BrokerUnreachable, AccessDenied, and TopicsWrong if
    the topics of signals are missing.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings or load_settings()
        self._topic = SignalTopics(self._settings.topic_prefix).signals
        self._connection = connect(self._settings)
        self._producer = self._connection.producer(self._topic)

    async def __aenter__(self) -> Self:
        try:
            await self._producer.start()
            await self._connection.count_partitions([self._topic], Operation.WRITE)
        except BaseException:
            await self._producer.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.close()

    async def send(
        self,
        topic: str,
        correlation_id: str,
        payload: Any = None,
        *,
        id: str | None = None,
        timeout_s: float = TIMEOUT_S,
        traceparent: str | None = None,
    ) -> SignalReceipt:
        """Send a signal; return once all replicas have it.

        `payload` becomes `resume_event` of the flow's state. `id`: of the event; a signal sent
        again with it is delivered once. If None, it is random, and a repeated call is another
        signal. `traceparent`: W3C trace context for all that the signal causes.

        Raises InvalidSignal, CommandNotSent if Kafka refuses it, and SignalNotAcknowledged.
        """
        fields = {
            "id": id or str(uuid4()),
            "topic": topic,
            "correlation_id": correlation_id,
            "payload": payload,
        }
        try:
            value = encode({name: given for name, given in fields.items() if given is not None})
        except TypeError as error:
            raise InvalidSignal(f"The signal is not JSON: {error}.") from None
        if b"null" in value and has_nonfinite(fields):
            raise InvalidSignal("The signal is not JSON: a number is NaN or infinite.")
        signal = read_signal(value)
        headers = [] if traceparent is None else [(TRACEPARENT_HEADER, traceparent.encode())]
        key = f"{topic}/{correlation_id}".encode()
        try:
            async with asyncio.timeout(timeout_s):
                written = await self._producer.send(
                    self._topic, key, value, headers, handed_over=lambda: None
                )
        except SendUncertain as refused:
            raise SignalNotAcknowledged(
                f"{refused} An earlier copy of signal {signal.id} may be sent. Send it again with "
                "this id."
            ) from refused
        except TimeoutError:
            raise SignalNotAcknowledged(
                f"Kafka did not acknowledge signal {signal.id} within {timeout_s:g} s; it may be "
                "sent. Send it again with this id."
            ) from None
        offset = written.offset if written.offset >= 0 else None
        return SignalReceipt(signal.id, self._topic, written.partition, offset)
