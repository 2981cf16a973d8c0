"""The ports of the client: Kafka as FlowClient, AuditStream and StepWorker see it."""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from processor.contract.headers import Headers
from processor.contract.rights import Operation, Right
from processor.contract.steps import WorkItem
from processor.engine.codec import Record
from processor.engine.ports import Start


@dataclass(frozen=True, slots=True)
class Place:
    """Where a work item lies, in which generation of the group."""

    partition: int
    offset: int
    generation: int


@dataclass(frozen=True, slots=True)
class ReceivedItem:
    """A work item with the place of its record, the record's append time and its trace context."""

    item: WorkItem
    place: Place
    appended_ms: int
    traceparent: str | None


class Acknowledged(Protocol):
    """Where all replicas have a record; `offset` is -1 where Kafka did not say."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...


class Producer(Protocol):
    """Writes records, and raises CommandNotSent and SendUncertain; see
    `processor.client.kafka.command_producer`."""

    async def start(self) -> None: ...
    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        *,
        partition: int | None = None,
        handed_over: Callable[[], None],
    ) -> Acknowledged: ...
    async def close(self) -> None: ...


class Reader(Protocol):
    """Reads committed records of one topic; see `processor.adapters.kafka.reader.topic_reader`."""

    positions: dict[int, int]

    async def open(self, partitions: Collection[int], start: Start) -> dict[int, int]: ...
    async def rewind(self, partitions: Collection[int]) -> None: ...
    async def poll(self, *, wait_s: float) -> Sequence[Record]: ...
    async def close(self) -> None: ...


class ItemReader(Protocol):
    """Reads work items in a consumer group; see `processor.client.kafka.work_items`."""

    async def poll(self, *, max_records: int, wait_s: float) -> list[ReceivedItem]: ...
    def done(self, place: Place) -> None: ...
    async def close(self) -> None: ...


class Connection(Protocol):
    """Everything that the client asks of Kafka and of the time."""

    def now_ms(self) -> int:
        """Return the time of day, in ms since 1970."""

    def monotonic(self) -> float:
        """Return seconds of a monotonic clock."""

    def producer(self, topic: str | None = None) -> Producer:
        """Return a producer for `topic`, by its full name; for `commands` if None."""

    def reader(self, topic: str) -> Reader: ...
    def work_items(self, group: str, tasks: Iterable[str]) -> ItemReader: ...

    async def count_partitions(
        self, topics: Iterable[str], operation: Operation = Operation.READ
    ) -> dict[str, int]: ...

    async def missing_rights(self, wanted: Iterable[Right]) -> list[Right]:
        """Return those of `wanted` that Kafka does not give us."""
