"""The values that every message is made of, and their limits."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

SCHEMA_VERSION: Final = 1

COMMAND_MAX_BYTES: Final = 512 * 1024
"""A command's value; what is longer is quarantined as `too_large`."""
KEY_MAX_BYTES: Final = 64
DEPTH_MAX: Final = 64
"""Nesting of a command; its outermost object is 1."""
INTEGER_MAX: Final = 2**53 - 1
"""The largest magnitude that every JSON implementation keeps exactly."""
STATE_MAX_BYTES: Final = 256 * 1024
RESULT_MAX_BYTES: Final = 64 * 1024
INPUT_MAX_BYTES: Final = 64 * 1024
PROGRESS_MAX_BYTES: Final = 4 * 1024
PROMPT_MAX_BYTES: Final = 16 * 1024
LIVE_STEPS_MAX: Final = 1000
"""Pending or running managed steps of one flow."""
LIVE_INPUTS_MAX_BYTES: Final = 4 * 1024 * 1024
"""What `input_json` of those takes together, as written."""
DAY_MS: Final = 86_400_000
ERRORS_MAX: Final = 20
"""How many problems an `invalid_command` outcome lists."""
EVENTS_PER_PARTITION: Final = 2**40
"""Event ids of partition p are p * 2**40 + 1, + 2, …"""
PARTITIONS_MAX: Final = (INTEGER_MAX + 1) // EVENTS_PER_PARTITION
"""8192: event ids of more would exceed INTEGER_MAX."""

UUID_PATTERN: Final = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
INSTANT_PATTERN: Final = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z$"  # \d takes any script's
)
DIGEST_PATTERN: Final = r"^[0-9a-f]{32}$"

_RFC3339 = re.compile(
    # Python 3.14 takes hour 24 as the next midnight, and RFC 3339 does not.
    r"(\d{4}-\d\d-\d\d)[Tt]((?:[01]\d|2[0-3]):\d\d):(\d\d)(?:\.(\d+))?"
    r"([Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TIMES_KNOWN: Final = 8_192
"""Milliseconds of some seconds: of one step a worker writes three times, and reads each again."""
KNOWN_TEXT_MAX: Final = 64
"""A longer time is not kept: a fraction of a second may have as many digits as a command has room
for."""
NO_TIME: Final = "not an RFC 3339 time with an offset"
OUTSIDE_THE_YEARS: Final = "outside the years 1..9999 in UTC"


def parse_timestamp(text: str) -> int:
    """Milliseconds since 1970 of an RFC 3339 time with an offset; finer digits are cut off.

    A leap second (23:59:60 UTC) counts as the second after it. Raises ValueError if `text` is no
    such time, or lies outside the years 1 to 9999 in UTC.
    """
    return _known(text) if len(text) <= KNOWN_TEXT_MAX else _parsed(text)


def _parsed(text: str) -> int:
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(NO_TIME)
    date, minute, second, fraction, offset = match.groups()
    leap = second == "60"
    try:
        whole = datetime.fromisoformat(
            f"{date}T{minute}:{'59' if leap else second}{'+00:00' if offset in 'Zz' else offset}"
        ).astimezone(UTC)
        if leap:
            if (whole.hour, whole.minute) != (23, 59):
                raise ValueError("leap seconds are the last of a UTC day")
            whole += timedelta(seconds=1)
    except OverflowError:
        raise ValueError(OUTSIDE_THE_YEARS) from None
    except ValueError:
        outside = date.startswith("0000")
        raise ValueError(OUTSIDE_THE_YEARS if outside else NO_TIME) from None
    delta = whole - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * 1000 + int((fraction or "0")[:3].ljust(3, "0"))


_known: Final = lru_cache(maxsize=TIMES_KNOWN)(_parsed)


@lru_cache(maxsize=TIMES_KNOWN)
def instant(at_ms: int) -> str:
    """The one way in which a time is written: RFC 3339, UTC, milliseconds, `Z`.

    Fixed width, so that texts compare as their times do.
    """
    whole = _EPOCH + timedelta(milliseconds=at_ms)
    return f"{whole:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03d}Z".rjust(24, "0")


def _canonical(value: object) -> object:
    return instant(parse_timestamp(value)) if isinstance(value, str) else value


Json = Any
"""Any JSON value. Numbers are within ±(2**53 - 1)."""
Uuid = Annotated[str, StringConstraints(pattern=UUID_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
LongText = Annotated[str, StringConstraints(min_length=1, max_length=4096)]
WaitText = Annotated[str, StringConstraints(min_length=1, max_length=512)]
Digest = Annotated[str, StringConstraints(pattern=DIGEST_PATTERN)]
Revision = Annotated[int, Field(ge=0, le=INTEGER_MAX)]
Offset = Annotated[int, Field(ge=0)]
Attempt = Annotated[int, Field(ge=0, le=INTEGER_MAX)]
LeaseMs = Annotated[int, Field(ge=1_000, le=DAY_MS)]
DelayMs = Annotated[int, Field(ge=0, le=DAY_MS)]
EventId = Annotated[int, Field(ge=1)]

Instant = Annotated[
    str,
    StringConstraints(pattern=INSTANT_PATTERN),
    Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-22T21:02:08.123Z"]),
]
"""A time as taskflow writes it."""

Timestamp = Annotated[
    str,
    BeforeValidator(_canonical),
    Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-22T22:02:08+01:00"]),
]
"""A time as anyone may send it; held in the form of `Instant`."""


class Message(BaseModel):
    """What all published models share: nothing unknown, nothing coerced, nothing changed."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
    _all_fields: ClassVar[set[str]]
    """Shared by all that was made without validation: each would hold two kilobytes of its own."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        cls._all_fields = set(cls.model_fields)

    @classmethod
    def trusted(cls, fields: dict[str, Any]) -> Self:
        """An instance with `fields`, all that there are, which are believed and kept.

        What `model_construct` does, in a fifth of the time.
        """
        message = _new(cls)
        _set_dict(message, fields)
        _set_fields_set(message, cls._all_fields)
        _set_extra(message, None)
        _set_private(message, None)
        return message

    def changed(self, changes: dict[str, Any]) -> Self:
        """This message with other values in some fields, which are believed."""
        return self.trusted(self.__dict__ | changes)


# What a model consists of; asking `object.__setattr__` each time takes half as long again.
_new = object.__new__
_set_dict, _set_fields_set, _set_extra, _set_private = (
    BaseModel.__dict__[slot].__set__ for slot in BaseModel.__slots__
)


class Source(Message):
    """The record that caused something: full topic name, partition, offset."""

    topic: str
    partition: Annotated[int, Field(ge=0)]
    offset: Offset
