"""A view is ready once it has what was committed when its partitions came to it, and not before."""

from pathlib import Path
from typing import Any

from processor.views.model.read_model import ReadModelState
from tests.support.random_histories import random_history
from tests.support.read_model_harness import messages, opened_view


def of(recorded: Any, partition: Any) -> Any:
    return [one for one in messages(recorded) if one.partition == partition]


def handed(some: Any, end: Any) -> Any:
    """As Kafka's consumer says it when it has handed over all of `some`."""
    behind = some[-1].offset + 1 if some else 0
    return ReadModelState(behind, end, behind)


async def test_before_the_group_or_the_broker_has_spoken_it_is_not_ready(tmp_path: Path) -> None:
    async with opened_view(tmp_path, 1, assigned=False) as view:
        assert not view.ready()
        view.assign([0])
        assert not view.ready(), "where the audit ends is not known yet"
        view.measure({0: ReadModelState(0, None, 0)})
        assert not view.ready()
        view.measure({0: ReadModelState(0, 0, 0)})
        assert view.ready(), "an empty audit is all there"


async def test_what_comes_after_its_start_does_not_keep_it_from_being_ready(tmp_path: Path) -> None:
    some = of(random_history(60), 0)
    half, end = some[: len(some) // 2], some[-1].offset + 1
    goal = half[-1].offset + 1
    async with opened_view(tmp_path, 1) as view:
        view.measure({0: ReadModelState(0, goal, 0)})
        assert not view.ready()
        await view.project(half[:-1])
        view.measure({0: handed(half, end)})
        assert not view.ready(), "one event is on its way"
        await view.project(half[-1:])
        view.measure({0: handed(half, end)})
        assert view.behind(0)
        assert view.ready()


async def test_the_marker_of_a_transaction_behind_the_last_event_is_not_waited_for(
    tmp_path: Path,
) -> None:
    some = of(random_history(20), 0)
    end = some[-1].offset + 2
    async with opened_view(tmp_path, 1) as view:
        await view.project(some)
        view.measure({0: ReadModelState(end - 1, end, some[-1].offset + 1)})
        assert not view.ready()
        view.measure({0: ReadModelState(end, end, some[-1].offset + 1)})
        assert view.ready()


async def test_a_partition_that_joins_is_waited_for_and_those_that_were_there_are_not(
    tmp_path: Path,
) -> None:
    recorded = random_history(60)
    first, second = of(recorded, 0), of(recorded, 1)
    ends = [some[-1].offset + 1 for some in (first, second)]
    async with opened_view(tmp_path, 1) as view:
        await view.project(first)
        view.measure({0: handed(first, ends[0])})
        assert view.ready()
        view.assign([0, 1])
        assert view.caught_up(0)
        assert not view.ready()
        view.measure({0: handed(first, ends[0]), 1: ReadModelState(0, ends[1], 0)})
        assert not view.ready()
        await view.project(second)
        view.measure({0: handed(first, ends[0]), 1: handed(second, ends[1])})
        assert view.ready()
        view.assign([])
        view.assign([0])
        assert not view.caught_up(0), "others may have been written meanwhile"


async def test_what_is_broken_or_cannot_be_written_is_not_ready(tmp_path: Path) -> None:
    async with opened_view(tmp_path, 1) as view:
        view.measure({0: ReadModelState(0, 0, 0)})
        view.failing = "OSError: disk full"
        assert not view.ready()
        view.failing = None
        view.broken[0] = "an event is missing"
        assert not view.ready()


async def test_a_load_balancer_hears_it_by_the_status(served: Any) -> None:
    recorded = random_history(20)
    async with served(recorded) as (client, view):
        async with client.get("/ready") as response:
            assert (response.status, (await response.json())["ready"]) == (503, False)
        async with client.get("/live") as response:
            assert response.status == 200, "it answers while it catches up"
        view.measure({p: handed(some, 0) for p in view.own_partitions if (some := of(recorded, p))})
        async with client.get("/ready") as response:
            assert (response.status, (await response.json())["ready"]) == (200, True)
