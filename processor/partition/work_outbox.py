"""Work items that are committed and not yet written to `steps`."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Final

import structlog

from processor.engine.batch import Outgoing, WorkRecord
from processor.engine.ports import WorkItemProducer
from processor.runtime import backoff_s, end_tasks
from processor.telemetry.metrics import Metrics

log = structlog.get_logger()

ITEMS_MAX: Final = 4_000
BYTES_MAX: Final = 8 * 1024 * 1024
"""Of what waits, keys and values; the partition decides no further batch meanwhile, and one batch
comes on top."""
ROOM_WAIT_S: Final = 0.5
"""How long to wait for room before the partition says so."""
PORTION_MAX: Final = 1_000
"""Items in one call of the producer."""
BACKOFF_MIN_S: Final = 0.1
BACKOFF_MAX_S: Final = 5.0


class WorkOutbox:
    """Writes a partition's work items in the background, in the order of their events.

    What is put in belongs to committed transactions. It is in memory only: the cursor's `offered`
    says up to which event all items are acknowledged, and whoever takes the partition over writes
    the later ones again. An item whose acknowledgement is lost is written twice.
    """

    def __init__(
        self, partition: int, topic: str, producer: WorkItemProducer, *, metrics: Metrics
    ) -> None:
        self.error: str | None = None
        """Why the last attempt failed; None while the items go out."""
        self._partition = partition
        self._topic = topic
        self._producer = producer
        self._metrics = metrics
        self._waiting: deque[WorkRecord] = deque()
        self._waiting_bytes = 0
        self._some = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        self._room = asyncio.Event()
        self._room.set()
        self._writing: asyncio.Task[None] | None = None
        self._log = log.bind(partition=partition)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def oldest_event_id(self) -> int | None:
        """The event of the oldest item that is not acknowledged; None if all are."""
        return self._waiting[0].event_id if self._waiting else None

    @property
    def waits_for(self) -> str:
        """What its partition waits for while there is no room."""
        why = f" ({self.error})" if self.error is not None else ""
        return (
            f"{len(self._waiting)} work items cannot be written to {self._topic} yet{why}; nothing "
            "more is decided until some are. `taskflow doctor` looks at the topic and its rights"
        )

    @property
    def has_room(self) -> bool:
        return self._room.is_set()

    async def room(self) -> bool:
        """Wait until more may be put in, at most ROOM_WAIT_S; whether it may."""
        try:
            async with asyncio.timeout(ROOM_WAIT_S):
                await self._room.wait()
        except TimeoutError:
            return False
        return True

    async def drained(self, timeout_s: float) -> None:
        """Wait until all that waits is acknowledged, at most `timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()

    def put(self, items: Sequence[WorkRecord]) -> None:
        """Write these after all others. There need not be room: a batch is not cut in two."""
        if not items:
            return
        if self._writing is None:
            self._writing = asyncio.create_task(self._write(), name=f"work-items-{self._partition}")
        self._waiting.extend(items)
        self._waiting_bytes += sum(_size_bytes(item.record) for item in items)
        self._some.set()
        self._empty.clear()
        self._look_for_room()

    async def stop(self) -> None:
        """Forget what waits."""
        writing, self._writing = self._writing, None
        if writing is not None:
            await end_tasks(writing)
        self._waiting.clear()
        self._waiting_bytes = 0
        self._some.clear()
        self._empty.set()
        self._room.set()
        self.error = None

    async def _write(self) -> None:
        failures = 0
        while True:
            if not self._waiting:
                self._some.clear()
                self._empty.set()
                await self._some.wait()
            portion = list(islice(self._waiting, PORTION_MAX))
            try:
                await self._producer.write([item.record for item in portion])
            except Exception as error:
                failures += 1
                self._failed(error)
                await asyncio.sleep(backoff_s(failures, BACKOFF_MIN_S, BACKOFF_MAX_S))
                continue
            failures = 0
            if self.error is not None:
                self.error = None
                self._log.info("work items are written again", waiting=len(self._waiting))
            for item in portion:
                self._waiting.popleft()
                self._waiting_bytes -= _size_bytes(item.record)
            self._metrics.work_items.inc(len(portion))
            self._look_for_room()

    def _failed(self, error: Exception) -> None:
        sentence = f"{type(error).__name__}: {error}"
        self._metrics.work_item_failures.labels(str(self._partition)).inc()
        if sentence != self.error:
            self._log.warning(
                "work items cannot be written; they are tried again",
                error=sentence,
                waiting=len(self._waiting),
            )
        self.error = sentence

    def _look_for_room(self) -> None:
        if len(self._waiting) < ITEMS_MAX and self._waiting_bytes < BYTES_MAX:
            self._room.set()
        else:
            self._room.clear()


def _size_bytes(record: Outgoing) -> int:
    return len(record.key or b"") + len(record.value or b"")
