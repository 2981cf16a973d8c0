"""The kinds of values that a setting may have."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr
from pydantic_settings import NoDecode

from processor.contract.topics import SPECS

PREFIX: Final = "TASKFLOW_"
OFF: Final = "off"

_UNIT_MS: Final = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = list(_UNIT_MS.values())[1:]

NAME_MAX: Final = 249  # Kafka's limit of a topic name
PREFIX_MAX: Final = NAME_MAX - max(len(spec.name) for spec in SPECS) - 1

FAULT: Final = (
    r"(?P<point>K[0-9]|K1[0-3])"
    r":(?P<action>kill|stop|(?<!K5:)raise|(?<=K8:)full|delay=(?P<delay>[0-9]{1,12}(?:ms|[smhd])))"
    r"(?:@(?P<nth>[1-9][0-9]{0,8}|\*))?"
)
"""A crash point, what happens there, and at which time; an exception raised at K5 would be lost."""


class Expected(NamedTuple):
    """What a setting may be, in words that finish the sentence "it must be …"."""

    words: str


class Address(NamedTuple):
    """Where to listen; port 0 means a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_duration(text: str) -> int:
    """Milliseconds of `250ms`, `5s`, `10m`, `24h` or `30d`. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,12})(ms|s|m|h|d)", text.strip())
    if match is None:
        raise ValueError("not a duration such as 250ms, 5s, 10m, 24h or 30d")
    return int(match[1]) * _UNIT_MS[match[2]]


def variable(field: str) -> str:
    """The environment variable of a field of `Settings`; its unit is not part of the name."""
    return PREFIX + field.removesuffix("_ms").upper()


def as_duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


def as_duration_or_off(value: object) -> object:
    return None if value == OFF else as_duration(value)


def as_address(value: object) -> object:
    if not isinstance(value, str):
        return value
    return None if value == OFF else _address(value)


def _address(text: str) -> Address:
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\s:,\[\]]+)):([0-9]{1,5})", text.strip())
    if match is None or int(match[3]) > 65535:
        raise ValueError("not an address host:port")
    return Address(match[1] or match[2], int(match[3]))


def as_addresses(text: str) -> str:
    if not all(_address(part).port for part in text.split(",")):
        raise ValueError("port 0 cannot be connected to")
    return ",".join(part.strip() for part in text.split(","))


_HOST: Final = re.compile(r"\*|(\*\.)?[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?")


def as_hosts(value: object) -> object:
    if not isinstance(value, str):
        return value
    hosts = tuple(part.strip() for part in value.split(",") if part.strip())
    if not all(_HOST.fullmatch(host) for host in hosts):
        raise ValueError("not a list of host names")
    return hosts


def upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _expanded(path: Path) -> Path:
    return path.expanduser()


DURATION_WORDS = "a duration such as 250ms, 5s, 10m, 24h or 30d"
DurationMs = Annotated[int, BeforeValidator(as_duration)]
ExpandedPath = Annotated[Path, AfterValidator(_expanded)]


def as_command(secret: SecretStr) -> SecretStr:
    if not shlex.split(secret.get_secret_value()):
        raise ValueError("no command")
    return secret


def name_pattern(max_length: int) -> Any:
    return Field(pattern=r"^[A-Za-z0-9._-]+$", min_length=1, max_length=max_length)


def name_words(max_length: int) -> Expected:
    return Expected(f"1 to {max_length} letters, digits, dots, underscores or hyphens")


Name = Annotated[str, name_pattern(NAME_MAX), name_words(NAME_MAX)]


OwnAddress = Annotated[
    Address, NoDecode, BeforeValidator(as_address), Expected("an address host:port")
]
"""Where to listen."""
OptionalAddress = Annotated[
    Address | None, BeforeValidator(as_address), Expected("an address host:port, or off")
]
"""Where to listen; None: nowhere."""
Token = Annotated[SecretStr | None, Field(min_length=16), Expected("at least 16 characters")]
DatabaseAddress = Annotated[
    SecretStr | None, Expected("an address such as postgresql://user@host:5432/database")
]
SchemaName = Annotated[
    str,
    Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$"),
    Expected("1 to 63 lower-case letters, digits and underscores, no digit first"),
]
"""Of PostgreSQL: one that needs no quotes."""
OptionalDurationMs = Annotated[
    Annotated[int, Field(ge=1)] | None,
    BeforeValidator(as_duration_or_off),
    Expected(f"{DURATION_WORDS}, at least 1ms, or off"),
]
"""None: without end."""


def as_faults(text: str) -> str:
    if not all(re.fullmatch(FAULT, part) for part in text.split(",")):
        raise ValueError("not a list of crash points")
    return text


def as_whole_number(value: object) -> object:
    """Take digits alone; pydantic takes 4.0 and 1_0, too."""
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{1,18}", value.strip()):
        raise ValueError("not a whole number")
    return value


def whole(low: int, high: int | None = None) -> tuple[Any, Any, Expected]:
    limits = f"{low} to {high}" if high is not None else f"at least {low}"
    return (
        BeforeValidator(as_whole_number),
        Field(ge=low, le=high),
        Expected(f"a whole number of {limits}"),
    )


def between(low: str, high: str) -> tuple[Any, Expected]:
    return (
        Field(ge=parse_duration(low), le=parse_duration(high)),
        Expected(f"{DURATION_WORDS}, from {low} to {high}"),
    )
