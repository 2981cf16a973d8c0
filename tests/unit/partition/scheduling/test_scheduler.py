"""What a partition sends to itself, beside what its batch has just changed."""

import pytest

from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.engine.batch import WriteSet
from processor.engine.rows import Position
from processor.partition.scheduling.scheduler import DueTask, Scheduler
from processor.telemetry.metrics import Metrics
from tests.unit.adapters.sqlite.tables import NOON_MS, flow_row, uuid


@pytest.mark.parametrize(
    ("ends_ms", "woken"), [(NOON_MS - 1, True), (NOON_MS, True), (NOON_MS + 1, False)]
)
def test_a_flow_that_the_batch_changed_is_woken_while_its_wait_is_over(
    ends_ms: int, woken: bool
) -> None:
    scheduler = Scheduler(
        0, commands_topic="commands", retain_ms=None, metrics=Metrics(), new_id=lambda: "id"
    )
    batch = WriteSet(Position(0, 0, 1))
    wait = {"kind": "timer", "at": instant(ends_ms)}
    batch.flows[uuid(1)] = flow_row(1, status=FlowStatus.WAITING, wait_json=wait)

    sent = scheduler.send(batch, DueTask({uuid(1): NOON_MS}, [], {}))

    assert (uuid(1) in sent.wakeups) is woken
