"""The decision about one command, and the checks that several kinds share."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import orjson

from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.values import DAY_MS, STATE_MAX_BYTES
from processor.domain.evolve import evolve
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
    """Accepted with its facts, in order, or refused with a code; details of either.

    `flow` is the flow after the facts, where deciding had to know it.
    """

    facts: tuple[Fact, ...] = ()
    code: Code | None = None
    details: dict[str, Any] = NO_DETAILS
    flow: Flow | None = None

    @property
    def accepted(self) -> bool:
        return self.code is None


# As rows.new_flow_row.
new_decision: Final[
    Callable[[tuple[tuple[Fact, ...], Code | None, dict[str, Any], Flow | None]], Decision]
] = partial(tuple.__new__, Decision)
ACCEPTED_AS_IS: Final = Decision()
"""Accepted, and nothing happened."""


def rejected(code: Code, **details: Any) -> Decision:
    return Decision(code=code, details=details)


def happened(
    flow: Flow, at: str, kind: EventKind, to: FlowStatus | None, payload: dict[str, Any]
) -> Decision:
    """Accepted with one fact that changes the flow; `to` None: the status stays."""
    fact = new_fact((kind, flow.id, at, flow.revision + 1, to or flow.status, payload))
    return new_decision(((fact,), None, NO_DETAILS, None))


def changed(
    flow: Flow, at: str, kind: EventKind, to: FlowStatus | None, payload: dict[str, Any]
) -> Decision:
    """As `happened`, if the state that comes of it is small enough (check 17)."""
    fact = new_fact((kind, flow.id, at, flow.revision + 1, to or flow.status, payload))
    after = evolve(flow, fact)
    assert after is not None, "only a prune ends a flow"
    # What stays as it is was small enough when it was written (a failure may exceed).
    if after.state_json is not flow.state_json:
        size = len(orjson.dumps(after.state_json))
        if size > STATE_MAX_BYTES:
            return too_large(size, STATE_MAX_BYTES, "state_json")
    return new_decision(((fact,), None, NO_DETAILS, after))


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
    return too_large(size, limit_bytes, field_name) if size > limit_bytes else None


def too_large(size: int, limit_bytes: int, field_name: str) -> Decision:
    return rejected(
        Code.STATE_TOO_LARGE, field=field_name, size_bytes=size, limit_bytes=limit_bytes
    )


def size_bytes(value: Any) -> int:
    """What `value` takes as it is written."""
    return len(orjson.dumps(value))
