"""A history in a file: lines of JSON, compressed by gzip, that say by themselves what they are.

The first line names the format, the version that wrote it and the rules. Then come the partitions,
one after the other: a line for where its history begins, with flows and answers as they were then
if that is not the very beginning; lines for each command; a line for each flow and step as `state`
had it in the end; and a line for its end. An empty line ends a transaction.

A command and what was written about it stand there byte for byte, each value in a line of its own
behind a tab: most of the time of reading would go into quoting them. `zcat FILE | head` shows it.
"""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final, TypeGuard

import orjson

from processor.batch import Outgoing
from processor.codec import Headers
from processor.ops.replay.recorded import FORMAT, Beginning, Decided, Head, Snapshot
from processor.ops.replay.store import Store, known_doc
from processor.rows import Remembered
from schemas.events import CHAIN_HEADER, TRACEPARENT_HEADER
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
            self._file.writelines(_decided_lines(one))
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


def _decided_lines(one: Decided) -> Iterator[bytes]:
    """A line about the command, then the values: its own, the outcome's, the events', the dead
    letter's. What is as usual is left out: key and trace are the command's, headers of an event are
    its chain and that trace."""
    record = one.record
    doc: dict[str, Any] = {
        "topic": record.topic.rpartition(".")[2],
        "offset": record.offset,
        "at": record.timestamp,
        "key": _text(record.key),
    }
    values: list[bytes] = []
    if record.headers:
        doc["headers"] = _headers_doc(record.headers)
    if _fits(record.value):
        values.append(record.value)
    else:
        doc["value"] = _text(record.value)
    trace = trace_of(record.headers)
    if (odd := _odd(one.outcome, record.key, trace, values)) is not None:
        doc["outcome"] = odd
    if one.events:
        doc["events"] = [_event_doc(event, record.key, trace, values) for event in one.events]
    if one.letter is not None:
        doc["letter"] = _odd(one.letter, b"", None, values)
    yield orjson.dumps(doc) + b"\n"
    for value in values:
        yield b"\t" + value + b"\n"


def _event_doc(
    event: Outgoing, key: bytes | None, trace: Headers, values: list[bytes]
) -> str | dict[str, Any] | None:
    """Its chain alone, where all else is as usual."""
    if event.headers and event.headers[0][0] == CHAIN_HEADER:
        chain, *rest = event.headers
        if _odd(Outgoing(event.key, event.value, rest), key, trace, []) is None:
            values.append(event.value or b"")
            return chain[1].hex()
    return _odd(event, b"", None, values)


def _odd(
    record: Outgoing, key: bytes | None, trace: Headers | None, values: list[bytes]
) -> dict[str, Any] | None:
    """None where key and headers are as usual and the value fits into a line; else all that is
    not. `trace` None: they never are."""
    doc: dict[str, Any] = {}
    if trace is None or record.key != key or [*record.headers] != [*trace]:
        doc = {"key": _text(record.key), "headers": _headers_doc(record.headers)}
    if _fits(record.value):
        values.append(record.value)
    else:
        usual = {"key": _text(record.key), "headers": _headers_doc(record.headers)}
        doc = {**usual, "value": _text(record.value)}
    return doc or None


def _fits(value: bytes | None) -> TypeGuard[bytes]:
    """Whether it is a text that can be a line."""
    if value is None or b"\n" in value:
        return False
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def trace_of(headers: Headers) -> Headers:
    """What is usually carried on of a command's headers."""
    return [header for header in headers if header[0] == TRACEPARENT_HEADER][-1:]


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
