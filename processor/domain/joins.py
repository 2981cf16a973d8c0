"""Joins: waits of a flow for its managed steps."""

from collections.abc import Mapping
from typing import Any

from processor.contract.steps import LIVE, StepStatus
from processor.domain.steps import UNSUCCESSFUL, StepTotals


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
