"""One batch, one transaction: what it holds, when it is cut, and which producer writes it."""

from dataclasses import replace
from typing import Any

import pytest

from processor.domain.decide import decide
from processor.engine import command_handler
from processor.engine.rows import Position
from processor.testing.memory.kafka import TxnState
from tests.support.moments import Op
from tests.support.scripted_ports import Stage
from tests.unit.commands import create, observe, start, update


async def test_a_suspect_producer_is_replaced_before_the_next_begin(stage: Stage) -> None:
    stage.suspects = {0}
    stage.kafka.send(*(create(n) for n in range(5)))

    await stage.works()

    # The scripted writer itself refuses to begin again while it is suspect.
    assert stage.errors == ["ProducerSuspect: a commit was sent twice; the producer is replaced"]
    assert stage.kafka.journal == ["fence", "begin", "commit", "fence", "begin", "commit"]
    assert stage.writers[0].discarded
    stage.assert_clean()


async def test_one_producer_writes_batch_after_batch(stage: Stage) -> None:
    stage.kafka.send(*(create(n) for n in range(12)))

    await stage.works()

    assert stage.kafka.journal == ["fence", *["begin", "commit"] * 3]
    assert len(stage.writers) == 1


async def test_a_batch_is_cut_once_its_output_is_large(stage: Stage) -> None:
    stage.place = replace(stage.place, output_max_bytes=20_000)
    stage.kafka.send(
        create(1, state_json={"text": "x" * 30_000}),
        create(2),
        create(3, state_json={"text": "x" * 30_000}),
        create(4),
    )

    await stage.works()

    assert stage.kafka.journal.count("commit") == 3
    assert stage.script.passed[Op.FETCHED] == 1
    stage.assert_clean()


async def test_the_groups_offsets_follow_the_decisions(stage: Stage) -> None:
    stage.kafka.send(create(1), create(2))
    stage.kafka.send(create(3, owner_session_key="agent:x"), topic="control")

    await stage.works()

    topics = stage.place.topics
    assert stage.kafka.group_offsets == {(topics.commands, 0): 2, (topics.control, 0): 1}


async def test_commands_and_control_are_decided_by_their_append_times(stage: Stage) -> None:
    stage.kafka.send(create(1))
    stage.kafka.later(1)
    stage.kafka.send(start(1), topic="control")
    stage.kafka.later(1)
    stage.kafka.send(update(1, revision=1))

    await stage.works()

    assert [one["verdict"] for one in stage.kafka.outcomes] == ["accepted"] * 3
    assert [one["kind"] for one in stage.kafka.outcomes] == [
        "create_managed",
        "start_running",
        "update_state",
    ]


async def test_flows_larger_than_the_cache_are_read_again_and_right(stage: Stage) -> None:
    large = {"text": "x" * 100_000}
    stage.kafka.send(*(create(n, state_json=large) for n in range(6)))
    stage.kafka.send(*(update(n, revision=0) for n in range(6)))
    stage.kafka.send(*(update(n, revision=1) for n in reversed(range(6))))

    async with stage.running(cache_bytes=500_000) as owner:
        await stage.quiet()
        assert 0 < owner._batches.cache.flows < 6

    assert {one["verdict"] for one in stage.kafka.outcomes} == {"accepted"}
    stage.assert_clean()


async def test_the_partitions_of_a_process_share_its_cache(stage: Stage) -> None:
    large = {"text": "x" * 100_000}

    async with stage.running(cache_bytes=3_000_000) as owner:
        owner.share(6)
        stage.kafka.send(*(create(n, state_json=large) for n in range(6)))
        await stage.quiet()
        assert 0 < owner._batches.cache.flows < 6


@pytest.mark.parametrize("count", [3, 40])
async def test_a_batch_ends_where_the_flows_read_for_it_take_too_much_memory(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    stage.kafka.send(*(create(n, state_json={"text": "x" * 5_000}) for n in range(count)))
    await stage.works(batch_max_records=100)
    commits = stage.kafka.journal.count("commit")
    monkeypatch.setattr("processor.partition.loader.LOADED_MAX_BYTES", 12_000)
    monkeypatch.setattr("processor.partition.loader.LOAD_FIRST", 2)
    stage.kafka.send(*(update(n, revision=0) for n in range(count)))

    await stage.works(batch_max_records=100, cache_bytes=1)

    assert stage.errors == []
    assert stage.kafka.journal.count("commit") > commits + count // 5
    stage.assert_clean()


async def test_markers_alone_move_the_cursor_at_most_hourly(stage: Stage) -> None:
    topics, kafka = stage.place.topics, stage.kafka

    def cursors() -> list[tuple[int, int]]:
        return [(one["commands"], one["control"]) for one in kafka.read(topics.state)]

    async def markers_come_after(seconds: float) -> None:
        foreign = kafka.begin()
        kafka.append(topics.commands, 0, b"k", b"never committed", transaction=foreign)
        kafka.end(foreign, TxnState.ABORTED)
        await stage.quiet()
        stage.monotonic_s += seconds
        fetches = stage.script.passed[Op.FETCH]
        stage.source.return_nothing()
        await kafka.until(lambda: stage.script.passed[Op.FETCH] > fetches and stage.source.idle)

    async with stage.running():
        await markers_come_after(3599.0)
        assert cursors() == []
        assert kafka.group_offsets[topics.commands, 0] == 2, "lag tools see no lag at rest"
        await markers_come_after(1.0)
        assert cursors() == [(4, 0)]
        await markers_come_after(3599.0)
        assert cursors() == [(4, 0)]
        await markers_come_after(1.0)
        assert cursors() == [(4, 0), (8, 0)]
        stage.monotonic_s += 10_000
        stage.source.return_nothing()
        await stage.quiet()
        assert len(cursors()) == 2

    assert kafka.outcomes == kafka.events == []
    stage.assert_clean()


async def test_an_hour_counts_from_the_last_transaction(stage: Stage) -> None:
    async with stage.running():
        await stage.quiet()
        stage.monotonic_s += 3599
        stage.kafka.send(create(1))
        await stage.quiet()
        stage.monotonic_s += 3599
        foreign = stage.kafka.begin()
        stage.kafka.append(stage.place.topics.commands, 0, None, b"", transaction=foreign)
        stage.kafka.end(foreign, TxnState.ABORTED)
        stage.source.return_nothing()
        await stage.quiet()

    assert stage.kafka.journal.count("commit") == 1


async def test_a_record_that_breaks_its_handling_is_set_aside_and_the_rest_goes_on(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(command: Any, *rest: Any, **how: Any) -> Any:
        if command.kind == "record_step_observation":
            raise ZeroDivisionError
        return decide(command, *rest, **how)

    monkeypatch.setattr(command_handler, "decide", breaks)
    stage.kafka.send(create(1), observe(1), start(1))

    await stage.works()

    assert [one["code"] for one in stage.kafka.outcomes] == [None, "internal_error", None]
    stage.assert_clean()


async def test_the_position_counts_both_topics_and_the_events(stage: Stage) -> None:
    stage.kafka.send(create(1), update(2))
    stage.kafka.send(start(1), topic="control")
    await stage.works()

    await stage.works()

    assert stage.source.attached[-1] == Position(2, 1, 3)
