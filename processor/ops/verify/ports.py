"""The ports of a verification: readable topics, images of tables, and its progress."""

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from processor.contract.headers import Headers


class LogRecord(Protocol):
    """A committed record; `topic` is the full name, `timestamp` the append time in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class LogRange(NamedTuple):
    """What a partition of a topic holds: offsets from `start`; those below `stable` are committed
    or aborted, those below `end` written."""

    start: int
    stable: int
    end: int


class Log(Protocol):
    """The topics of one partition number, by their full names."""

    async def offset_range(self, topic: str) -> LogRange: ...

    async def offset_at(self, topic: str, at_ms: int) -> int | None:
        """The first offset that was appended at `at_ms` or later; None if there is none."""

    def read(self, topic: str, start: int, end: int) -> AsyncGenerator[Sequence[LogRecord], None]:
        """Committed records of [start, end), some at a time. Topics may be read side by side."""


Logs = Callable[[int], AbstractAsyncContextManager[Log]]
"""Opens the topics of a partition number."""


class TableFlow(NamedTuple):
    """A row; all behind `doc` repeats what the document says."""

    flow_id: str
    doc: str | bytes
    last_event_id: int
    chain: bytes
    revision: int
    status: str
    owner: str
    updated_at: str


class TableStep(NamedTuple):
    flow_id: str
    run_id: str
    doc: str | bytes


class TablePosition(NamedTuple):
    """How far a table is, and of how many partitions it holds one."""

    path: str
    partitions: int
    commands: int
    control: int
    next_event_id: int
    restored: bool


class TableProblem(NamedTuple):
    """Why a table could not be looked at. `damaged`: it says what was never written."""

    sentence: str
    damaged: bool


TakeTable = Callable[[TablePosition, Iterator[TableFlow], Iterator[TableStep]], None]


class Tables(Protocol):
    """The tables at hand."""

    def read_table(self, partition: int, take: TakeTable) -> TableProblem | None:
        """Call `take` with the partition's table, all of it of one moment; again from the start, if
        a worker came in between. Does nothing if there is none."""


class Watcher:
    """Called with how far some work is; this one does nothing with it."""

    def expect(self, units: int) -> None:
        """There are so many more to come, or fewer, than was thought."""

    def advance(self, units: int) -> None:
        """So many more are done."""

    def at(self, what: str) -> None:
        """What is done now."""
