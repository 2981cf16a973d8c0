"""Leases, re-offers, retries and timeouts of managed steps, by a script: on time, once, and no
lease ends before all that was sent in time is decided."""

from collections import Counter
from typing import Any

import pytest

from processor.contract.steps import StepStatus
from processor.contract.values import instant
from processor.partition.scheduling.step_timers import CommandsHorizon
from processor.testing.memory.kafka import TxnState
from tests.support.builders import NOON, TIMER, document
from tests.support.moments import Op
from tests.support.scripted_ports import Stage
from tests.unit.commands import create, flow_id, schedule, start, step

LEASE_MS = 10_000


def leased(number: int, run_id: str = "r", **fields: Any) -> list[dict[str, Any]]:
    """A flow with a step that an executor holds, for ten seconds."""
    return [
        create(number),
        schedule(number, run_id, lease_ms=LEASE_MS, **fields),
        step("start_step", number, run_id),
    ]


def wakes(stage: Stage) -> list[Any]:
    """The wakes of steps that the processor has written."""
    return [
        one
        for one in stage.kafka.read("taskflow.control")
        if (one["kind"], one["issued_by"]) == ("wake_step", TIMER)
    ]


def happened(stage: Stage) -> list[str]:
    return [event["kind"] for event in stage.kafka.events if event["kind"].startswith("step_")]


def figure(stage: Stage, name: str, **labels: str) -> float | None:
    return stage.metrics.registry.get_sample_value(name, labels or None)


# How far commands are decided


def test_the_newest_decided_record_says_how_far() -> None:
    horizon = CommandsHorizon()
    horizon.decided(NOON)
    assert horizon.at_ms == NOON - 1
    horizon.decided(NOON - 5)
    assert horizon.at_ms == NOON - 1


def test_an_end_that_was_asked_for_counts_once_it_is_reached() -> None:
    horizon = CommandsHorizon()
    horizon.ends(10, NOON)
    horizon.reached(9)
    assert (horizon.at_ms, horizon.awaits_end) == (-1, True)
    horizon.reached(10)
    assert (horizon.at_ms, horizon.awaits_end) == (NOON - 1, False)


# A step, and what its time brings


async def test_a_lease_ends_when_it_is_over_and_not_before(stage: Stage) -> None:
    stage.kafka.send(*leased(1))
    async with stage.running():
        await stage.quiet()
        assert figure(stage, "taskflow_steps_running", partition="0") == 1
        await stage.goes_on(LEASE_MS)
        assert wakes(stage) == []  # the last millisecond is not over
        await stage.goes_on(1)
        assert happened(stage) == ["step_scheduled", "step_started", "step_retried"]
        assert figure(stage, "taskflow_steps_running", partition="0") == 0
        assert figure(stage, "taskflow_steps_pending", partition="0") == 1
        assert figure(stage, "taskflow_step_leases_expired_total", task="classify") == 1
    (sent,) = wakes(stage)
    assert sent.keys() == {"kind", "command_id", "flow_id", "run_id", "issued_by"}
    assert (sent["flow_id"], sent["run_id"]) == (flow_id(1), "r")


async def test_an_extended_lease_is_not_ended(stage: Stage) -> None:
    stage.kafka.send(*leased(1))
    async with stage.running():
        await stage.goes_on(LEASE_MS - 1_000)
        stage.kafka.send(step("extend_step", 1, attempt=1))
        await stage.goes_on(2_000)
        assert wakes(stage) == []
        await stage.goes_on(LEASE_MS)
        assert happened(stage)[-1] == "step_retried"


async def test_a_step_that_failed_comes_back_after_its_pause_and_is_offered(stage: Stage) -> None:
    stage.kafka.send(*leased(1, backoff_ms=4_000))
    async with stage.running():
        await stage.quiet()
        stage.kafka.send(step("fail_step", 1, attempt=1, reason="503"))
        await stage.settles()
        offers = len(stage.kafka.read("taskflow.steps"))
        await stage.goes_on(2_000)
        assert happened(stage)[-1] == "step_retried"
        await stage.goes_on(2_000)
        assert happened(stage)[-1] == "step_dispatched"
        await stage.kafka.until(lambda: len(stage.kafka.read("taskflow.steps")) == offers + 1)
    assert stage.kafka.read("taskflow.steps")[-1]["attempt"] == 2


async def test_a_step_that_nobody_starts_is_offered_again_less_and_less_often(stage: Stage) -> None:
    stage.kafka.send(create(1), schedule(1, lease_ms=LEASE_MS))
    offered: list[int] = []
    async with stage.running():
        await stage.quiet()
        for second in range(80):
            if happened(stage).count("step_dispatched") > len(offered):
                offered.append(second)
            await stage.goes_on(1_000)
        assert figure(stage, "taskflow_step_events_total", task="classify", event="reoffered") == 3
    assert offered == [10, 30, 70]


async def test_a_timeout_ends_a_step_that_never_ran(stage: Stage) -> None:
    stage.kafka.send(create(1), schedule(1, timeout_at=instant(NOON + 60_000)))
    async with stage.running():
        await stage.quiet()
        await stage.goes_on(24 * 3_600_000)
        assert happened(stage) == ["step_scheduled", "step_failed"]
        assert figure(stage, "taskflow_steps_pending", partition="0") == 0


async def test_a_start_at_a_time_is_not_offered_before_it(stage: Stage) -> None:
    stage.kafka.send(create(1), schedule(1, not_before=instant(NOON + 60_000)))
    async with stage.running():
        await stage.quiet()
        await stage.goes_on(59_999)
        assert stage.work_items.calls == 0
        await stage.goes_on(1)
        assert happened(stage) == ["step_scheduled", "step_dispatched"]


async def test_a_herd_is_woken_once_each_and_in_portions(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.partition.scheduling.timers.AT_ONCE_MAX", 3)
    monkeypatch.setattr("processor.partition.scheduling.timers.UNDECIDED_MAX", 5)
    monkeypatch.setattr("processor.partition.scheduling.timers.NEAR_MAX", 8)
    for number in range(1, 31):
        stage.kafka.send(*leased(number, max_attempts=1))
    async with stage.running(batch_max_records=10):
        await stage.quiet()
        await stage.goes_on(LEASE_MS + 1)
    assert Counter(one["flow_id"] for one in wakes(stage)) == {
        flow_id(number): 1 for number in range(1, 31)
    }
    assert happened(stage).count("step_failed") == 30


async def test_a_new_owner_ends_the_leases_that_it_finds(stage: Stage) -> None:
    stage.kafka.send(*leased(1))
    await stage.works()
    stage.kafka.later(LEASE_MS + 1)
    stage.monotonic_s += 3_600
    async with stage.running():
        await stage.settles()
    assert happened(stage)[-1] == "step_retried"


# A backlog ends nobody's lease


async def test_what_was_sent_in_time_is_decided_before_a_lease_ends(stage: Stage) -> None:
    stage.kafka.send(*leased(1))
    await stage.works()
    stage.kafka.later(LEASE_MS - 1)
    # Minutes of commands, and among the last of them the executor's, sent in time.
    for number in range(2, 60):
        stage.kafka.send(create(number))
    stage.kafka.send(step("extend_step", 1, attempt=1))
    stage.kafka.later(5 * 60_000)

    async with stage.running(batch_max_records=4):
        await stage.quiet()
        await stage.settles()
        extended = happened(stage).index("step_extended")
        assert "step_retried" not in happened(stage)[:extended]


async def test_a_result_that_was_sent_in_time_counts_after_any_backlog(stage: Stage) -> None:
    stage.kafka.send(*leased(1))
    await stage.works()
    stage.kafka.later(LEASE_MS)
    for number in range(2, 60):
        stage.kafka.send(create(number))
    stage.kafka.send(step("complete_step", 1, attempt=1))
    stage.kafka.later(5 * 60_000)
    async with stage.running(batch_max_records=4):
        await stage.quiet()
        await stage.settles()
    assert happened(stage) == ["step_scheduled", "step_started", "step_succeeded"]
    assert wakes(stage) == []


async def test_what_an_open_transaction_of_a_producer_hides_is_waited_for(stage: Stage) -> None:
    stage.kafka.send(*leased(1))
    await stage.works()
    theirs = stage.kafka.begin()
    body = step("complete_step", 1, attempt=1)
    stage.kafka.append_command(body, theirs)
    async with stage.running():
        await stage.quiet()
        await stage.goes_on(LEASE_MS + 60_000)
        assert wakes(stage) == []
        assert stage.source.ends_asked == 1  # not asked for again until it is reached
        stage.kafka.end(theirs, TxnState.COMMITTED)
        await stage.settles()
    assert happened(stage)[-1] == "step_succeeded"
    assert wakes(stage) == []


async def test_an_aborted_transaction_of_a_producer_lets_the_lease_end(stage: Stage) -> None:
    stage.kafka.send(*leased(1))
    await stage.works()
    theirs = stage.kafka.begin()
    stage.kafka.append_command(step("complete_step", 1, attempt=1), theirs)
    async with stage.running():
        await stage.quiet()
        await stage.goes_on(LEASE_MS + 1)
        stage.kafka.end(theirs, TxnState.ABORTED)
        await stage.goes_on(1)
    assert happened(stage)[-1] == "step_retried"


async def test_a_lease_that_waits_holds_up_no_other_step(stage: Stage) -> None:
    stage.kafka.send(*leased(1), create(2), schedule(2, lease_ms=LEASE_MS))
    await stage.works()
    theirs = stage.kafka.begin()
    stage.kafka.append_command(step("complete_step", 1, attempt=1), theirs)
    async with stage.running():
        await stage.quiet()
        await stage.goes_on(LEASE_MS + 1)
        assert happened(stage)[-1] == "step_dispatched"
        assert {one["flow_id"] for one in wakes(stage)} == {flow_id(2)}
        stage.kafka.end(theirs, TxnState.ABORTED)


async def test_busy_commands_need_no_question_for_their_end(stage: Stage) -> None:
    stage.kafka.send(*leased(1))
    async with stage.running():
        await stage.quiet()
        stage.kafka.later(LEASE_MS + 1)
        stage.monotonic_s += (LEASE_MS + 1) / 1_000
        stage.kafka.send(create(2))
        await stage.settles()
    assert happened(stage)[-1] == "step_retried"
    assert stage.source.ends_asked == 0


@pytest.mark.parametrize("point", [Op.BEGIN, Op.COMMIT, Op.COMMITTED, Op.WRITE, Op.WRITTEN])
async def test_whatever_breaks_a_lease_ends_once(stage: Stage, point: Op) -> None:
    stage.kafka.send(*leased(1, max_attempts=1))
    await stage.works()
    stage.script.at(point, OSError("broker away"))
    async with stage.running():
        await stage.goes_on(LEASE_MS + 1)
        await stage.settles()
    assert happened(stage) == ["step_scheduled", "step_started", "step_failed"]


async def test_steps_come_back_from_state(stage: Stage) -> None:
    stage.kafka.send(*leased(1), create(2), schedule(2), create(3), start(3))
    await stage.works()
    stage.kafka.compact("taskflow.state")
    stage.lose_disk()
    async with stage.running() as owner:
        await stage.quiet()
        assert owner._batches.scheduler.live_steps(StepStatus.RUNNING) == 1
        assert owner._batches.scheduler.live_steps(StepStatus.PENDING) == 1
        await stage.goes_on(LEASE_MS + 1)
    assert happened(stage)[-1] == "step_retried"


async def test_a_step_that_has_ended_leaves_memory(stage: Stage) -> None:
    key = flow_id(1), "r"
    async with stage.running() as owner:
        stage.kafka.send(create(1), schedule(1))
        await stage.quiet()
        assert owner._batches.cache.find([key])
        stage.kafka.send(document("cancel_step", flow_id=flow_id(1), run_id="r"))
        await stage.quiet()
        assert not owner._batches.cache.find([key])
    stage.assert_clean()
