"""Locate the byte offset of a decode error."""

import re
from collections.abc import Iterator
from json import JSONDecoder
from typing import Final, NamedTuple

import orjson

from processor.contract.outcomes import Code
from processor.contract.values import COMMAND_MAX_BYTES, DEPTH_MAX, INTEGER_MAX
from processor.engine.codec import Draft, Unreadable, decode
from processor.engine.decode_errors import json_fault
from processor.ops.json_path import Path, parse, written

_BOM: Final = b"\xef\xbb\xbf"
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_SCALAR: Final = re.compile(r"[^\s,\]}]+")
_STRINGS: Final = JSONDecoder(strict=False)
DUMP_WIDTH: Final = 16


class DecodeFault(NamedTuple):
    """`at`: offset in bytes of the value, None where it is nowhere in particular; `path` of the
    field, where there is one."""

    at: int | None
    problem: str
    path: str | None = None


class Diagnosis(NamedTuple):
    """What the processor would say of a record now: `code` None if it would be read."""

    code: Code | None
    faults: list[DecodeFault]


def diagnose(key: bytes | None, value: bytes | None, *, locate: bool = True) -> Diagnosis:
    """Diagnose a record by the processor's own checks 1 to 5. Without `locate`, where in a value
    that is JSON the faults are is not looked for: it takes a second for the largest."""
    read = decode(Draft(key, value))
    if not isinstance(read, Unreadable):
        return Diagnosis(None, [])
    faults: list[DecodeFault] = []
    match read.code:
        case Code.TOO_LARGE:
            if value is not None and len(value) > COMMAND_MAX_BYTES:
                what = f"the value has {len(value):,} bytes, {COMMAND_MAX_BYTES:,} are allowed"
                faults.append(DecodeFault(COMMAND_MAX_BYTES, what))
            else:
                faults.append(DecodeFault(None, f"the key has {len(key or b''):,} bytes"))
        case Code.MALFORMED:
            faults.append(_malformed(value or b"", read.problem, locate))
        case Code.UNSUPPORTED_VERSION:
            problems = [("schema_version", "only version 1 is known")]
            faults += _fields(value or b"", problems, locate)
        case Code.INVALID_COMMAND:
            problems = [(one["field"], one["problem"]) for one in read.details.get("errors", ())]
            faults += _fields(value or b"", problems, locate)
        case Code.INVALID_KEY:
            shown = "missing" if key is None else repr(key[:64].decode("utf-8", "replace"))
            faults += _fields(value or b"", [("flow_id", f"the record's key is {shown}")], locate)
    return Diagnosis(read.code, faults)


def _malformed(value: bytes, problem: str, locate: bool) -> DecodeFault:
    if not value:
        return DecodeFault(None, "there is no value")
    if value.startswith(_BOM):
        return DecodeFault(0, "a byte order mark; remove these three bytes")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        return DecodeFault(
            error.start, f"not UTF-8: byte 0x{value[error.start]:02x}, {error.reason}"
        )
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        what = json_fault(error) or f"not JSON: {error.msg}"
        return DecodeFault(len(text[: error.pos].encode()), what)
    if not isinstance(parsed, dict):
        return DecodeFault(0, "not a JSON object")
    for place in places(text) if locate else ():
        if len(place.path) > DEPTH_MAX - 1 and text[place.at] in "{[":
            return DecodeFault(place.at_bytes(text), f"nested deeper than {DEPTH_MAX}")
        if text[place.at] in "-0123456789" and _too_large(text, place.at):
            return DecodeFault(
                place.at_bytes(text), "a number beyond ±(2^53−1)", written(place.path)
            )
    return DecodeFault(None, problem)


def _too_large(text: str, at: int) -> bool:
    found = _SCALAR.match(text, at)
    return found is not None and not -INTEGER_MAX <= orjson.loads(found[0]) <= INTEGER_MAX


def _fields(value: bytes, problems: list[tuple[str, str]], locate: bool) -> Iterator[DecodeFault]:
    """Where the fields stand; what is missing stands nowhere. Of a repeated name, the last."""
    text = value.decode()
    paths = [parse(field) if _is_path(field) else (field,) for field, _ in problems]
    wanted, deepest = set(paths), max(map(len, paths), default=0)
    found = {
        place.path: place
        for place in (places(text) if locate else ())
        if len(place.path) <= deepest and place.path in wanted
    }
    for path, (_, problem) in zip(paths, problems, strict=True):
        place = found.get(path)
        yield DecodeFault(None if place is None else place.at_bytes(text), problem, written(path))


def _is_path(field: str) -> bool:
    try:
        parse(field)
    except ValueError:
        return False
    return True


class ByteSpan(NamedTuple):
    """A value in a JSON text: its path, and where it begins, in characters."""

    path: Path
    at: int

    def at_bytes(self, text: str) -> int:
        return len(text[: self.at].encode())


def places(text: str) -> Iterator[ByteSpan]:
    """Each value of a text that is JSON, the outer before the inner. No recursion: the text may be
    nested as deep as it is long."""
    at = _after_space(text, 0)
    stack: list[tuple[Path, int]] = []  # an open array or object, and the next index; -1: object
    path: Path = ()
    while True:
        yield ByteSpan(path, at)
        opened = text[at]
        at = _after_space(text, at + 1) if opened in "{[" else _behind(text, at)
        if opened == "{" and text[at] != "}":
            stack.append((path, -1))
            path, at = _member(path, text, at)
            continue
        if opened == "[" and text[at] != "]":
            stack.append((path, 0))
            path = (*path, 0)
            continue
        if opened in "{[":
            at += 1
        while True:  # what is complete now
            at = _after_space(text, at)
            if not stack:
                return
            outer, index = stack[-1]
            if text[at] == ",":
                at = _after_space(text, at + 1)
                break
            stack.pop()
            at += 1
        if index < 0:
            path, at = _member(outer, text, at)
        else:
            stack[-1] = outer, index + 1
            path = (*outer, index + 1)


def _member(outer: Path, text: str, at: int) -> tuple[Path, int]:
    name, at = _STRINGS.raw_decode(text, at)
    at = _after_space(text, at)
    return (*outer, name), _after_space(text, at + 1)


def _behind(text: str, at: int) -> int:
    """Behind a string, a number or a word."""
    if text[at] == '"':
        return _STRINGS.raw_decode(text, at)[1]
    found = _SCALAR.match(text, at)
    return at if found is None else found.end()


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()


def hex_dump(value: bytes, *, around: int = 0, lines: int = 8) -> list[str]:
    """`lines` lines of 16 bytes as hex and as text, those about the offset `around`."""
    first = max(0, around // DUMP_WIDTH - lines // 2)
    shown = []
    for line in range(first, first + lines):
        part = value[line * DUMP_WIDTH : (line + 1) * DUMP_WIDTH]
        if not part:
            break
        pairs = " ".join(f"{byte:02x}" for byte in part)
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)
        mark = ">" if line == around // DUMP_WIDTH else " "
        shown.append(f"{mark}{line * DUMP_WIDTH:08x}  {pairs:<47}  {text}")
    return shown
