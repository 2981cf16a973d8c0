"""Format what a flow waits for, and for how much longer."""

from processor.contract.flow import Flow
from processor.domain.waits import AT_ONCE_MS, due_ms

_UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))


def awaited(flow: Flow) -> str:
    """Empty for a flow that does not wait."""
    match flow.wait_json:
        case {"kind": "external_event", "topic": topic, "correlation_id": correlation_id}:
            return f"event {topic} / {correlation_id}"
        case {"kind": kind}:
            return str(kind)
    return ""


def until(flow: Flow) -> str:
    """The time that the wait itself names, to the second; `-` if it names none."""
    wait = flow.wait_json or {}
    named = wait.get("at") or wait.get("timeout_at")
    return named[:19].replace("T", " ") if named else "-"


def time_left(flow: Flow, now_ms: int) -> str:
    """Until the wait ends by itself, at `now_ms` of the clock that is believed: `in 2 h 5 min`,
    `overdue 3 s`, `at once` where somebody asked to cancel, `-` if it never does."""
    due = due_ms(flow)
    if due is None:
        return "-"
    if due == AT_ONCE_MS:
        return "at once (cancel requested)"
    left_ms = due - now_ms
    return f"in {span(left_ms)}" if left_ms > 0 else f"overdue {span(-left_ms)}"


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
