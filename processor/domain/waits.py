"""When a wait ends by itself."""

from typing import Final

from processor.domain.transitions import WAITING
from schemas.flow import Flow
from schemas.values import parse_timestamp

AT_ONCE_MS: Final = 0
"""Due since ever: somebody asked to cancel the flow."""


def due_ms(flow: Flow) -> int | None:
    """When `flow` is to be woken, in milliseconds of the broker's clock; None: not by itself.

    A wait that is to be cancelled is due at once, whatever it waits for.
    """
    if flow.status is not WAITING:
        return None
    if flow.cancel_requested:
        return AT_ONCE_MS
    wait = flow.wait_json
    until = wait.get("at" if wait["kind"] == "timer" else "timeout_at")
    return None if until is None else parse_timestamp(until)
