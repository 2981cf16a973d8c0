"""Compute when a wait ends: by itself, or with the steps that it is for."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

from processor.contract.flow import FlowStatus
from processor.contract.steps import LIVE, StepStatus
from processor.contract.values import parse_timestamp
from processor.domain.steps import UNSUCCESSFUL, StepTotals
from processor.domain.transitions import WAITING

AT_ONCE_MS: Final = 0
"""Due at once: a cancel of the flow is requested."""


class MayWait(Protocol):
    """What is asked of a flow, as it is decided on or as it is published."""

    @property
    def status(self) -> FlowStatus: ...
    @property
    def wait_json(self) -> Any: ...
    @property
    def cancel_requested(self) -> bool: ...


def due_ms(flow: MayWait) -> int | None:
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


def join_holds(
    wait: Mapping[str, Any], totals: StepTotals, listed: Mapping[str, StepStatus]
) -> bool:
    """Whether the join `wait` is over.

    `totals` counts the flow's steps, which decide where the join lists none; `listed` has the
    status of each step that it lists.
    """
    mode = wait.get("mode", "all")
    run_ids = wait.get("run_ids")
    if run_ids is None:
        return totals.live == 0 or (mode == "all_or_failure" and totals.unsuccessful > 0)
    statuses = [listed[run_id] for run_id in run_ids]
    if mode == "any":
        return any(status not in LIVE for status in statuses)
    if mode == "all_or_failure" and not UNSUCCESSFUL.isdisjoint(statuses):
        return True
    return LIVE.isdisjoint(statuses)
