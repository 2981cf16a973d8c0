"""An offset is committed once every item before it is answered."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.adapters.kafka.producer.work_item_producer import METADATA_MAX_AGE_MS as WORKERS_MS
from processor.client.kafka import work_items
from processor.client.kafka.work_items import METADATA_MAX_AGE_MS, OffsetTracker, WorkItemReader
from processor.settings import Settings


def test_nothing_is_committed_before_the_first_item() -> None:
    assert OffsetTracker().committable is None


def test_an_item_that_is_not_answered_holds_the_offset() -> None:
    tracker = OffsetTracker()
    for offset in (5, 6, 9):
        tracker.received(offset)
    tracker.done(6)
    assert tracker.committable == 5
    tracker.done(5)
    assert tracker.committable == 9
    tracker.done(9)
    assert tracker.committable == 10


@given(st.lists(st.integers(0, 50), unique=True).map(sorted), st.randoms())
def test_the_offset_never_moves_back_and_leaves_no_item_behind(offsets: Any, rng: Any) -> None:
    tracker = OffsetTracker()
    for offset in offsets:
        tracker.received(offset)
    left = list(offsets)
    last = tracker.committable
    rng.shuffle(left)
    while left:
        tracker.done(left.pop())
        assert tracker.committable is not None
        assert last is not None
        assert tracker.committable >= last
        assert tracker.committable == (min(left) if left else offsets[-1] + 1)
        last = tracker.committable


async def test_executors_look_for_new_partitions_before_workers_write_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Made(Exception):
        pass

    def consumer(**options: Any) -> None:
        raise Made(options["metadata_max_age_ms"])

    monkeypatch.setattr(work_items, "AIOKafkaConsumer", consumer)
    with pytest.raises(Made, match=str(METADATA_MAX_AGE_MS)):
        await WorkItemReader(Settings(), "group", ["task"]).poll(max_records=1, wait_s=0)
    assert METADATA_MAX_AGE_MS < WORKERS_MS
