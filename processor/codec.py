"""Bytes to commands and back: limits, and checks 1 to 5 of the contract."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

import orjson
from pydantic import ValidationError

from processor.rows import ledger_key
from schemas.commands import COMMANDS, MODELS, Command
from schemas.flow import Flow
from schemas.outcomes import Code
from schemas.values import (
    COMMAND_MAX_BYTES,
    DEPTH_MAX,
    ERRORS_MAX,
    KEY_MAX_BYTES,
    NUMBER_MAX,
    UUID_PATTERN,
)

Headers = Sequence[tuple[str, bytes]]


class Record(Protocol):
    """What is read of a Kafka record; `timestamp` is the broker's append time in ms."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Readable(NamedTuple):
    """A record that passed checks 1 to 5. `digest` is the command's, 16 bytes."""

    record: Record
    command: Command
    digest: bytes
    ledger_key: bytes


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


_UUID: Final = re.compile(UUID_PATTERN.removesuffix("$") + r"\Z", re.ASCII)
# A number that orjson writes in another way than the canonical form does: below 1e-4.
_MAYBE_TINY: Final = re.compile(rb"[:,\[]-?(?:0\.0000|\d(?:\.\d+)?e-)")
_OPTIONAL: Final = {
    kind: frozenset(name for name, info in model.model_fields.items() if not info.is_required())
    for kind, model in MODELS.items()
}


def encode(value: Any) -> bytes:
    """Compact JSON, non-ASCII as it is."""
    return orjson.dumps(value)


def flow_doc(flow: Flow) -> bytes:
    """A flow as it is written, on `state` and in the table."""
    return orjson.dumps({**vars(flow), "status": flow.status._value_})


def canonical(value: Any) -> bytes:
    """JSON with sorted keys, compact, UTF-8; floats as Python and the contract's checker write
    them."""
    text = orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    if not (b"e-" in text or b"0.0000" in text) or _MAYBE_TINY.search(text) is None:
        return text
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def digest_of(mapping: Mapping[str, Any]) -> bytes:
    """BLAKE2b-128 of a command's canonical JSON; nulls in optional fields are absent."""
    return blake2b(canonical(without_nulls(mapping)), digest_size=16).digest()


def command_digest(mapping: Mapping[str, Any]) -> str:
    """`command_digest` of the outcome that answers the command `mapping`."""
    return digest_of(mapping).hex()


def without_nulls(mapping: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same command without nulls in optional fields; unknown fields stay to be refused."""
    if None in mapping.values():
        kind = mapping.get("kind")
        optional = _OPTIONAL.get(kind, frozenset()) if isinstance(kind, str) else frozenset()
        mapping = {k: v for k, v in mapping.items() if v is not None or k not in optional}
    wait = mapping.get("wait")
    if isinstance(wait, dict) and wait.get("timeout_at", wait) is None:
        mapping = {**mapping, "wait": {k: v for k, v in wait.items() if k != "timeout_at"}}
    return mapping


def decode(record: Record) -> Readable | Unreadable:
    """Reads `record` as a command, by checks 1 to 5 of the contract."""
    value, key = record.value, record.key
    if (value is not None and len(value) > COMMAND_MAX_BYTES) or (
        key is not None and len(key) > KEY_MAX_BYTES
    ):
        return Unreadable(record, Code.TOO_LARGE)
    try:
        mapping: Mapping[str, Any] = _parse(value)
    except _Malformed as malformed:
        return Unreadable(record, Code.MALFORMED, problem=str(malformed))
    version = mapping.get("schema_version")
    if version is not None and (type(version) is not int or version != 1):
        return _unreadable(record, mapping, Code.UNSUPPORTED_VERSION)
    mapping = without_nulls(mapping)
    try:
        command = COMMANDS.validate_python(mapping)
    except ValidationError as error:
        return _unreadable(record, mapping, Code.INVALID_COMMAND, errors=problems(error))
    if key != command.flow_id.encode():
        return _unreadable(record, mapping, Code.INVALID_KEY)
    return Readable(
        record,
        command,
        blake2b(canonical(mapping), digest_size=16).digest(),
        ledger_key(command.flow_id, command.command_id),
    )


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
    """`dry_run` as far as it can be told; absent means false."""
    return bool(value) if value is None or isinstance(value, bool) else None


def _uuid(value: Any) -> str | None:
    return value if isinstance(value, str) and _UUID.match(value) else None


def _parse(value: bytes | None) -> dict[str, Any]:
    """Check 2. Raises _Malformed, whose text says what is wrong and nothing of the payload."""
    if not value:
        raise _Malformed("it is empty")
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise _Malformed(_why(value, error)) from None
    if not isinstance(parsed, dict):
        raise _Malformed("it is not an object")
    _check(parsed.values(), DEPTH_MAX - 1)
    return parsed


def _why(value: bytes, error: orjson.JSONDecodeError) -> str:
    if value.startswith(b"\xef\xbb\xbf"):
        return "it starts with a byte order mark"
    try:
        value.decode()
    except UnicodeDecodeError:
        return "it is not UTF-8"
    return f"it is not JSON at line {error.lineno}, column {error.colno}"


def _check(values: Iterable[Any], depth_left: int) -> None:
    """Refuse numbers out of range, and what is nested deeper than `depth_left` below here.

    A search of the bytes for long digits and brackets was tried instead; on commands as they are,
    full of ids and times, it takes five times as long.
    """
    for value in values:
        kind = type(value)
        if kind is str:
            continue
        if kind is dict or kind is list:
            if not depth_left:
                raise _Malformed(f"it is nested deeper than {DEPTH_MAX}")
            _check(value.values() if kind is dict else value, depth_left - 1)
        elif (kind is int or kind is float) and not -NUMBER_MAX <= value <= NUMBER_MAX:
            raise _Malformed("a number is out of range")


def problems(error: ValidationError) -> list[dict[str, str]]:
    """`details.errors` of an `invalid_command` outcome: fields and problems, without values."""
    found = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        location = [str(part) for part in item["loc"]]
        if location and location[0] in MODELS:
            location = location[1:]
        if len(location) > 1 and location[0] == "wait":
            location = ["wait", *[part for part in location[1:] if part not in _WAIT_TAGS]]
        problem = item["msg"]
        if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
            location = [*location, "kind"]
            problem = "Field required" if item["type"] == "union_tag_not_found" else "Unknown kind"
        found.append({"field": ".".join(location)[:256] or "kind", "problem": problem})
    return found[:ERRORS_MAX]


_WAIT_TAGS: Final = frozenset({"timer", "external_event", "manual"})
