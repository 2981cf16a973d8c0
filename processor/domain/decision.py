"""What is decided about one command, and the checks that several kinds share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.values import DAY_MS
from processor.domain.facts import Fact, new_fact
from processor.domain.flow import Flow


@dataclass(frozen=True, slots=True)
class Limits:
    """What a deployment may set. Times in milliseconds of the broker's clock."""

    timer_max_horizon_ms: int = 30 * DAY_MS
    flow_steps_max: int = 10_000


DEFAULT_LIMITS: Final = Limits()


NO_DETAILS: Final[dict[str, Any]] = {}
"""Never changed; a proxy would cost as much again."""


class Decision(NamedTuple):
    """Accepted with its facts, in order, or refused with a code; details of either."""

    facts: tuple[Fact, ...] = ()
    code: Code | None = None
    details: dict[str, Any] = NO_DETAILS

    @property
    def accepted(self) -> bool:
        return self.code is None


# As rows.new_flow_row.
new_decision: Final[Callable[[tuple[tuple[Fact, ...], Code | None, dict[str, Any]]], Decision]] = (
    partial(tuple.__new__, Decision)
)
ACCEPTED_AS_IS: Final = Decision()
"""Accepted, and nothing happened."""


def rejected(code: Code, **details: Any) -> Decision:
    return Decision(code=code, details=details)


def happened(
    flow: Flow, at: str, kind: EventKind, to: FlowStatus | None, payload: dict[str, Any]
) -> Decision:
    """Accepted with one fact that changes the flow; `to` None: the status stays."""
    fact = new_fact((kind, flow.id, at, flow.revision + 1, to or flow.status, payload))
    return new_decision(((fact,), None, NO_DETAILS))


def time_problem(until_ms: int, at_ms: int, limits: Limits) -> str | None:
    """What is wrong with a time at which a wait or a step is to end."""
    if until_ms <= at_ms:
        return "must lie after the time at which the broker appended the command"
    return horizon_problem(until_ms, at_ms, limits)


def horizon_problem(until_ms: int, at_ms: int, limits: Limits) -> str | None:
    if until_ms > at_ms + limits.timer_max_horizon_ms:
        return "lies further ahead than this deployment allows"
    return None


def oversize(value: Any, limit_bytes: int, field_name: str) -> Decision | None:
    """Check 17 for a size: as the value would be written."""
    return over_limit(size_bytes(value), limit_bytes, field_name)


def over_limit(size: int, limit_bytes: int, field_name: str) -> Decision | None:
    if size <= limit_bytes:
        return None
    return rejected(
        Code.STATE_TOO_LARGE, field=field_name, size_bytes=size, limit_bytes=limit_bytes
    )


def size_bytes(value: Any) -> int:
    """What `value` takes as it is written."""
    return len(orjson.dumps(value))
