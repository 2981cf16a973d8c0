"""A record of Kafka in memory."""

from dataclasses import dataclass

from processor.contract.headers import Headers


@dataclass(slots=True)
class Appended:
    """A record as the broker hands it over."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
