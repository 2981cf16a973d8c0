"""Waits that end by themselves, by a script: on time, once, whatever breaks in between."""

import asyncio
from collections import Counter
from typing import Any

import orjson
import pytest

from processor.partition.processor import PartitionProcessor
from processor.testing.memory.kafka import LogEntry, Transaction
from tests.support.builders import HOUR_MS, NOON, TIMER, document, external_event, manual, timer
from tests.support.moments import Op
from tests.support.scripted_ports import Stage
from tests.unit.commands import create, flow_id, observe, start, update

AT_WORK = [
    *(Op.FETCH, Op.FETCHED, Op.LOAD),
    *(Op.BEGIN, Op.COMMIT, Op.COMMITTED, Op.WRITE, Op.WRITTEN),
]
TAKING_OVER = [
    *(Op.OPEN, Op.CONFIRM, Op.FENCE, Op.SETTLE),
    *(Op.READ, Op.WRITE, Op.WRITTEN),
]


def waits(number: int, wait: dict[str, Any]) -> list[dict[str, Any]]:
    return [create(number), start(number), set_waiting(number, wait)]


def set_waiting(number: int, wait: dict[str, Any]) -> dict[str, Any]:
    return document("set_waiting", flow_id=flow_id(number), wait=wait)


def resume(number: int) -> dict[str, Any]:
    return document("resume", flow_id=flow_id(number))


def request_cancel(number: int) -> dict[str, Any]:
    return document("request_cancel", flow_id=flow_id(number))


def wake(number: int, **fields: Any) -> dict[str, Any]:
    return document("wake", flow_id=flow_id(number), **{"issued_by": TIMER, **fields})


def wakes(stage: Stage, number: int | None = None) -> list[Any]:
    """The wakes of the processor's own on `control`."""
    control = stage.kafka.read(stage.place.topics.control)
    return [
        one
        for one in control
        if (one["kind"], one["issued_by"]) == ("wake", TIMER)
        and (number is None or one["flow_id"] == flow_id(number))
    ]


def ends(stage: Stage, number: int | None = None) -> list[tuple[str, str | None]]:
    """How waits ended: the kind of each event, and by what."""
    return [
        (event["kind"], event["payload_json"].get("by"))
        for event in stage.kafka.events
        if event["kind"] in ("resumed", "cancelled")
        and (number is None or event["flow_id"] == flow_id(number))
    ]


def codes(stage: Stage, kind: str = "wake") -> list[Any]:
    return [one["code"] for one in stage.kafka.outcomes if one["kind"] == kind]


def figure(owner: PartitionProcessor, name: str, **labels: str) -> float | None:
    return owner._metrics.registry.get_sample_value(name, labels or None)


async def looks_without_end(stage: Stage) -> None:
    while True:
        await stage.looks_again()


# A wait, and what ends it


@pytest.mark.parametrize(
    ("wait", "by"),
    [
        (timer(NOON + 5_000), "timer"),
        (external_event(timeout_at_ms=NOON + 5_000), "timeout"),
        (manual(timeout_at_ms=NOON + 5_000), "timeout"),
    ],
)
async def test_it_ends_when_its_time_has_come_and_not_before(
    stage: Stage, wait: dict[str, Any], by: str
) -> None:
    stage.kafka.send(*waits(1, wait))

    async with stage.running() as owner:
        await stage.quiet()
        assert figure(owner, "taskflow_timers_armed", partition="0") == 1
        await stage.goes_on(4_999)
        assert wakes(stage) == []
        await stage.goes_on(1)
        assert ends(stage) == [("resumed", by)]
        await stage.goes_on(HOUR_MS)
        assert figure(owner, "taskflow_timers_armed", partition="0") == 0
        assert figure(owner, "taskflow_timers_due", partition="0") == 0
        assert figure(owner, "taskflow_timers_fired_total") == 1
        assert figure(owner, "taskflow_timer_retries_total") == 0
        assert figure(owner, "taskflow_timer_lag_seconds_count") == 1

    (sent,) = wakes(stage)
    assert sent.keys() == {"kind", "command_id", "flow_id", "issued_by"}
    stage.assert_clean()


async def test_an_external_event_in_time_leaves_nothing_to_wake(stage: Stage) -> None:
    stage.kafka.send(*waits(1, external_event(timeout_at_ms=NOON + 5_000)))
    event = document(
        "resume_external",
        flow_id=flow_id(1),
        topic="agent.delegate.reply",
        correlation_id="corr-42",
    )

    async with stage.running():
        await stage.quiet()
        stage.kafka.send(event)
        await stage.quiet()
        await stage.goes_on(5_000)

    assert wakes(stage) == []
    assert ends(stage) == [("resumed", "external_event")]
    stage.assert_clean()


async def test_a_wait_that_is_an_hour_off_is_ended_too(stage: Stage) -> None:
    stage.kafka.send(*waits(1, timer(NOON + HOUR_MS)), *waits(2, timer(NOON + 2 * HOUR_MS)))

    async with stage.running():
        await stage.quiet()
        await stage.goes_on(HOUR_MS)
        assert ends(stage, 1) == [("resumed", "timer")]
        await stage.goes_on(HOUR_MS)

    assert ends(stage, 2) == [("resumed", "timer")]
    assert len(wakes(stage)) == 2
    stage.assert_clean()


async def test_an_operator_who_wakes_first_leaves_nothing_to_wake(stage: Stage) -> None:
    stage.kafka.send(*waits(1, timer(NOON + 5_000)))

    async with stage.running() as owner:
        await stage.quiet()
        stage.kafka.later(5_000)  # by the broker's clock alone
        stage.kafka.send(wake(1, issued_by="operator:ana"), topic="control")
        await stage.quiet()
        await stage.goes_on(5_000)
        assert figure(owner, "taskflow_timers_fired_total") == 0

    assert wakes(stage) == []
    assert ends(stage) == [("resumed", "timer")]
    stage.assert_clean()


async def test_an_operator_in_between_makes_our_wake_too_late_and_nothing_more(
    stage: Stage,
) -> None:
    stage.kafka.send(*waits(1, timer(NOON + 5_000)))

    async with stage.running() as owner:
        await stage.quiet()

        def operator() -> None:
            stage.kafka.send(wake(1, issued_by="operator:ana"), topic="control")

        stage.script.at(Op.BEGIN, operator)
        await stage.goes_on(5_000)
        await stage.goes_on(HOUR_MS)
        assert figure(owner, "taskflow_timers_fired_total") == 0
        assert figure(owner, "taskflow_timer_retries_total") == 0
        assert figure(owner, "taskflow_timers_due", partition="0") == 0

    assert codes(stage) == [None, "illegal_transition"]
    assert ends(stage) == [("resumed", "timer")]
    stage.assert_clean()


# A request to cancel


def transaction_of(stage: Stage, topic: str, kind: str) -> Transaction | None:
    """In which transaction the only record of a kind was written to a topic."""

    def is_it(entry: LogEntry) -> bool:
        return (
            entry.readable
            and entry.record is not None
            and orjson.loads(entry.record.value or b"{}").get("kind") == kind
        )

    (found,) = filter(is_it, stage.kafka.log(topic).entries)
    return found.transaction


@pytest.mark.parametrize(
    "wait", [manual(), external_event(), timer(NOON + HOUR_MS), manual(NOON + HOUR_MS)]
)
async def test_a_request_to_cancel_writes_its_wake_in_its_own_transaction(
    stage: Stage, wait: dict[str, Any]
) -> None:
    topics = stage.place.topics
    stage.kafka.send(*waits(1, wait))
    trace = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")

    async with stage.running() as owner:
        await stage.quiet()
        asked = request_cancel(1)
        stage.kafka.append(
            topics.commands, 0, flow_id(1).encode(), orjson.dumps(asked), (trace, ("x", b"y"))
        )
        await stage.quiet()
        await stage.goes_on(HOUR_MS)
        assert figure(owner, "taskflow_timers_armed", partition="0") == 0
        assert figure(owner, "taskflow_timer_lag_seconds_count") == 0

    ours = transaction_of(stage, topics.control, "wake")
    assert ours is not None
    assert ours is transaction_of(stage, topics.audit, "cancel_requested")
    assert [r.headers for r in stage.kafka.log(topics.control).committed(0, 99)] == [(trace,)]
    assert ends(stage) == [("cancelled", None)]
    stage.assert_clean()


def without_the_wake(stage: Stage) -> None:
    """As an older processor left it, or a repair: asked to cancel, and no wake was ever written."""
    for entry in stage.kafka.log(stage.place.topics.control).entries:
        entry.compacted = True
    stage.kafka.log(stage.place.topics.control).entries.clear()


@pytest.mark.parametrize("disk", ["kept", "lost"])
async def test_a_flow_taken_over_while_it_is_to_be_cancelled_is_woken(
    stage: Stage, disk: str
) -> None:
    stage.kafka.send(*waits(1, manual()), request_cancel(1))
    stage.script.at(Op.WRITTEN, stage.script.crash, nth=2)
    await stage.crashes()
    without_the_wake(stage)
    assert [one["status"] for one in stage.kafka.outcomes][-1] == "waiting"
    if disk == "lost":
        stage.lose_disk()

    async with stage.running():
        await stage.settles()

    assert ends(stage) == [("cancelled", None)]
    assert len(wakes(stage)) == 1
    stage.assert_clean()


# A wait that changes in the very batch in which it is due


@pytest.mark.parametrize(
    ("meanwhile", "sent", "then"),
    [
        ([observe(1)], 1, [("resumed", "timer")]),
        ([update(1)], 1, [("resumed", "timer")]),
        ([resume(1)], 0, [("resumed", "command")]),
        ([document("cancel", flow_id=flow_id(1))], 0, [("cancelled", None)]),
    ],
    ids=["a step", "an update", "resumed", "cancelled"],
)
async def test_a_wait_is_touched_in_the_batch_in_which_it_is_due(
    stage: Stage, meanwhile: list[dict[str, Any]], sent: int, then: list[Any]
) -> None:
    stage.kafka.send(*waits(1, timer(NOON + 5_000)))

    async with stage.running():
        await stage.quiet()
        stage.kafka.send(*meanwhile)
        await stage.goes_on(5_000)
        await stage.goes_on(HOUR_MS)

    assert len(wakes(stage)) == sent
    assert ends(stage) == then
    stage.assert_clean()


async def test_a_wait_is_set_to_later_in_the_batch_in_which_it_is_due(stage: Stage) -> None:
    stage.kafka.send(*waits(1, timer(NOON + 5_000)))

    async with stage.running():
        await stage.quiet()
        stage.kafka.send(resume(1), set_waiting(1, timer(NOON + 9_000)))
        await stage.goes_on(5_000)
        assert wakes(stage) == []
        await stage.goes_on(4_000)
        await stage.goes_on(HOUR_MS)

    assert ends(stage) == [("resumed", "command"), ("resumed", "timer")]
    stage.assert_clean()


@pytest.mark.parametrize("later_ms", [9_000, 90_000])
async def test_a_wait_is_set_to_later_while_its_wake_is_under_way(
    stage: Stage, later_ms: int
) -> None:
    stage.kafka.send(*waits(1, timer(NOON + 5_000)))

    async with stage.running():
        await stage.quiet()
        touch = resume(1), set_waiting(1, timer(NOON + later_ms))
        stage.script.at(Op.BEGIN, lambda: stage.kafka.send(*touch))
        await stage.goes_on(5_000)
        assert codes(stage) == ["not_due"]
        await stage.goes_on(later_ms - 5_001)
        assert len(wakes(stage)) == 1
        await stage.goes_on(1)
        await stage.goes_on(HOUR_MS)

    assert ends(stage) == [("resumed", "command"), ("resumed", "timer")]
    assert len(wakes(stage)) == 2
    stage.assert_clean()


# The broker's clock


async def test_a_clock_that_stepped_back_makes_a_wake_early_and_it_is_sent_again_when_due(
    stage: Stage,
) -> None:
    stage.kafka.send(*waits(1, timer(NOON + 5_000)))

    async with stage.running() as owner:
        await stage.quiet()
        stage.kafka.later(-HOUR_MS)
        await stage.goes_on(5_000)
        assert codes(stage) == ["not_due"]
        await stage.goes_on(HOUR_MS - 1)
        assert len(wakes(stage)) == 1
        assert ends(stage) == []
        await stage.goes_on(1)
        assert ends(stage) == [("resumed", "timer")]
        await stage.goes_on(HOUR_MS)
        assert figure(owner, "taskflow_timer_retries_total") == 1
        assert figure(owner, "taskflow_timers_fired_total") == 1

    assert codes(stage) == ["not_due", None]
    stage.assert_clean()


@pytest.mark.parametrize("touch", [observe(1), update(1)], ids=["a step", "an update"])
async def test_a_refused_wake_is_sent_again_also_if_the_same_batch_touched_the_flow(
    stage: Stage, touch: dict[str, Any]
) -> None:
    stage.kafka.send(*waits(1, timer(NOON + 5_000)))

    async with stage.running():
        await stage.quiet()
        stage.kafka.later(-1_000)
        stage.script.at(Op.BEGIN, lambda: stage.kafka.send(touch))
        await stage.goes_on(5_000)
        assert codes(stage) == ["not_due"]
        await stage.goes_on(1_000)

    assert codes(stage) == ["not_due", None]
    assert ends(stage) == [("resumed", "timer")]
    stage.assert_clean()


async def test_a_clock_that_was_put_forward_is_heard_of_although_nothing_is_near(
    stage: Stage,
) -> None:
    stage.kafka.send(*waits(1, timer(NOON + HOUR_MS)))

    async with stage.running():
        await stage.quiet()
        stage.kafka.later(HOUR_MS)
        await stage.goes_on(1)
        assert wakes(stage) == []  # nobody has told us yet
        await stage.goes_on(600_000)
        await stage.goes_on(1)

    assert ends(stage) == [("resumed", "timer")]
    stage.assert_clean()


def cursors_alone(stage: Stage) -> int:
    """Transactions that hold a cursor and nothing else."""
    written: Counter[int] = Counter()
    for topic in ("audit", "outcomes", "state", "deadletters", "control"):
        for entry in stage.kafka.log(f"{stage.place.topics.prefix}.{topic}").entries:
            if entry.record is not None and entry.transaction is not None:
                written[id(entry.transaction)] += 1
    return sum(count == 1 for count in written.values())


@pytest.mark.parametrize(
    ("commands", "asked"),
    [
        ([], 0),
        ([create(1), start(1)], 0),
        (waits(1, manual()), 0),
        (waits(1, timer(NOON + HOUR_MS)), 1),
    ],
    ids=["nothing", "it runs", "it waits for ever", "it waits for an hour"],
)
async def test_a_new_owner_asks_for_the_time_only_where_something_ends_by_itself(
    stage: Stage, commands: list[dict[str, Any]], asked: int
) -> None:
    stage.kafka.send(*commands)
    await stage.works()

    async with stage.running():
        await stage.quiet()
        await stage.goes_on(1)
        assert cursors_alone(stage) == asked
        await stage.goes_on(599_000)
        assert cursors_alone(stage) == asked
        await stage.goes_on(2_000)
        assert cursors_alone(stage) == 2 * asked

    stage.assert_clean()


# Herds


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("processor.partition.scheduling.timers.AT_ONCE_MAX", 3)
    monkeypatch.setattr("processor.partition.scheduling.timers.UNDECIDED_MAX", 5)
    monkeypatch.setattr("processor.partition.scheduling.timers.NEAR_MAX", 8)


HERD = 20


def herd() -> list[dict[str, Any]]:
    return [one for n in range(HERD) for one in waits(n, timer(NOON + 5_000 + n % 3))]


def assert_each_once(stage: Stage) -> None:
    assert {one: ends(stage, one) for one in range(HERD)} == {
        one: [("resumed", "timer")] for one in range(HERD)
    }
    assert len(wakes(stage)) == HERD, "a second wake was sent"
    assert set(codes(stage)) == {None}
    stage.assert_clean()


async def test_a_herd_goes_through_in_portions(stage: Stage, small: None) -> None:
    stage.kafka.send(*herd())
    async with stage.running(batch_max_records=40):
        await stage.quiet()
        portions: list[int] = []
        undecided: list[int] = []

        def look() -> None:
            portions.append(len(wakes(stage)))
            undecided.append(len(wakes(stage)) - len(codes(stage)))

        for nth in range(1, 60):
            stage.script.at(Op.COMMITTED, look, nth=nth)
        await stage.goes_on(6_000)

    steps = [after - before for before, after in zip([0, *portions], portions, strict=False)]
    assert max(steps) == 3
    assert max(undecided) <= 5
    assert_each_once(stage)


@pytest.mark.parametrize("disk", ["kept", "lost"])
@pytest.mark.parametrize("nth", [1, 4, *(pytest.param(n, marks=pytest.mark.soak) for n in (2, 7))])
@pytest.mark.parametrize("point", AT_WORK, ids=lambda point: point.name)
async def test_a_crash_in_the_middle_of_a_herd(
    stage: Stage, small: None, point: Op, nth: int, disk: str
) -> None:
    await a_herd_is_due(stage)
    await crash_at(stage, point, nth, disk)

    await all_end(stage)

    assert_each_once(stage)


@pytest.mark.parametrize("disk", ["kept", "lost"])
@pytest.mark.parametrize("point", TAKING_OVER, ids=lambda point: point.name)
async def test_a_crash_in_the_middle_of_a_herd_and_another_while_it_is_taken_over(
    stage: Stage, small: None, point: Op, disk: str
) -> None:
    await a_herd_is_due(stage)
    await crash_at(stage, Op.COMMITTED, 3, disk)
    await crash_at(stage, point, 1, "kept")

    await all_end(stage)

    assert_each_once(stage)


@pytest.mark.parametrize("point", [Op.COMMIT, Op.COMMITTED, Op.WRITE, Op.FETCHED])
async def test_an_error_in_the_middle_of_a_herd(stage: Stage, small: None, point: Op) -> None:
    await a_herd_is_due(stage)
    for nth in (2, 5, 9):
        stage.script.at(point, OSError("the network"), nth=nth)

    await all_end(stage)

    assert len(stage.errors) == 3
    assert_each_once(stage)


@pytest.mark.parametrize("point", [Op.COMMITTED, Op.FETCHED, Op.BEGIN, Op.WRITTEN])
async def test_a_rebalance_in_the_middle_of_a_herd(stage: Stage, small: None, point: Op) -> None:
    await a_herd_is_due(stage)
    for nth in range(2, 12, 2):
        stage.script.at(point, stage.source.rebalance, nth=nth)

    await all_end(stage)

    assert stage.kafka.journal.count("fence") == 2
    assert_each_once(stage)


HOW: dict[str, Any] = {"batch_max_records": 10, "cache_bytes": 0}


async def a_herd_is_due(stage: Stage) -> None:
    stage.kafka.send(*herd())
    await stage.works(**HOW)
    stage.later(6_000)


async def crash_at(stage: Stage, point: Op, nth: int, disk: str) -> None:
    stage.script.at(point, stage.script.crash, nth=nth)
    looking = asyncio.create_task(looks_without_end(stage))
    await stage.crashes(**HOW)
    looking.cancel()
    await asyncio.wait([looking])
    stage.script.crashed.clear()
    if disk == "lost":
        stage.lose_disk()


async def all_end(stage: Stage) -> None:
    async with stage.running(**HOW):
        await stage.settles()
