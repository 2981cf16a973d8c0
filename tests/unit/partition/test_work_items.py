"""Work items: written after their transaction, at least once, whoever dies in between."""

from typing import Any

import pytest

from processor.engine.partitioner import partition_of
from processor.partition import work_outbox
from processor.partition.processor import PartitionProcessor
from processor.partition.status import PartitionPhase
from tests.support.moments import Op
from tests.support.scripted_ports import Stage
from tests.unit.commands import create, finish, flow_id, schedule, start, step

STEPS = "taskflow.steps"


def items(stage: Stage) -> list[Any]:
    return stage.kafka.read(STEPS)


async def written(stage: Stage, count: int) -> list[Any]:
    """Wait until `count` items are on `steps`; all of them."""
    await stage.kafka.until(lambda: len(items(stage)) >= count)
    return items(stage)


def cursor(stage: Stage) -> Any:
    return [one for one in stage.kafka.read("taskflow.state") if "offered" in one][-1]


def offering(stage: Stage, run_id: str = "r") -> list[int]:
    """Ids of the events that offered the step."""
    found = []
    for event in stage.kafka.events:
        payload = event["payload_json"]
        changes = payload.get("step") or payload.get("changes") or {}
        execution = changes.get("execution") or {"offers": 0, "due_at": None}
        about = payload.get("run_id") or (payload.get("step") or {}).get("run_id")
        if about == run_id and execution["offers"] and execution["due_at"]:
            found.append(event["id"])
    return found


def figure(owner: PartitionProcessor, name: str, **labels: str) -> float | None:
    return owner._metrics.registry.get_sample_value(name, labels or None)


async def test_a_step_that_is_scheduled_is_offered_once(stage: Stage) -> None:
    stage.kafka.send(create(1), start(1), schedule(1, input_json={"n": 1}))
    async with stage.running() as owner:
        (item,) = await written(stage, 1)
        await stage.quiet()
        assert figure(owner, "taskflow_steps_pending", partition="0") == 1
    (offered,) = offering(stage)
    assert item["event_id"] == offered
    assert (item["flow_id"], item["run_id"], item["task"]) == (flow_id(1), "r", "classify")
    assert (item["attempt"], item["input_json"]) == (1, {"n": 1})
    (record,) = stage.kafka.log(STEPS).committed(0, 9)
    assert record.key == f"{flow_id(1)}/r".encode()
    assert dict(record.headers) == {"taskflow-task": b"classify"}


async def test_the_trace_of_the_command_goes_with_the_item(stage: Stage) -> None:
    stage.kafka.send(create(1))
    body = schedule(1)
    trace = [("traceparent", b"00-11111111111111111111111111111111-2222222222222222-01")]
    stage.send_with_headers(body, trace)
    async with stage.running():
        await written(stage, 1)
    (record,) = stage.kafka.log(STEPS).committed(0, 9)
    assert dict(record.headers)["traceparent"] == trace[0][1]


async def test_nothing_is_written_before_the_commit(stage: Stage) -> None:
    seen: list[int] = []
    stage.script.at(Op.COMMIT, lambda: seen.append(len(items(stage))))
    stage.script.at(Op.COMMITTED, lambda: seen.append(len(items(stage))))
    stage.kafka.send(create(1), schedule(1))
    async with stage.running():
        await written(stage, 1)
    assert seen == [0, 0]


async def test_items_lie_where_their_own_keys_belong(stage: Stage) -> None:
    stage.work_items.partitions = 7
    runs = [f"r{n}" for n in range(20)]
    stage.kafka.send(create(1), *(schedule(1, run_id) for run_id in runs))

    def there() -> list[tuple[int, str]]:
        return [(n, one["run_id"]) for n in range(7) for one in stage.kafka.read(STEPS, n)]

    async with stage.running():
        await stage.kafka.until(lambda: len(there()) == 20)
    expected = [(partition_of(f"{flow_id(1)}/{run}".encode(), 7), run) for run in runs]
    assert sorted(there()) == sorted(expected)


@pytest.mark.parametrize("point", [Op.OFFER, Op.OFFERED])
async def test_an_attempt_that_fails_is_repeated(stage: Stage, point: Op) -> None:
    stage.script.at(point, OSError("broker away"))
    stage.kafka.send(create(1), schedule(1))
    async with stage.running() as owner:
        await written(stage, 1 if point is Op.OFFER else 2)
        await stage.kafka.until(lambda: len(owner._batches.outbox) == 0)
        assert figure(owner, "taskflow_work_item_failures_total", partition="0") == 1
        assert stage.errors == []
    assert {item["event_id"] for item in items(stage)} == set(offering(stage))


@pytest.mark.parametrize("disk", ["its disk", "an empty disk"])
@pytest.mark.parametrize("point", [Op.COMMITTED, Op.WRITE, Op.WRITTEN, Op.OFFER, Op.OFFERED])
async def test_who_takes_over_writes_what_the_last_owner_may_not_have(
    stage: Stage, point: Op, disk: str
) -> None:
    stage.kafka.send(create(1), start(1))
    await stage.works()
    stage.script.at(point, stage.script.crash)
    stage.kafka.send(schedule(1, "a"), schedule(1, "b"))
    await stage.crashes()
    before = len(items(stage))
    if disk == "an empty disk":
        stage.lose_disk()

    async with stage.running():
        found = await written(stage, before + 2)
        await stage.quiet()

    assert [item["run_id"] for item in found[before:]] == ["a", "b"]
    assert found[before:] == [{**item} for item in found[-2:]]
    assert sorted({item["event_id"] for item in found}) == offering(stage, "a") + offering(
        stage, "b"
    )


async def test_what_was_acknowledged_is_not_written_again(stage: Stage) -> None:
    stage.kafka.send(create(1), schedule(1))
    async with stage.running():
        await written(stage, 1)
        await stage.quiet()
        await stage.goes_on(999)
        assert cursor(stage)["offered"] < offering(stage)[-1]
        # An idle partition says so in a cursor of its own, after a second.
        await stage.goes_on(1)
        assert cursor(stage)["offered"] == offering(stage)[-1]
        assert stage.kafka.journal.count("commit") == 2
        await stage.goes_on(5_000)
        assert stage.kafka.journal.count("commit") == 2

    async with stage.running():
        await stage.goes_on(5_000)
    assert len(items(stage)) == 1


async def test_a_step_that_was_started_or_ended_meanwhile_is_left_out(stage: Stage) -> None:
    stage.kafka.send(create(1), start(1))
    await stage.works()
    stage.kafka.send(
        *(schedule(1, run_id) for run_id in "abc"),
        step("start_step", 1, "a"),
        step("cancel_step", 1, "b", issued_by=create(1)["issued_by"]),
    )
    stage.script.at(Op.COMMITTED, stage.script.crash, nth=2)
    stage.script.at(Op.OFFER, OSError("broker away"))
    await stage.crashes()

    async with stage.running():
        await written(stage, 1)
        await stage.quiet()
    assert {item["run_id"] for item in items(stage)} >= {"c"}
    assert [item["run_id"] for item in items(stage)].count("c") == 1


async def test_only_the_newest_offer_of_a_step_is_written_again(stage: Stage) -> None:
    stage.kafka.send(create(1), start(1))
    await stage.works()
    stage.script.at(Op.COMMITTED, stage.script.crash)
    stage.kafka.send(
        schedule(1),
        step("start_step", 1),
        step("release_step", 1, attempt=1),
    )
    await stage.crashes()
    async with stage.running():
        (item,) = await written(stage, 1)
    assert (item["event_id"], item["attempt"]) == (offering(stage)[-1], 2)


async def test_a_partition_without_steps_says_that_all_is_offered(stage: Stage) -> None:
    stage.kafka.send(create(1), start(1))
    async with stage.running():
        await stage.goes_on(60_000)
    assert cursor(stage)["offered"] == 2
    assert stage.kafka.journal.count("commit") == 1
    assert stage.work_items.calls == 0


async def test_when_too_many_wait_the_partition_waits_and_says_so(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work_outbox, "ITEMS_MAX", 3)
    monkeypatch.setattr(work_outbox, "BACKOFF_MIN_S", 0.0)
    monkeypatch.setattr(work_outbox, "ROOM_WAIT_S", 0.01)
    away = True

    def fails() -> None:
        stage.kafka.notify()
        if away:
            stage.script.at(Op.OFFER, fails)
            raise OSError("the topic is gone")

    stage.script.at(Op.OFFER, fails)
    stage.kafka.send(create(1), *(schedule(1, f"r{n}") for n in range(11)))
    async with stage.running(batch_max_records=4) as owner:
        await stage.kafka.until(lambda: owner.status.phase is PartitionPhase.BLOCKED)
        assert owner.status.waits is not None
        assert "taskflow.steps" in owner.status.waits
        assert "the topic is gone" in owner.status.waits
        assert len(stage.kafka.outcomes) == 4
        away = False
        await written(stage, 11)
        await stage.kafka.until(lambda: len(stage.kafka.outcomes) == 12)
        assert owner.status.phase is PartitionPhase.RUNNING
        assert not owner.status.waits
        assert stage.errors == []
    assert [item["run_id"] for item in items(stage)] == [f"r{n}" for n in range(11)]


async def test_who_leaves_in_good_order_has_written_its_items(stage: Stage) -> None:
    stage.kafka.send(create(1), schedule(1))
    await stage.works()
    assert len(items(stage)) == 1


async def test_a_flow_that_has_ended_offers_nothing(stage: Stage) -> None:
    stage.kafka.send(create(1), start(1), schedule(1), finish(1))
    async with stage.running() as owner:
        await stage.quiet()
        assert figure(owner, "taskflow_steps_pending", partition="0") == 0
    kinds = [event["kind"] for event in stage.kafka.events]
    assert kinds[-2:] == ["finished", "step_cancelled"]
