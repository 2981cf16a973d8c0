"""Format what a flow or a step waits for, and for how much longer."""

from collections.abc import Mapping
from typing import Any

from processor.cli.common.rows import moment
from processor.cli.flow.event_text import wait_text
from processor.contract.flow import Flow
from processor.contract.steps import StepStatus
from processor.contract.values import parse_timestamp
from processor.domain.waits import AT_ONCE_MS, due_ms

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def awaited(flow: Flow) -> str:
    """Empty for a flow that does not wait."""
    return wait_text(flow.wait_json or {})


def until(flow: Flow) -> str:
    """The time that the wait itself names, to the second; `-` if it names none."""
    wait = flow.wait_json or {}
    named = wait.get("at") or wait.get("timeout_at")
    return moment(named) if named else "-"


def time_left(flow: Flow, now_ms: int) -> str:
    """Until the wait ends by itself, at `now_ms` of the clock that is believed: `in 2 h 5 min`,
    `overdue 3 s`, `at once` where a cancel is requested, `-` if it never does."""
    due = due_ms(flow)
    if due is None:
        return "-"
    if due == AT_ONCE_MS:
        return "at once (cancel requested)"
    left_ms = due - now_ms
    return f"in {span(left_ms)}" if left_ms > 0 else f"overdue {span(-left_ms)}"


def step_due(step: Mapping[str, Any], now_ms: int) -> str:
    """When the processor looks at a managed step next, and what for; empty once it has ended."""
    execution = step["execution"]
    if execution["due_at"] is None:
        return ""
    due = ago_or_in(execution["due_at"], now_ms)
    times = "once" if execution["offers"] == 1 else f"{execution['offers']} times"
    if step["status"] == StepStatus.RUNNING:
        found = f"lease ends {due}" if due.startswith("in ") else f"lease was over {due}"
    elif execution["offers"]:
        found = f"offered {times}, again {due}"
    else:
        found = f"may be started {due}"
    if execution["timeout_at"] is not None:
        found += f", fails {ago_or_in(execution['timeout_at'], now_ms)}"
    return found


def ago_or_in(at: str, now_ms: int) -> str:
    """`in 2 min 5 s` or `2 min 5 s ago`."""
    left_ms = parse_timestamp(at) - now_ms
    return f"in {span(left_ms)}" if left_ms > 0 else f"{span(-left_ms)} ago"


def span(duration_ms: int) -> str:
    """The two largest units of a duration; what is less than the smaller one is left out."""
    left = duration_ms // 1000
    parts: list[tuple[int, str]] = []
    for name, seconds in _UNITS:
        count, left = divmod(left, seconds)
        if count or parts:
            parts.append((count, name))
        if len(parts) == 2:
            break
    return " ".join(f"{count} {name}" for count, name in parts if count) or "< 1 s"
