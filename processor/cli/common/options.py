"""Options that several commands take: durations, times, flow ids."""

import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import typer

from processor.cli.common.runner import WrongUse

if TYPE_CHECKING:
    from processor.ops.conditions import Condition
from processor.runtime import now_ms

StatusName = Literal["created", "running", "waiting", "cancelled", "finished", "failed"]
"""A FlowStatus by its value: the help of a command needs no models."""

OUTCOME_TIMEOUT: Final = typer.Option("30s", "--timeout", help="How long to await each outcome.")
JSON: Final = typer.Option(False, "--json", help="JSON also on a terminal.")
JSON_LINES: Final = typer.Option(False, "--json", help="JSON lines also on a terminal.")
WHERE: Final = typer.Option(
    [], "--where", help="A condition on the flow; may be given again, all must hold."
)
FLOW_ID: Final = typer.Argument(..., help="The flow's id, or a unique beginning of it.")
FLOW: Final = typer.Option(None, "--flow", help="Only the records of this flow, or of ids like it.")
ENDS_WITH_PARENT: Final = typer.Option(
    False, "--with-parent", hidden=True, help="Stop when standard input ends."
)
PREFIX_LEAST: Final = 4
"""Characters of a flow id, at least, that stand for it."""


def duration_ms(text: str, option: str) -> int:
    """Raises WrongUse."""
    from processor.settings import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise WrongUse(f"{option} is {text!r}, which is {error}.") from None


def ago_ms(text: str, option: str) -> int:
    """Milliseconds since 1970 of that duration ago. Raises WrongUse."""
    return max(now_ms() - duration_ms(text, option), 0)


def since_ms(text: str, option: str = "--since") -> int:
    """Milliseconds since 1970 of an RFC 3339 time, or of a duration ago. Raises WrongUse."""
    from processor.contract.values import parse_timestamp
    from processor.settings import parse_duration

    with suppress(ValueError):
        return max(parse_timestamp(text), 0)
    with suppress(ValueError):
        return max(now_ms() - parse_duration(text), 0)
    raise WrongUse(
        f"{option} is {text!r}, which is neither a time such as 2026-11-22T21:02:08Z nor a "
        "duration such as 10m."
    )


def flow_id_of(text: str) -> str:
    """A flow id as it is written: 36 characters, lower case. Raises WrongUse."""
    from processor.contract.values import UUID_PATTERN

    if re.fullmatch(UUID_PATTERN.rstrip("$"), text.lower()) is None:
        raise WrongUse(
            f"{text!r} is no flow id: a UUID has 36 characters, of which the first "
            f"{PREFIX_LEAST} or more will do."
        )
    return text.lower()


def is_prefix(text: str) -> bool:
    """Whether `text` is the beginning of a UUID in lower case, and not a whole one."""
    whole = "00000000-0000-0000-0000-000000000000"
    return PREFIX_LEAST <= len(text) < len(whole) and all(
        sign == "-" if place == "-" else sign in "0123456789abcdef"
        for sign, place in zip(text, whole, strict=False)
    )


def id_or_prefix(text: str) -> str:
    """A flow id, or the beginning of ids, as it is written. Raises WrongUse."""
    return text.lower() if is_prefix(text.lower()) else flow_id_of(text)


def json_of(text: str, option: str) -> Any:
    """A JSON value, or that of `@FILE`, or of `@-`, standard input. Raises WrongUse."""
    import orjson

    if text.startswith("@"):
        name = text[1:]
        if name == "-" and sys.stdin is None:
            raise WrongUse(f"{option} is @-, but standard input is closed.")
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise WrongUse(f"{option} {text}: {error}.") from None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise WrongUse(f"{option} is not JSON: {error}.") from None


def condition_of(text: str) -> "Condition":
    """A condition of --where. Raises WrongUse."""
    from processor.ops.conditions import parse_condition

    try:
        return parse_condition(text)
    except ValueError as error:
        raise WrongUse(f"--where {text!r}: {error}.") from None
