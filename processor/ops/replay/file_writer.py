"""Write a history to a file: gzip-compressed, self-describing lines and columns.

The first line names the format, the version that wrote it and the rules. Then come the partitions,
one after the other: a line for where its history begins, with flows and ledger entries as they
were then if that is not the very beginning; blocks of commands; blocks of flows and steps as
`state` had them in the end; and a line for the end.

A block is a line of JSON, and as many bytes of values as it says, each value a line of its own,
byte for byte: the commands', then their outcomes', events' and dead letters'. The JSON has all else
in columns, without what is as usual: a line to parse for each command took a quarter of the time of
a check. `zcat FILE | head` shows it.
"""

import gzip
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import orjson

from processor.contract.events import CHAIN_HEADER, CHAIN_START, TRACEPARENT_HEADER
from processor.contract.headers import Header, Headers
from processor.contract.topics import CONTROL
from processor.contract.values import SCHEMA_VERSION
from processor.engine.batch import Outgoing
from processor.engine.rows import LedgerEntry
from processor.ops.replay.recorded_history import (
    FORMAT,
    Beginning,
    Decided,
    Head,
    RecordedSnapshot,
    RecordedTransaction,
)
from processor.ops.replay.store import ReplayStore, known_doc

LEVEL: Final = 3
"""Of gzip; higher ones take longer and save little."""
BLOCK_MAX: Final = 50
"""Commands in a block: few enough that gzip, which looks back 32 KiB, finds the ids of a command
again in what was written about it."""
_CONTROL: Final = f".{CONTROL.name}"


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

    def begin(self, partition: int, beginning: Beginning, store: ReplayStore) -> None:
        """A partition, with what is known before its first command."""
        self._commands = self._events = 0
        self._line({"partition": partition, **beginning._asdict()})
        for known in store.known():
            self._line({"known": known_doc(known)})
        for entry in store.ledger():
            self._line({"answer": [*_ledger_doc(entry)]})

    def transaction(self, done: RecordedTransaction) -> None:
        each = [*done.each()]
        for start in range(0, len(each), BLOCK_MAX):
            some = each[start : start + BLOCK_MAX]
            self._block({"ends": start + BLOCK_MAX >= len(each), **_columns(some)}, _values(some))
            self._commands += len(some)
        self._events += len(done.events)

    def snapshots(self, some: Sequence[RecordedSnapshot]) -> None:
        if some:
            self._block({"snapshots": [text_of(key) for key, _ in some]}, [v for _, v in some])

    def end(self, partition: int, waking: Sequence[str]) -> None:
        counts = {"commands": self._commands, "events": self._events}
        self._line({"end": partition, **counts, "waking": [*waking]})

    def _block(self, doc: Mapping[str, Any], values: Sequence[bytes | None]) -> None:
        odd = [[n, text_of(value)] for n, value in enumerate(values) if not _fits(value)]
        left_out = {n for n, _ in odd}
        lines = [b"" if n in left_out else value or b"" for n, value in enumerate(values)]
        block = b"\n".join(lines) + b"\n"
        self._line({"block": len(block), **doc, **({"values": odd} if odd else {})})
        self._file.write(block)

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


def _values(some: Sequence[Decided]) -> list[bytes | None]:
    return [
        *(one.record.value for one in some),
        *(record.value for record in _written(some)),
    ]


def _written(some: Sequence[Decided]) -> Iterator[Outgoing]:
    yield from (one.outcome for one in some)
    yield from (event for one in some for event in one.events)
    yield from (one.dead_letter for one in some if one.dead_letter is not None)


def _columns(some: Sequence[Decided]) -> dict[str, Any]:
    """All but the values. What is usual of a written record is left out: key and trace are the
    command's, and before that trace an event has its chain, a dead letter nothing. `odd` has those
    that are not so, by their number among the written ones."""
    records = [one.record for one in some]
    doc: dict[str, Any] = {
        "offsets": [record.offset for record in records],
        "at": [record.timestamp for record in records],
        "keys": [text_of(record.key) for record in records],
    }
    if control := [n for n, record in enumerate(records) if record.topic.endswith(_CONTROL)]:
        doc["control"] = control
    if any(record.headers for record in records):
        # The same ones come again and again.
        different: dict[Headers, int] = {}
        doc["headers_of"] = [
            different.setdefault(tuple(record.headers), len(different)) for record in records
        ]
        doc["headers"] = [_headers_doc(headers) for headers in different]
    if any(one.events for one in some):
        doc["events"] = [len(one.events) for one in some]
        chains = (_chain_of(event) for one in some for event in one.events)
        doc["chains"] = b"".join(chains).hex()
    if dead_letters := [n for n, one in enumerate(some) if one.dead_letter is not None]:
        doc["letters"] = dead_letters
    usual = [*_usual(some)]
    odd = [
        [n, text_of(record.key), _headers_doc(record.headers)]
        for n, (record, expected) in enumerate(zip(_written(some), usual, strict=True))
        if (record.key, [*record.headers]) != expected
    ]
    if odd:
        doc["odd"] = odd
    return doc


def _usual(some: Sequence[Decided]) -> Iterator[tuple[bytes | None, list[Header]]]:
    """Key and headers of what is written, as they usually are."""
    for one in some:
        yield one.record.key, [*trace_of(one.record.headers)]
    for one in some:
        for event in one.events:
            chain = (CHAIN_HEADER, _chain_of(event))
            yield one.record.key, [chain, *trace_of(one.record.headers)]
    for one in some:
        if one.dead_letter is not None:
            yield one.record.key, [*trace_of(one.record.headers)]


def _chain_of(event: Outgoing) -> bytes:
    chain = dict(event.headers).get(CHAIN_HEADER)
    return chain if chain is not None and len(chain) == len(CHAIN_START) else CHAIN_START


def _fits(value: bytes | None) -> bool:
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
    return [[name, text_of(value)] for name, value in headers]


def text_of(raw: bytes | None) -> str | dict[str, str] | None:
    """Bytes as text, or in hex where they are no UTF-8."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"hex": raw.hex()}


def _ledger_doc(row: LedgerEntry) -> tuple[Any, ...]:
    return row._replace(key=row.key.hex(), digest=row.digest.hex())  # type: ignore[arg-type]
