"""Compute when a wait ends by itself."""

from typing import Any, Final

from processor.contract.flow import Flow
from processor.contract.values import parse_timestamp
from processor.domain.transitions import WAITING

AT_ONCE_MS: Final = 0
"""Due since ever: somebody asked to cancel the flow."""


def due_ms(flow: Flow) -> int | None:
    """When `flow` is to be woken, in milliseconds of the broker's clock; None: not by itself."""
    if flow.status is not WAITING:
        return None
    return due_ms_of(flow.wait_json, cancel_requested=flow.cancel_requested)


def due_ms_of(wait: Any, *, cancel_requested: bool) -> int | None:
    """The same of a flow that waits for `wait`.

    A wait that is to be cancelled is due at once, whatever it waits for.
    """
    if cancel_requested:
        return AT_ONCE_MS
    until = wait.get("at" if wait["kind"] == "timer" else "timeout_at")
    return None if until is None else parse_timestamp(until)
