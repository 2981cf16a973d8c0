"""Choose the connection of a client: Kafka, or what stands in for the brokers in a test."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from processor.client.kafka.connection import KafkaConnection
from processor.client.ports import Connection
from processor.settings import Settings

_STAND_INS: Final[dict[str, Callable[[Settings], Connection]]] = {}
"""By the value of `bootstrap_servers`."""


def connect(settings: Settings) -> Connection:
    """Return the connection to the brokers that `settings` name; opens nothing yet."""
    return _STAND_INS.get(settings.bootstrap_servers, KafkaConnection)(settings)


@contextmanager
def standing_in(brokers: str, connection: Callable[[Settings], Connection]) -> Iterator[None]:
    """Give clients whose `bootstrap_servers` are `brokers` another connection, inside the block."""
    assert brokers not in _STAND_INS, f"{brokers} has a stand-in already"
    _STAND_INS[brokers] = connection
    try:
        yield
    finally:
        del _STAND_INS[brokers]
