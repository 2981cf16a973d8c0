"""Kafka in memory on a loop's clock: MemoryKafka, with markers that take their time, transactions
that time out, requests that arrive late, and a broker that may be away.

tests/simulation/test_kafka_contract.py holds it and the real one to the same scenarios.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from processor.contract.headers import Headers
from processor.contract.topics import Topics
from processor.testing.memory.kafka import MemoryKafka, Transaction, TxnState

At = tuple[str, int]
"""A topic's partition."""

TRANSACTION_TIMEOUT_S: Final = 15.0
"""As adapters/kafka/producer/transactional_producer.py asks for."""


class SimKafka(MemoryKafka):
    """`clock` gives seconds; the broker's clock runs with it, from NOON on, unless it is set."""

    def __init__(self, topics: Topics, partitions: int, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._base_ms = 0
        super().__init__(topics, partitions)
        self.marker_delay_s: Callable[[], float] = lambda: 0.0
        """How long the next marker takes; asked for each partition of a transaction that ends."""
        self.timed_out: Callable[[], None] = lambda: None
        self.refused: Callable[[], None] = lambda: None
        """Called when a request of a fenced producer is refused."""
        self.away_until_s = 0.0
        self.held: dict[str, int] = {}
        """Requests to commit that are under way, by transactional id: the epoch of each."""
        self._completing: dict[str, Transaction] = {}
        self._waiters: dict[At, list[asyncio.Future[None]]] = {}

    @property
    def now_ms(self) -> int:
        return self._base_ms + int(self._clock() * 1000)

    @now_ms.setter
    def now_ms(self, at_ms: int) -> None:
        self._base_ms = at_ms - int(self._clock() * 1000)

    @property
    def away(self) -> bool:
        return self._clock() < self.away_until_s

    # Waiting for what happens

    def notify(self) -> None:
        """Do nothing: `append` and `mark` wake the watchers of their partition."""

    def watch(self, ats: Iterable[At]) -> asyncio.Future[None]:
        """Return a future that is done at the next append or marker on one of these partitions."""
        future = asyncio.get_running_loop().create_future()
        for at in ats:
            self._waiters.setdefault(at, []).append(future)
        return future

    def _wake(self, at: At) -> None:
        waiters = self._waiters.pop(at, None)
        for waiter in waiters or ():
            wake(waiter)

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        transaction: Transaction | None = None,
    ) -> int:
        offset = super().append(topic, partition, key, value, headers, transaction)
        self._wake((topic, partition))
        return offset

    def mark(self, transaction: Transaction, at: At) -> None:
        super().mark(transaction, at)
        self._wake(at)

    # A transactional id

    def end(self, transaction: Transaction, state: TxnState) -> None:
        """Decided at once; each partition shows it when its marker is written."""
        transaction.state = state
        for at in sorted(transaction.touched):
            delay_s = self.marker_delay_s()
            if delay_s:
                loop = asyncio.get_running_loop()
                loop.call_later(delay_s, self.mark, transaction, at)
            else:
                self.mark(transaction, at)

    def completing(self, transactional_id: str) -> bool:
        """Whether markers of its last transaction are still to be written: whoever begins or
        fences must ask again, as Kafka says CONCURRENT_TRANSACTIONS."""
        last = self._completing.get(transactional_id)
        return last is not None and bool(last.unmarked)

    def fence(self, transactional_id: str) -> int:
        left = self._open.get(transactional_id)
        if left is not None:
            self._completing[transactional_id] = left
        return super().fence(transactional_id)

    def begin_for(self, transactional_id: str, epoch: int) -> Transaction:
        if self.is_open(transactional_id, epoch):
            return self._open[transactional_id]
        transaction = super().begin_for(transactional_id, epoch)
        asyncio.get_running_loop().call_later(
            TRANSACTION_TIMEOUT_S, self._time_out, transactional_id, transaction
        )
        return transaction

    def commit_for(self, transactional_id: str, epoch: int) -> None:
        self.check(transactional_id, epoch)
        self._completing[transactional_id] = self._open[transactional_id]
        super().commit_for(transactional_id, epoch)

    def is_open(self, transactional_id: str, epoch: int) -> bool:
        return self._epochs.get(transactional_id) == epoch and transactional_id in self._open

    def commit_arrives(self, transactional_id: str, epoch: int) -> None:
        """A request to commit that was under way for long: it ends whatever is open by then."""
        if self.is_open(transactional_id, epoch):
            self.commit_for(transactional_id, epoch)

    def _time_out(self, transactional_id: str, transaction: Transaction) -> None:
        if self._open.get(transactional_id) is transaction:
            # With a new epoch, as Kafka does it: its producer is of no more use.
            self._completing[transactional_id] = self._open.pop(transactional_id)
            self._epochs[transactional_id] += 1
            self._end(transaction, TxnState.ABORTED)
            self.timed_out()

    def check(self, transactional_id: str, epoch: int) -> None:
        if self._epochs.get(transactional_id) != epoch:
            self.refused()
        super().check(transactional_id, epoch)


def wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
