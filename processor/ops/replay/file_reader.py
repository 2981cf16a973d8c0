"""Reading a history from a file; file_writer.py says how it looks."""

import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import orjson

from processor.batch import Outgoing, new_outgoing
from processor.codec import Headers, Record
from processor.ops.replay.file_writer import trace_of
from processor.ops.replay.recorded import (
    FORMAT,
    Beginning,
    Decided,
    Head,
    HistoryUnusable,
    Rules,
    Snapshot,
)
from processor.ops.replay.store import Store, read_known
from processor.rows import Remembered
from schemas.events import CHAIN_HEADER
from schemas.flow import FlowStatus
from schemas.outcomes import Code
from schemas.topics import COMMANDS, CONTROL
from schemas.values import SCHEMA_VERSION

TELL_EVERY: Final = 1_000
"""Lines; to ask where we are takes a system call."""

# As rows.new_flow_row.
_new_decided: Final[
    Callable[[tuple[Record, Outgoing, Sequence[Outgoing], Outgoing | None]], Decided]
] = partial(tuple.__new__, Decided)


@dataclass(slots=True)
class Source:
    """A command's record, as it is kept."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@contextmanager
def reading(path: Path, heard: Callable[[int], None] = lambda _: None) -> Iterator["HistoryFile"]:
    """`heard` is told how many bytes of the file were read since the last time.

    Raises HistoryUnusable, also out of the block, if it is damaged or none of ours.
    """
    try:
        with path.open("rb") as raw, gzip.open(raw) as file:
            yield HistoryFile(path, raw, file, heard)  # type: ignore[arg-type]
    except (OSError, EOFError, zlib.error, orjson.JSONDecodeError) as error:
        raise HistoryUnusable(f"{path} cannot be read as a history: {error}.") from error


@dataclass(slots=True)
class HistoryFile:
    """Made by `reading`. Its partitions are read in their order."""

    _path: Path
    _raw: IO[bytes]
    _file: IO[bytes]
    _heard: Callable[[int], None]
    _told: int = 0
    _next: Mapping[str, Any] | None = None

    def head(self) -> Head:
        """The first line. Raises HistoryUnusable if it is of a later format."""
        doc = self._doc()
        if doc is None or "taskflow_history" not in doc:
            raise HistoryUnusable(f"{self._path} is no history that `taskflow` exported.")
        if doc["taskflow_history"] > FORMAT or doc["schema_version"] > SCHEMA_VERSION:
            raise HistoryUnusable(
                f"{self._path} was written by taskflow {doc['taskflow']}; this one is older and "
                "cannot read it."
            )
        rules = Rules(
            doc["topic_prefix"],
            doc["partitions"],
            doc["dedupe_window_ms"],
            doc["timer_max_horizon_ms"],
        )
        return Head(doc["taskflow"], doc["exported_at"], rules, doc["contains"])

    def partitions(self, rules: Rules, wanted: Callable[[int], bool]) -> Iterator["FilePartition"]:
        """Those that are wanted; the others are passed over."""
        while (doc := self._doc()) is not None:
            number = doc["partition"]
            if wanted(number):
                one = FilePartition(self, rules, number, doc)
                yield one
                if not one.ended:
                    raise HistoryUnusable(f"{self._path}: partition {number} has no end.")
            else:
                self._pass_over(number)

    def lines(self) -> Iterator[bytes]:
        """The lines that are left, with their ends. Whoever reads them goes on from there."""
        for count, line in enumerate(self._file, 1):
            if not count % TELL_EVERY:
                self._tell()
            yield line
        raise HistoryUnusable(f"{self._path} ends in the middle of a partition.")

    def _pass_over(self, partition: int) -> None:
        end = b'{"end":%d,' % partition
        for line in self.lines():
            if line.startswith(end):
                return

    def _doc(self) -> Mapping[str, Any] | None:
        line = self._file.readline()
        self._tell()
        if not line:
            return None
        doc = orjson.loads(line)
        if not isinstance(doc, dict):
            raise HistoryUnusable(f"{self._path} holds a line that is no part of a history.")
        return doc

    def _tell(self) -> None:
        at = self._raw.tell()
        if at > self._told:
            self._heard(at - self._told)
            self._told = at


@dataclass(slots=True)
class FilePartition:
    """One partition of a file."""

    _all: HistoryFile
    _rules: Rules
    number: int
    _doc: Mapping[str, Any]
    ended: bool = False
    _waking: Sequence[str] = ()
    _lines: Iterator[bytes] = field(default_factory=lambda: iter(()))
    _first: bytes = b""

    async def begin(self, store: Store) -> Beginning:
        self._lines = self._all.lines()
        for line in self._lines:
            if line.startswith(b'{"known":'):
                known = read_known(orjson.loads(line)["known"])
                store.put(known.row, known.steps.values())
            elif line.startswith(b'{"answer":'):
                store.remember([_answer(*orjson.loads(line)["answer"])])
            else:
                self._first = line
                break
        doc = self._doc
        return Beginning(doc["next_event_id"], doc["front_ms"], doc["commands"], doc["control"])

    async def decided(self) -> AsyncIterator[Sequence[Decided]]:
        topics = self._rules.place(self.number).topics
        names = {COMMANDS.name: topics.commands, CONTROL.name: topics.control}
        batch: list[Decided] = []
        line = self._first
        while True:
            if line == b"\n":
                yield batch
                batch = []
            elif line.startswith((b'{"end":', b'{"snapshot":')):
                self._first = line
                return
            else:
                batch.append(_decided(orjson.loads(line), self._lines, names, self.number))
            line = next(self._lines)

    async def snapshots(self) -> AsyncIterator[Sequence[Snapshot]]:
        line = self._first
        while not line.startswith(b'{"end":'):
            key, value = map(_bytes, orjson.loads(line)["snapshot"])
            yield [Snapshot(key or b"", value or b"")]
            line = next(self._lines)
        self._waking = orjson.loads(line)["waking"]
        self.ended = True

    def waking(self) -> Sequence[str]:
        return self._waking


def _decided(
    doc: dict[str, Any], lines: Iterator[bytes], names: Mapping[str, str], partition: int
) -> Decided:
    """file_writer.py says how it looks. Values are lines, with a tab before them."""
    key = _bytes(doc["key"])
    headers: Headers = ()
    trace: Headers = ()
    if "headers" in doc:
        headers = _headers(doc["headers"])
        trace = trace_of(headers)
    source = Source(
        names[doc["topic"]],
        partition,
        doc["offset"],
        doc["at"],
        key,
        _bytes(doc["value"]) if "value" in doc else next(lines)[1:-1],
        headers,
    )
    if "outcome" in doc:
        outcome = _odd(doc["outcome"], lines)
    else:
        outcome = new_outgoing((key, next(lines)[1:-1], trace))
    events: Sequence[Outgoing] = ()
    if "events" in doc:
        events = [
            new_outgoing((key, next(lines)[1:-1], [(CHAIN_HEADER, bytes.fromhex(event)), *trace]))
            if type(event) is str
            else _odd(event, lines)
            for event in doc["events"]
        ]
    letter = _odd(doc["letter"], lines) if "letter" in doc else None
    return _new_decided((source, outcome, events, letter))


def _odd(doc: Mapping[str, Any], lines: Iterator[bytes]) -> Outgoing:
    """A record that is not all as usual."""
    value = _bytes(doc["value"]) if "value" in doc else next(lines)[1:-1]
    return Outgoing(_bytes(doc["key"]), value, _headers(doc["headers"]))


def _headers(doc: Sequence[Any]) -> Headers:
    # A client may write a header without a value.
    return [
        (name, value.encode() if type(value) is str else _bytes(value))  # type: ignore[misc]
        for name, value in doc
    ]


def _bytes(doc: Any) -> bytes | None:
    if type(doc) is str:
        return doc.encode()
    return None if doc is None else bytes.fromhex(doc["hex"])


def _answer(
    key: str,
    at_ms: int,
    digest: str,
    code: str | None,
    revision: int | None,
    status: str | None,
    first_event_id: int,
    event_count: int,
    details: dict[str, Any],
) -> Remembered:
    return Remembered(
        bytes.fromhex(key),
        at_ms,
        bytes.fromhex(digest),
        None if code is None else Code(code),
        revision,
        None if status is None else FlowStatus(status),
        first_event_id,
        event_count,
        details,
    )
