"""Values of the contract as a reader of it checks them: JSON, texts, times, fields, sizes."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

Doc = dict[str, Any]

KIB = 1024
LARGEST = 2**53 - 1
REQUIRED = object()
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Refused(Exception):  # a verdict, and no error
    code: str
    details: Doc | None = None


def is_copy(headers: Any) -> bool:
    """Whether a record says, where the processor would, of which record it is a copy."""
    name, value = headers[-1] if headers else ("", None)
    try:
        place = (value or b"").decode()
    except UnicodeDecodeError:
        return False
    found = re.fullmatch(r"(?s).+/(0|[1-9][0-9]{0,9})/(0|[1-9][0-9]{0,18})", place)
    if name != "taskflow-forwarded-from" or found is None:
        return False
    return int(found[1]) < 2**31 and int(found[2]) < 2**63  # as Kafka numbers them


def is_text(value: Any, longest: int = 256) -> bool:
    return isinstance(value, str) and 1 <= len(value) <= longest


def is_uuid(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    return re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", value) is not None


def is_integer(value: Any) -> bool:
    return type(value) is int


def is_time(value: Any) -> bool:
    return isinstance(value, str) and milliseconds(value) is not None


def milliseconds(text: str) -> int | None:
    """Since 1970, cut; None if it is no RFC 3339 time."""
    found = re.fullmatch(
        r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", text, re.ASCII
    )
    if found is None:
        return None
    *numbers, fraction, offset = found.groups()
    shift = 0
    if offset not in "Zz":
        hours, minutes = int(offset[1:3]), int(offset[4:6])
        if hours > 23 or minutes > 59:
            return None
        shift = (hours * 60 + minutes) * (-1 if offset[0] == "-" else 1)
    try:
        moment = datetime(*map(int, numbers), tzinfo=UTC) - timedelta(minutes=shift)  # type: ignore[misc, arg-type]
    except (ValueError, OverflowError):
        return None
    return (moment - EPOCH) // timedelta(milliseconds=1) + int(((fraction or ".") + "000")[1:4])


def written(at_ms: int) -> str:
    moment = EPOCH + timedelta(milliseconds=at_ms)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def sorted_compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def digest(*parts: bytes) -> bytes:
    """BLAKE2b-128 of `parts`, one after the other."""
    return blake2b(b"".join(parts), digest_size=16).digest()


def anything(_: Any) -> bool:
    return True


def merged(state: Any, patch: Any) -> Any:
    both_objects = isinstance(state, dict) and isinstance(patch, dict)
    return {**state, **patch} if both_objects else patch


def wrong_in(value: Doc, fields: dict[str, Any]) -> Iterator[str]:
    for name in value:
        if name not in fields:
            yield name
    for name, (fits, default) in fields.items():
        if name not in value:
            if default is REQUIRED:
                yield name
        elif value[name] is None and default is not REQUIRED:
            pass
        elif not fits(value[name]):
            yield name


def without_absent(value: Doc, fields: dict[str, Any]) -> Doc:
    """Null in an optional field equals absent."""
    return {
        name: one
        for name, one in value.items()
        if one is not None or name not in fields or fields[name][1] is REQUIRED
    }


def parsed(value: bytes | None) -> Doc | None:
    """Check 2; None: malformed."""

    def no_constant(name: str) -> Any:
        raise ValueError(name)

    if not value or value.startswith(b"\xef\xbb\xbf"):
        return None
    try:
        found = json.loads(value.decode("utf-8"), parse_constant=no_constant)
        found_is_good = isinstance(found, dict) and all(fits_in(found, 1))
    except (ValueError, RecursionError):
        return None
    return found if found_is_good else None


def fits_in(value: Any, depth: int) -> Iterator[bool]:
    if isinstance(value, dict | list):
        yield depth <= 64
        inside = [*value, *value.values()] if isinstance(value, dict) else value
        for one in inside:
            yield from fits_in(one, depth + 1)
    elif isinstance(value, str):
        yield not any("\ud800" <= char <= "\udfff" for char in value)
    elif isinstance(value, int | float):
        yield -LARGEST <= value <= LARGEST


def fits(value: Any, kib: int) -> Any:
    if len(compact(value)) > kib * KIB:
        raise Refused("state_too_large")
    return value
