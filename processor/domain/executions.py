"""The arithmetic of a managed step's execution: offers, leases, backoff.

Times are milliseconds of the broker's clock. No `due_at` lies behind `timeout_at`.
"""

from typing import Final

from processor.contract.values import DAY_MS, instant, parse_timestamp
from processor.domain.step import Execution, ManagedStep

_HOUR_MS: Final = 3_600_000
_JITTER: Final = 1024
_DOUBLINGS_MAX: Final = 40
"""More of them exceed every bound, and would make numbers of any length."""


def offered(execution: Execution, at_ms: int, *, offers: int) -> Execution:
    """The execution of a step that is offered at `at_ms`, for the `offers`th time since it may be
    started. It is offered again once no executor has started it for a lease, twice as long each
    time, at most a day."""
    due_at = _cut(execution, at_ms + _offer_ms(execution, offers))
    return execution.changed({"offers": offers, "due_at": due_at})


def _offer_ms(execution: Execution, offers: int) -> int:
    """How long the `offers`th offer stands before the next one."""
    return min(execution.lease_ms << min(offers - 1, _DOUBLINGS_MAX), DAY_MS)


def offered_for_ms(step: ManagedStep, until_ms: int) -> int:
    """How long `step`, which is offered, has been so by `until_ms`: since its last offer, and while
    those before it stood."""
    execution = step.execution
    offered_ms = until_ms - parse_timestamp(step.updated_at)
    if execution.offers > 1:
        earlier = range(1, min(execution.offers, _DOUBLINGS_MAX + 1))
        offered_ms += sum(_offer_ms(execution, offers) for offers in earlier)
    return max(0, offered_ms)


def delayed(execution: Execution, until_ms: int) -> Execution:
    """The execution of a step that may be started from `until_ms` on, and is offered then."""
    return execution.changed({"offers": 0, "due_at": _cut(execution, until_ms)})


def leased(execution: Execution, at_ms: int, *, attempt: int) -> Execution:
    """The execution of a step whose lease begins in this attempt, or is renewed, at `at_ms`."""
    due_at = _cut(execution, at_ms + execution.lease_ms)
    return execution.changed({"attempt": attempt, "offers": 0, "due_at": due_at})


def ended(execution: Execution) -> Execution:
    """The execution of a step that is not looked at any more."""
    return execution.changed({"due_at": None})


def failed(execution: Execution, reason: str, at_ms: int) -> Execution:
    """The execution with its newest failure."""
    return execution.changed({"last_failure": {"reason": reason, "at": instant(at_ms)}})


def backoff_ms(step: ManagedStep) -> int:
    """The delay after the attempt that has just failed.

    It doubles with each attempt, up to an hour; a share of up to a quarter, which differs from step
    to step, is taken off, so that steps that failed together do not come back together.
    """
    execution = step.execution
    base_ms = execution.backoff_ms
    delay_ms = min(base_ms << min(execution.attempt - 1, _DOUBLINGS_MAX), max(base_ms, _HOUR_MS))
    return delay_ms * (_JITTER - int(step.id[:2], 16)) // _JITTER


def due_ms(execution: Execution) -> int:
    """When the processor looks at a step that has not ended."""
    if execution.due_at is None:
        raise ValueError("a step that has ended is never due")
    return parse_timestamp(execution.due_at)


def timed_out(execution: Execution, at_ms: int) -> bool:
    """Whether `at_ms` is at or past the step's `timeout_at`."""
    until = execution.timeout_at
    return until is not None and at_ms >= parse_timestamp(until)


def _cut(execution: Execution, until_ms: int) -> str:
    until = instant(until_ms)
    timeout_at = execution.timeout_at
    return until if timeout_at is None else min(until, timeout_at)
