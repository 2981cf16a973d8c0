"""A history in a file: JSON lines, compressed by gzip, that say by themselves what they are.

The first line names the format, the version that wrote it and the rules. Then come the partitions,
one after the other: a line for where its history begins, with flows and answers as they were then
if that is not the very beginning; a line for each command with all that was written about it; a
line for each flow and step as `state` had it in the end; and a line for its end. An empty line ends
a transaction.
"""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import orjson

from processor.batch import Outgoing
from processor.codec import Headers
from processor.ops.replay.recorded import FORMAT, Beginning, Decided, Head, Snapshot
from processor.ops.replay.store import Store, known_doc
from processor.rows import Remembered
from schemas.values import SCHEMA_VERSION

LEVEL: Final = 3
"""Of gzip; higher ones take longer and save little."""


class HistoryWriter:
    """Made by `writing`."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._commands = self._events = 0

    def head(self, head: Head) -> None:
        rules = head.rules
        self._line(
            {
                "taskflow_history": FORMAT,
                "schema_version": SCHEMA_VERSION,
                "taskflow": head.version,
                "exported_at": head.at,
                "topic_prefix": rules.prefix,
                "partitions": rules.partitions,
                "contains": [*head.partitions],
                "dedupe_window_ms": rules.dedupe_window_ms,
                "timer_max_horizon_ms": rules.timer_max_horizon_ms,
            }
        )

    def begin(self, partition: int, beginning: Beginning, store: Store) -> None:
        """A partition, with what is known before its first command."""
        self._commands = self._events = 0
        self._line({"partition": partition, **beginning._asdict()})
        for known in store.known():
            self._line({"known": known_doc(known)})
        for answer in store.answers():
            self._line({"answer": [*_answer_doc(answer)]})

    def transaction(self, decided: Sequence[Decided]) -> None:
        for one in decided:
            self._line(_decided_doc(one))
            self._events += len(one.events)
        self._commands += len(decided)
        self._file.write(b"\n")

    def snapshots(self, some: Sequence[Snapshot]) -> None:
        for key, value in some:
            self._line({"snapshot": [_text(key), _text(value)]})

    def end(self, partition: int, waking: Sequence[str]) -> None:
        counts = {"commands": self._commands, "events": self._events}
        self._line({"end": partition, **counts, "waking": [*waking]})

    def _line(self, doc: Mapping[str, Any]) -> None:
        self._file.write(orjson.dumps(doc) + b"\n")


@contextmanager
def writing(path: Path) -> Iterator[HistoryWriter]:
    """A new file, which takes its name once it is whole. Raises OSError."""
    part = path.with_name(f"{path.name}.part")
    try:
        # No name and time within: the same history makes the same bytes.
        with part.open("wb") as raw, gzip.GzipFile("", "wb", LEVEL, raw, mtime=0) as file:
            yield HistoryWriter(file)  # type: ignore[arg-type]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _decided_doc(one: Decided) -> dict[str, Any]:
    record = one.record
    doc: dict[str, Any] = {
        "topic": record.topic.rpartition(".")[2],
        "offset": record.offset,
        "at": record.timestamp,
        "key": _text(record.key),
        "value": _text(record.value),
        "outcome": _outgoing_doc(one.outcome, record.key),
    }
    if record.headers:
        doc["headers"] = _headers_doc(record.headers)
    if one.events:
        doc["events"] = [_outgoing_doc(event, record.key) for event in one.events]
    if one.letter is not None:
        doc["letter"] = _outgoing_doc(one.letter, record.key)
    return doc


def _outgoing_doc(record: Outgoing, key: bytes | None) -> list[Any]:
    """Value and headers, and the key where it is not that of the command."""
    doc: list[Any] = [_text(record.value)]
    if record.headers or record.key != key:
        doc.append(_headers_doc(record.headers))
    if record.key != key:
        doc.append(_text(record.key))
    return doc


def _headers_doc(headers: Headers) -> list[Any]:
    return [[name, _text(value)] for name, value in headers]


def _text(raw: bytes | None) -> str | dict[str, str] | None:
    """Bytes as text, or in hex where they are no UTF-8."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"hex": raw.hex()}


def _answer_doc(row: Remembered) -> tuple[Any, ...]:
    return row._replace(key=row.key.hex(), digest=row.digest.hex())  # type: ignore[arg-type]
