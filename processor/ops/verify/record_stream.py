"""Stream a topic's partition record by record, with a look-ahead."""

from collections.abc import Callable

from processor.ops.verify.ports import Log, LogRecord

OnRead = Callable[[int], None]
"""Called with how many offsets were read since the last call."""


class RecordStream:
    """Committed records of [start, end), in order. `passed` is the offset behind the last one."""

    def __init__(self, log: Log, topic: str, start: int, end: int, on_read: OnRead) -> None:
        self.topic = topic
        self.start = start
        self.end = end
        self.passed = start
        self.count = 0
        self.newest_ms = 0
        """The latest append time of what was read."""
        self._chunks = log.read(topic, start, end)
        self._chunk: list[LogRecord] = []
        self._next = 0
        self._reported = start
        self._on_read = on_read

    async def head(self) -> LogRecord | None:
        """The next record; None at the end."""
        while self._next >= len(self._chunk):
            chunk = await anext(self._chunks, None)
            if chunk is None:
                self._advance(self.end)
                return None
            self._chunk, self._next = list(chunk), 0
            if chunk:
                self.newest_ms = max(self.newest_ms, *(record.timestamp for record in chunk))
                self._advance(chunk[-1].offset + 1)
        return self._chunk[self._next]

    async def take(self) -> LogRecord | None:
        """The next record, and go on behind it."""
        record = await self.head()
        if record is not None:
            self._next += 1
            self.count += 1
            self.passed = record.offset + 1
        return record

    async def close(self) -> None:
        """What is left will not be read."""
        self._advance(self.end)
        await self._chunks.aclose()

    def _advance(self, offset: int) -> None:
        if offset > self._reported:
            self._on_read(offset - self._reported)
            self._reported = offset
