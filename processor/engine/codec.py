"""Decode commands by checks 1 to 5 of the contract, and events."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

import orjson
from pydantic import ValidationError

from processor.contract.commands import COMMANDS, MODELS, Command
from processor.contract.events import TRACEPARENT_HEADER, TRACEPARENT_MAX_BYTES, EventKind
from processor.contract.flow import WAITS, FlowStatus
from processor.contract.headers import Headers
from processor.contract.outcomes import Code
from processor.contract.values import (
    COMMAND_MAX_BYTES,
    DEPTH_MAX,
    INTEGER_MAX,
    KEY_MAX_BYTES,
    UUID_PATTERN,
)
from processor.domain.facts import Fact
from processor.engine.decode_errors import (
    OUT_OF_RANGE,
    TOO_DEEP,
    bounded,
    describe_json_error,
    problems,
    sentence,
)
from processor.engine.rows import ledger_key


class Record(Protocol):
    """What is read of a Kafka record; `timestamp` is the broker's append time in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


@dataclass(slots=True)
class Draft:
    """A record that is not written yet, to be read as the processor would."""

    key: bytes | None
    value: bytes | None
    topic: str = ""
    partition: int = 0
    offset: int = 0
    timestamp: int = 0
    headers: Headers = ()


class Readable(NamedTuple):
    """A record that passed checks 1 to 5. `digest` is the command's, 16 bytes."""

    record: Record
    command: Command
    digest: bytes
    ledger_key: bytes


# As rows.new_flow_row.
_readable: Final[Callable[[tuple[Record, Command, bytes, bytes]], Readable]] = partial(
    tuple.__new__, Readable
)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that did not, with what could be known from its bytes all the same."""

    record: Record
    code: Code
    details: dict[str, Any] = field(default_factory=dict)
    problem: str = ""
    command_id: str | None = None
    flow_id: str | None = None
    kind: str | None = None
    dry_run: bool | None = None
    digest: bytes | None = None


class _Malformed(ValueError):
    """The value is not one JSON object within the limits."""


_SORTED: Final = orjson.OPT_SORT_KEYS
_validated: Final[Callable[[Mapping[str, Any]], Command]] = COMMANDS.validator.validate_python
_UUID: Final = re.compile(UUID_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
# A number that orjson writes in another way than the canonical form does: below 1e-4.
_MAYBE_TINY: Final = re.compile(rb"[:,\[]-?(?:0\.0000|\d(?:\.\d+)?e-)")
_OPTIONAL: Final = {
    kind: frozenset(name for name, info in model.model_fields.items() if not info.is_required())
    for kind, model in MODELS.items()
}
_OPTIONAL_OF_WAITS: Final = {
    kind: frozenset(name for name, info in model.model_fields.items() if not info.is_required())
    for kind, model in WAITS.items()
}


def fact_of(event: Mapping[str, Any]) -> Fact:
    """What a FlowEvent as JSON says that happened."""
    return Fact(
        EventKind(event["kind"]),
        event["flow_id"],
        event["at"],
        event["revision"],
        FlowStatus(event["status"]),
        event["payload_json"],
    )


def traceparent(headers: Headers) -> Headers:
    """The last one, unless it is too long to go on."""
    last = [h for h in headers if h[0] == TRACEPARENT_HEADER][-1:]
    return [h for h in last if len(h[1] or b"") <= TRACEPARENT_MAX_BYTES]


def canonical(value: Any) -> bytes:
    """JSON with sorted keys, compact, UTF-8; floats as Python's `json` writes them."""
    text = orjson.dumps(value, option=_SORTED)
    if not (b"e-" in text or b"0.0000" in text) or _MAYBE_TINY.search(text) is None:
        return text
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(mapping: Mapping[str, Any]) -> bytes:
    """BLAKE2b-128 of a command's canonical JSON; nulls in optional fields are absent."""
    return blake2b(canonical(without_nulls(mapping)), digest_size=16).digest()


def command_digest(mapping: Mapping[str, Any]) -> str:
    """`command_digest` of the outcome of the command `mapping`."""
    return digest_of(mapping).hex()


def without_nulls(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same command without nulls in optional fields; unknown fields stay to be refused."""
    if None in mapping.values():
        mapping = _without_optional_nulls(mapping, _OPTIONAL)
    wait = mapping.get("wait")
    if isinstance(wait, dict) and None in wait.values():
        mapping = {**mapping, "wait": _without_optional_nulls(wait, _OPTIONAL_OF_WAITS)}
    return mapping


def _without_optional_nulls(
    mapping: Mapping[str, Any], optional: Mapping[str, frozenset[str]]
) -> Mapping[str, Any]:
    """`optional` are the fields that may be left out, by the mapping's kind."""
    kind = mapping.get("kind")
    names = optional.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
    return {k: v for k, v in mapping.items() if v is not None or k not in names}


def decode(record: Record) -> Readable | Unreadable:
    """Reads `record` as a command, by checks 1 to 5 of the contract."""
    value, key = record.value, record.key
    if (value is not None and len(value) > COMMAND_MAX_BYTES) or (
        key is not None and len(key) > KEY_MAX_BYTES
    ):
        return Unreadable(record, Code.TOO_LARGE)
    try:
        mapping: Mapping[str, Any]
        mapping, holds_float = _parse(value)
    except _Malformed as malformed:
        return Unreadable(record, Code.MALFORMED, problem=str(malformed))
    version = mapping.get("schema_version")
    if version is not None and (type(version) is not int or version != 1):
        return _unreadable(record, mapping, Code.UNSUPPORTED_VERSION)
    if value is not None and b"null" in value:  # there is no other way to write one
        mapping = without_nulls(mapping)
    try:
        command = _validated(bounded(mapping))
    except ValidationError as error:
        return _invalid(record, mapping, problems(error))
    if key != command.flow_id.encode():
        return _unreadable(record, mapping, Code.INVALID_KEY)
    # Only a float may be written in two ways.
    text = canonical(mapping) if holds_float else orjson.dumps(mapping, option=_SORTED)
    digest = blake2b(text, digest_size=16).digest()
    return _readable((record, command, digest, ledger_key(command.flow_id, command.command_id)))


def _invalid(
    record: Record, mapping: Mapping[str, Any], errors: list[dict[str, str]]
) -> Unreadable:
    item = _unreadable(record, mapping, Code.INVALID_COMMAND, errors=errors)
    return replace(item, problem=sentence(errors))


def _unreadable(
    record: Record, mapping: Mapping[str, Any], code: Code, **details: Any
) -> Unreadable:
    kind = mapping.get("kind")
    return Unreadable(
        record,
        code,
        details,
        command_id=_uuid(mapping.get("command_id")),
        flow_id=_uuid(mapping.get("flow_id")),
        kind=kind if isinstance(kind, str) and kind in MODELS else None,
        dry_run=_flag(mapping.get("dry_run")),
        digest=digest_of(mapping),
    )


def _flag(value: Any) -> bool | None:
    """`dry_run` as far as it can be read; absent means false."""
    return bool(value) if value is None or isinstance(value, bool) else None


def _uuid(value: Any) -> str | None:
    return value if isinstance(value, str) and _UUID.match(value) else None


def _parse(value: bytes | None) -> tuple[dict[str, Any], bool]:
    """Check 2: the object, and whether a float is in it. Raises _Malformed, whose text says what
    is wrong and nothing of the payload."""
    if not value:
        raise _Malformed("it is empty")
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _Malformed(describe_json_error(value, error)) from None
    if not isinstance(parsed, dict):
        raise _Malformed("it is not an object")
    return parsed, _check(parsed.values(), DEPTH_MAX - 1)


def _check(values: Iterable[Any], depth_left: int) -> bool:
    """Refuse numbers out of range, and what is nested deeper than `depth_left` below here; whether
    one of the numbers is a float.

    A search of the bytes for long digits and brackets was tried instead; on commands as they are,
    full of ids and times, it takes five times as long.
    """
    holds_float = False
    for value in values:
        kind = type(value)
        if kind is str:
            continue
        if kind is dict or kind is list:
            if not depth_left:
                raise _Malformed(TOO_DEEP)
            if _check(value.values() if kind is dict else value, depth_left - 1):
                holds_float = True
        elif kind is int or kind is float:
            if not -INTEGER_MAX <= value <= INTEGER_MAX:
                raise _Malformed(OUT_OF_RANGE)
            if kind is float:
                holds_float = True
    return holds_float
