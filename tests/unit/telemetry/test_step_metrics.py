"""Metrics of managed steps: what each event counts as, by a bounded number of tasks."""

from typing import Any

import pytest

from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.steps import StepStatus
from processor.contract.values import instant
from processor.domain.decide_steps import LEASE_EXPIRED
from processor.domain.facts import Fact
from processor.domain.step import ManagedStep
from processor.engine.batch import StepTally
from processor.telemetry.metrics import Metrics
from processor.telemetry.step_metrics import OTHERS, TASKS_MAX
from tests.unit.adapters.sqlite.tables import NOON_MS, managed_row


def step(
    status: StepStatus = StepStatus.PENDING,
    *,
    task: str = "t",
    at_ms: int = NOON_MS,
    **execution: Any,
) -> ManagedStep:
    made = managed_row(1, "r", status, at_ms=NOON_MS).step
    assert isinstance(made, ManagedStep)
    changed = made.execution.changed(execution)
    return made.changed({"task": task, "updated_at": instant(at_ms), "execution": changed})


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def figure(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def observe(
    metrics: Metrics,
    kind: EventKind,
    was: ManagedStep | None,
    after: ManagedStep,
    reason: str | None = None,
) -> None:
    tally = StepTally()
    payload = {"reason": reason}
    tally.add(
        Fact(kind, after.flow_id, after.updated_at, 1, FlowStatus.RUNNING, payload), was, after
    )
    metrics.steps.observe(tally)


def test_a_start_counts_from_the_first_offer_of_its_attempt(metrics: Metrics) -> None:
    # Offered at noon, and again after one lease and after two more.
    was = step(at_ms=NOON_MS + 180_000, offers=3, lease_ms=60_000)
    after = step(StepStatus.RUNNING, at_ms=NOON_MS + 200_000, attempt=1, offers=0)
    observe(metrics, EventKind.STEP_STARTED, was, after)
    assert figure(metrics, "taskflow_step_start_seconds_sum", task="t") == 200
    assert figure(metrics, "taskflow_step_events_total", task="t", event="started") == 1


def test_a_second_offer_is_told_from_a_first(metrics: Metrics) -> None:
    observe(metrics, EventKind.STEP_DISPATCHED, step(offers=0), step(offers=1))
    observe(metrics, EventKind.STEP_DISPATCHED, step(offers=1), step(offers=2))
    assert figure(metrics, "taskflow_step_events_total", task="t", event="dispatched") == 1
    assert figure(metrics, "taskflow_step_events_total", task="t", event="reoffered") == 1


def test_a_lapse_with_attempts_left_is_not_the_last(metrics: Metrics) -> None:
    after = step(attempt=1)
    observe(metrics, EventKind.STEP_RETRIED, step(StepStatus.RUNNING), after, LEASE_EXPIRED)
    assert figure(metrics, "taskflow_step_leases_expired_total", task="t") == 1
    assert figure(metrics, "taskflow_step_attempts_used_up_total", task="t") == 0


@pytest.mark.parametrize(
    ("reason", "attempt", "used_up"),
    [("503", 3, 1), (LEASE_EXPIRED, 3, 1), ("timeout", 3, 0), ("503", 2, 0)],
)
def test_only_a_last_attempt_uses_attempts_up(
    metrics: Metrics, reason: str, attempt: int, used_up: float
) -> None:
    after = step(StepStatus.FAILED, at_ms=NOON_MS + 9_000, attempt=attempt)
    observe(metrics, EventKind.STEP_FAILED, step(StepStatus.RUNNING), after, reason)
    assert figure(metrics, "taskflow_step_attempts_used_up_total", task="t") == used_up
    assert figure(metrics, "taskflow_step_end_seconds_sum", task="t") == 9


def test_tasks_beyond_the_bound_share_a_label(metrics: Metrics) -> None:
    for number in range(TASKS_MAX + 5):
        observe(metrics, EventKind.STEP_SCHEDULED, None, step(task=f"task {number}"))
    scheduled = {"event": "scheduled"}
    assert figure(metrics, "taskflow_step_events_total", task=OTHERS, **scheduled) == 5
    assert figure(metrics, "taskflow_step_events_total", task="task 0", **scheduled) == 1
