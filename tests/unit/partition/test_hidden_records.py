"""Commands that lie behind somebody's open transaction."""

import asyncio

import pytest

from processor.engine.ports import HiddenRecords
from processor.partition.hidden_records import NOTICED_AFTER_S, HiddenRecordsWatch
from processor.testing.memory.kafka import TxnState
from tests.support.scripted_kafka import PATIENCE_S
from tests.support.scripted_ports import Stage
from tests.unit.commands import create


def hidden(start: int, end: int, topic: str = "t.commands") -> HiddenRecords:
    return HiddenRecords(topic, 3, start, end)


def test_a_transaction_that_stays_open_is_said_once_it_has_for_a_while() -> None:
    watch = HiddenRecordsWatch()
    assert watch.look([hidden(7, 8)], 100.0) is None
    assert watch.look([hidden(7, 12)], 100.0 + NOTICED_AFTER_S - 0.1) is None
    said = watch.look([hidden(7, 12)], 100.0 + NOTICED_AFTER_S)
    assert said is not None
    assert "open on t.commands partition 3 from offset 7 on and hides 5 offsets" in said
    assert "--topic t.commands --partition 3 --start-offset 7" in said
    assert watch.look([], 200.0) is None
    assert watch.look([hidden(7, 12)], 201.0) is None


def test_transactions_that_end_and_begin_all_the_time_are_nothing_to_say() -> None:
    watch = HiddenRecordsWatch()
    for n in range(20):
        assert watch.look([hidden(n, n + 3)], n * NOTICED_AFTER_S) is None


def test_of_two_topics_the_one_that_is_stuck_is_named() -> None:
    watch = HiddenRecordsWatch()
    control = hidden(1, 2, "t.control")
    watch.look([hidden(1, 2), control], 0.0)
    said = watch.look([hidden(9, 12), control], NOTICED_AFTER_S)
    assert said is not None
    assert "t.control" in said
    assert "t.commands" not in said


@pytest.mark.parametrize("name", ["commands", "control"])
async def test_what_is_hidden_counts_as_lag_and_is_said(stage: Stage, name: str) -> None:
    topic = f"{stage.place.topics.prefix}.{name}"
    foreign = stage.kafka.begin()
    stage.kafka.append(topic, 0, b"k", b"{}", transaction=foreign)
    stage.kafka.send(*(create(number) for number in range(5)), topic=name)

    async with stage.running() as owner:
        await stage.quiet()
        assert (owner.lag, owner.status.waits) == (6, None)
        async with asyncio.timeout(PATIENCE_S):
            while (waits := owner.status.waits) is None:
                stage.later(100)  # the pending fetch ends, and the processor looks
                await asyncio.sleep(0.001)
        assert f"open on {topic} partition 0 from offset 0 on and hides 6 offsets" in waits

        stage.kafka.end(foreign, TxnState.ABORTED)
        async with asyncio.timeout(PATIENCE_S):
            while len(stage.kafka.outcomes) < 5 or owner.lag or owner.status.waits:
                stage.later(100)
                await asyncio.sleep(0.001)
