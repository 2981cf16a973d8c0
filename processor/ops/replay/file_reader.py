"""Read a history from a file; file_writer.py describes the format."""

import gzip
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from itertools import repeat
from pathlib import Path
from typing import IO, Any, Final

import orjson

import processor
from processor.contract.events import CHAIN_HEADER, CHAIN_START
from processor.contract.flow import FlowStatus
from processor.contract.headers import Headers
from processor.contract.outcomes import Code
from processor.contract.topics import Topics
from processor.contract.values import SCHEMA_VERSION
from processor.engine.batch import Outgoing, new_outgoing
from processor.engine.rows import LedgerEntry
from processor.ops.replay.file_writer import trace_of
from processor.ops.replay.recorded_history import (
    FORMAT,
    Beginning,
    Head,
    HistoryUnusable,
    RecordedSnapshot,
    RecordedTransaction,
    Rules,
)
from processor.ops.replay.store import ReplayStore, read_known

BUFFER_BYTES: Final = 256 * 1024
CHAIN_BYTES: Final = len(CHAIN_START)


@dataclass(slots=True)
class FileSource:
    """A command's record, as it is kept."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@contextmanager
def reading(path: Path, on_read: Callable[[int], None] = lambda _: None) -> Iterator["HistoryFile"]:
    """`on_read` is called with how many bytes of the file were read since the last time.

    Raises HistoryUnusable, also out of the block, if it is damaged or none of ours.
    """
    try:
        with (
            path.open("rb") as raw,
            gzip.open(raw) as unpacked,
            BufferedReader(unpacked, BUFFER_BYTES) as file,
        ):
            yield HistoryFile(path, raw, file, on_read)
    except (OSError, EOFError, zlib.error, orjson.JSONDecodeError) as error:
        raise HistoryUnusable(f"{path} cannot be read as a history: {error}.") from error


@dataclass(slots=True)
class HistoryFile:
    """Made by `reading`. Its partitions are read in their order."""

    _path: Path
    _raw: IO[bytes]
    _file: IO[bytes]
    _on_read: Callable[[int], None]
    _reported: int = 0
    _next: Mapping[str, Any] | None = None

    def head(self) -> Head:
        """The first line. Raises HistoryUnusable if it is of a later format."""
        doc = self._doc()
        if doc is None or "taskflow_history" not in doc:
            raise HistoryUnusable(f"{self._path} is no history that `taskflow` exported.")
        if doc["taskflow_history"] != FORMAT or doc["schema_version"] > SCHEMA_VERSION:
            raise HistoryUnusable(
                f"{self._path} was written by taskflow {doc['taskflow']}, in a form that this "
                f"version, {processor.__version__}, cannot read: run that one, or export it again."
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
            partition = doc["partition"]
            if wanted(partition):
                one = FilePartition(self, rules, partition, doc)
                yield one
                if not one.ended:
                    raise HistoryUnusable(f"{self._path}: partition {partition} has no end.")
            else:
                self._pass_over(partition)

    def parts(self) -> Iterator[Mapping[str, Any]]:
        """What is left. A caller that takes a block reads its `values` next."""
        while (doc := self._doc()) is not None:
            yield doc
        raise HistoryUnusable(f"{self._path} ends in the middle of a partition.")

    def values(self, block: Mapping[str, Any]) -> list[bytes | None]:
        """The values of a block."""
        values: list[bytes | None] = [*self._read(block["block"]).split(b"\n")]
        values.pop()  # behind the last line's end
        for n, value in block.get("values", ()):
            values[n] = _bytes(value)
        return values

    def _pass_over(self, partition: int) -> None:
        for doc in self.parts():
            if doc.get("end") == partition:
                return
            if "block" in doc:
                self._read(doc["block"])

    def _read(self, size_bytes: int) -> bytes:
        read = self._file.read(size_bytes)
        if len(read) < size_bytes:
            raise HistoryUnusable(f"{self._path} ends in the middle of a partition.")
        return read

    def _doc(self) -> Mapping[str, Any] | None:
        line = self._file.readline()
        self._report()
        if not line:
            return None
        doc = orjson.loads(line)
        if not isinstance(doc, dict):
            raise HistoryUnusable(f"{self._path} holds a line that is no part of a history.")
        return doc

    def _report(self) -> None:
        at = self._raw.tell()
        if at > self._reported:
            self._on_read(at - self._reported)
            self._reported = at


@dataclass(slots=True)
class FilePartition:
    """One partition of a file."""

    _all: HistoryFile
    _rules: Rules
    partition: int
    _doc: Mapping[str, Any]
    ended: bool = False
    _waking: Sequence[str] = ()
    _parts: Iterator[Mapping[str, Any]] = field(default_factory=lambda: iter(()))

    async def begin(self, store: ReplayStore) -> Beginning:
        doc = self._doc
        beginning = Beginning(
            doc["next_event_id"], doc["front_ms"], doc["commands"], doc["control"]
        )
        self._parts = self._all.parts()
        for part in self._parts:
            if "known" in part:
                known = read_known(part["known"])
                store.put(known.row, known.steps.values())
            elif "answer" in part:
                store.keep_ledger([_ledger_entry(*part["answer"])])
            else:
                self._doc = part
                break
        return beginning

    async def decided(self) -> AsyncIterator[RecordedTransaction]:
        topics = self._rules.place(self.partition).topics
        done = RecordedTransaction()
        while "offsets" in self._doc:
            doc = self._doc
            _load(done, doc, self._all.values(doc), topics, self.partition)
            if doc["ends"]:
                yield done
                done = RecordedTransaction()
            self._doc = next(self._parts)

    async def snapshots(self) -> AsyncIterator[Sequence[RecordedSnapshot]]:
        while "snapshots" in self._doc:
            keys = map(_bytes, self._doc["snapshots"])
            values = self._all.values(self._doc)
            yield [
                RecordedSnapshot(key or b"", value or b"")
                for key, value in zip(keys, values, strict=True)
            ]
            self._doc = next(self._parts)
        self._waking = self._doc["waking"]
        self.ended = True

    def waking(self) -> Sequence[str]:
        return self._waking


def _load(
    done: RecordedTransaction,
    doc: Mapping[str, Any],
    values: Sequence[bytes | None],
    topics: Topics,
    partition: int,
) -> None:
    """Add a block to `done`; file_writer.py says how it looks. What can be done to a column at once
    is, which is half the work of reading."""
    count = len(doc["offsets"])
    keys = [key.encode() if type(key) is str else _bytes(key) for key in doc["keys"]]
    names = [topics.commands] * count
    for n in doc.get("control", ()):
        names[n] = topics.control
    headers: Sequence[Headers] = [()] * count
    traces = headers
    if "headers" in doc:
        different = [_headers(one) for one in doc["headers"]]
        different_traces = [trace_of(one) if one else () for one in different]
        headers = [different[n] for n in doc["headers_of"]]
        traces = [different_traces[n] for n in doc["headers_of"]]
    first = len(done.records)
    done.records.extend(
        map(FileSource, names, repeat(partition), doc["offsets"], doc["at"], keys, values, headers)
    )
    outcomes = values[count : 2 * count]
    written = [*map(new_outgoing, zip(keys, outcomes, traces, strict=True))]
    counts = doc.get("events")
    done.counts.extend(counts or repeat(0, count))
    if counts:
        chains, at = bytes.fromhex(doc["chains"]), 0
        values_of_events = iter(values[2 * count :])
        for key, trace, caused in zip(keys, traces, counts, strict=True):
            for _ in range(caused):
                chain = (CHAIN_HEADER, chains[at : at + CHAIN_BYTES])
                written.append(new_outgoing((key, next(values_of_events), [chain, *trace])))
                at += CHAIN_BYTES
    dead_letters = doc.get("letters", ())
    written.extend(Outgoing(None, value, ()) for value in values[len(values) - len(dead_letters) :])
    for n, key, some in doc.get("odd", ()):
        written[n] = Outgoing(_bytes(key), written[n].value, _headers(some))
    done.outcomes.extend(written[:count])
    end = len(written) - len(dead_letters)
    done.events.extend(written[count:end])
    for n, dead_letter in zip(dead_letters, written[end:], strict=True):
        done.dead_letters[first + n] = dead_letter


def _headers(doc: Sequence[Any]) -> Headers:
    return [(name, value.encode() if type(value) is str else _bytes(value)) for name, value in doc]


def _bytes(doc: Any) -> bytes | None:
    if type(doc) is str:
        return doc.encode()
    return None if doc is None else bytes.fromhex(doc["hex"])


def _ledger_entry(  # noqa: PLR0913
    key: str,
    at_ms: int,
    digest: str,
    code: str | None,
    revision: int | None,
    status: str | None,
    first_event_id: int,
    event_count: int,
    details: dict[str, Any],
) -> LedgerEntry:
    return LedgerEntry(
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
