"""What stands in a view is what its events fold to, in whichever batches they come, and again."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from processor.domain.transitions import Authority
from processor.views.model import read_model as views
from processor.views.model.aggregates import MinuteCounts, Totals, bucket
from processor.views.model.projection import ProjectionFailed, ViewedStep, project, read
from processor.views.model.read_model import RESEEKS_MAX
from processor.views.model.rows import FLOW_COLUMNS, flow_of
from tests.support.machine import patience
from tests.support.random_histories import random_history
from tests.support.read_model_harness import Reseeks, docs_of, expected, messages, opened_view
from tests.support.recorded_deployment import Recorded, edit
from tests.support.strategies import lives

HISTORIES = st.integers(0, 2**32).map(lambda seed: random_history(150, seed=seed))
CUTS = st.lists(st.integers(1, 40), max_size=12)


def batches(some: Any, sizes: Any) -> Iterator[Any]:
    """In order, of these sizes; the rest is the last one."""
    at = 0
    for size in [*sizes, len(some)]:
        if at < len(some):
            yield some[at : at + size]
        at += size


def lived(life: Any) -> Any:
    recorded = Recorded()
    at = recorded.now
    for command, _, authority in life:
        body = {"kind": str(command.kind), **command.model_dump(mode="json", exclude_unset=True)}
        name = "control" if authority is Authority.OPERATOR else "commands"
        at += 1_500
        recorded.send((name, body), at_ms=at)
    return recorded


def projected(recorded: Any, sizes: Any) -> Any:
    """All of it, in batches: what is known after it, and the changes put together."""
    known: dict[str, Any] = {}
    steps: dict[tuple[int, str], ViewedStep] = {}
    minutes: dict[tuple[int, int], MinuteCounts] = {}
    totals: dict[int, Totals] = {}
    events: list[Any] = []
    for batch in batches(docs_of(messages(recorded)), sizes):
        changes = project([read(doc) for doc in batch], known, steps)
        steps = {at: doc for at, doc in steps.items() if at[0] not in changes.pruned}
        for minute_of, minute in changes.minutes.items():
            minutes.setdefault(minute_of, MinuteCounts()).add(minute)
        for partition, some in changes.totals.items():
            totals.setdefault(partition, Totals()).add(some)
        events += changes.events
        assert not changes.flows.keys() & changes.pruned.keys()
    return known, steps, minutes, totals, events


def assert_counted(found: Any, minutes: Any, totals: Any) -> None:
    """Minutes (partition, ms) and totals, as JSON, are what happened."""
    wanted = found.minutes()
    assert {(p, ms // 60_000) for p, ms in minutes} == wanted.keys()
    for (partition, ms), doc in minutes.items():
        counts, stays = wanted[partition, ms // 60_000]
        for name in ("events", "created", "finished", "failed", "cancelled"):
            assert doc[name] == counts[name], name
        assert doc["stays"] == {
            status: [
                len(some),
                sum(some),
                max(some),
                sorted(map(list, Counter(map(bucket, some)).items())),
            ]
            for status, some in stays.items()
        }
    for partition, doc in totals.items():
        assert doc == found.totals(partition)


def assert_folded(recorded: Any, sizes: Any) -> None:
    known, steps, minutes, totals, events = projected(recorded, sizes)
    docs = docs_of(messages(recorded))
    found = expected(docs)
    assert {viewed.row_number: viewed.flow for viewed in known.values()} == found.flows
    assert {at: step.step for at, step in steps.items()} == found.steps
    assert [event[-1] for event in events] == docs
    for viewed in known.values():
        own = [at for at, e in found.events.items() if e["flow_id"] == viewed.flow.id]
        own = [at for at in own if at >= viewed.row_number]
        assert (viewed.events, viewed.last_event_id) == (len(own), max(own))
        assert viewed.since_ms == found.lives[viewed.row_number][-1][0]
    assert_counted(
        found,
        {at: minute.as_json() for at, minute in minutes.items()},
        {partition: some.as_json() for partition, some in totals.items()},
    )


@settings(max_examples=15)
@given(HISTORIES, CUTS)
def test_a_history_projects_to_what_its_events_fold_to(recorded: Any, sizes: Any) -> None:
    assert_folded(recorded, sizes)


@settings(max_examples=40)
@given(lives(), CUTS)
def test_a_life_projects_to_what_its_events_fold_to(life: Any, sizes: Any) -> None:
    assert_folded(lived(life), sizes)


async def rows_of(view: Any) -> Any:
    read_rows = view.database.read
    flows = await read_rows(f"SELECT n, {FLOW_COLUMNS} FROM flow WHERE pruned = 0")
    steps = await read_rows("SELECT flow, run_id, doc FROM step")
    events = await read_rows("SELECT doc FROM event ORDER BY id")
    return (
        {row_number: flow_of(row) for row_number, *row in flows},
        {(flow, run): orjson.loads(doc) for flow, run, doc in steps},
        [doc for (doc,) in events],
    )


async def assert_once(folder: Any, recorded: Any, deliveries: Any) -> None:
    """After all `deliveries` (slices of the topic; whether the view is loaded again after it),
    and then the whole of it."""
    some = messages(recorded)
    for start, size, restarted in deliveries:
        async with opened_view(folder, recorded.partitions) as view:
            for partition in range(recorded.partitions):
                own = [one for one in some if one.partition == partition]
                upto = next(
                    (i for i, one in enumerate(own)
                     if one.offset >= view.next_offset("taskflow.audit", partition)),
                    len(own),
                )  # fmt: skip
                # What is delivered begins behind us, never beyond us, as after a seek.
                await view.project(own[max(upto - start, 0) : upto + size])
                if restarted:
                    await view.load()
    async with opened_view(folder, recorded.partitions) as view:
        await view.project(some)
        await view.project(some)
        assert not view.broken
        assert view.failing is None
        flows, steps, events = await rows_of(view)
        found = expected(docs_of(some))
        assert flows == found.flows
        assert steps == found.steps
        assert events == docs_of(some)
        aggregates = await view.database.aggregates()
        assert_counted(
            found,
            {(p, s * 1000): doc for name, p, s, doc in aggregates if name == "minutes"},
            {p: doc for name, p, _, doc in aggregates if name == "totals"},
        )


DELIVERIES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans()), min_size=1, max_size=6
)


@settings(max_examples=8)
@example(random_history(150, seed=1), [(0, 30, False), (30, 30, True), (60, 60, False)])
@given(HISTORIES, DELIVERIES)
def test_what_is_delivered_again_changes_nothing(recorded: Any, deliveries: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(assert_once(Path(folder), recorded, deliveries))


@pytest.mark.parametrize(
    "doc", [b"", b"[]", b"{}", b"\xff", b'{"id":1}', b'{"id":1,"flow_id":"x","kind":"dance"}']
)
def test_what_is_no_event_is_told(doc: bytes) -> None:
    with pytest.raises(ProjectionFailed):
        read(doc)


def test_an_event_of_a_flow_that_is_not_there_is_told() -> None:
    docs = docs_of(messages(random_history(50)))
    first = next(doc for doc in docs if b'"created"' not in doc)
    with pytest.raises(ProjectionFailed, match="is not there"):
        project([read(first)], {}, {})


def test_a_flow_is_not_created_twice() -> None:
    created = read(docs_of(messages(random_history(10)))[0])
    with pytest.raises(ProjectionFailed, match="though it is there"):
        project([created, created], {}, {})


async def test_a_gap_is_read_again_and_one_that_stays_stops_its_partition_alone(
    tmp_path: Path,
) -> None:
    recorded = random_history(60)
    some = messages(recorded)
    holed = [one for one in some if (one.partition, one.offset) != (0, some[1].offset)]
    async with opened_view(tmp_path, recorded.partitions) as view:
        # The first delivery gets on a bit, which is no reason to give up.
        for _ in range(1 + RESEEKS_MAX + 1):
            assert 0 not in view.broken
            await view.project(holed)
        assert isinstance(view._reseek, Reseeks)
        assert view._reseek == [0] * (1 + RESEEKS_MAX)
        assert list(view.broken) == [0]
        assert "--rebuild" in view.broken[0]
        assert view.position(0).event_id == 1
        assert view.position(1).event_id - (1 << 40) == sum(m.partition == 1 for m in some)
        # When the group shares out again, it is tried again, and now all is there.
        view.assign(range(recorded.partitions))
        await view.project(some)
        assert not view.broken
        assert await view.includes([sum(m.partition == 0 for m in some)], 0)


async def test_dead_letters_do_not_hide_a_gap_that_stays(tmp_path: Path) -> None:
    recorded = random_history(60)
    holed = messages(recorded)[1:]
    async with opened_view(tmp_path, recorded.partitions) as view:
        for offset in range(RESEEKS_MAX + 1):
            await view.project([one for one in holed if one.partition == 0])
            dead_letter = {"partition": 0, "offset": offset, "timestamp": 1_000, "headers": ()}
            await view.project_dead_letters([SimpleNamespace(key=None, value=b"", **dead_letter)])
        assert list(view.broken) == [0]


async def test_an_event_that_cannot_follow_stops_its_partition_alone(tmp_path: Path) -> None:
    recorded = random_history(60)
    some = messages(recorded)
    # With the right id, but of a flow that nobody has created.
    impossible = edit(recorded.of("audit", 0)[1], kind="started", flow_id="nobody")
    at = some.index(next(one for one in some if (one.partition, one.offset) == (0, 1)))
    some[at] = impossible
    async with opened_view(tmp_path, recorded.partitions) as view:
        async with asyncio.timeout(patience(5)):
            await view.project(some)
        assert list(view.broken) == [0]
        assert "is not there" in view.broken[0]
        assert view.failing is None
        assert view.position(1).event_id - (1 << 40) == sum(m.partition == 1 for m in some)
        _, _, events = await rows_of(view)
        assert events == [one.value for one in some if one.partition == 1]
        found = expected(events)
        assert view.totals.at(1, None) == found.totals(1)
        assert view.totals.at(0, None) is None


async def test_a_batch_whose_caller_went_away_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "RETRY_S", 0.0)
    recorded = random_history(60)
    some = messages(recorded)
    async with opened_view(tmp_path, recorded.partitions) as view:
        begun, write = asyncio.Event(), view.database.write

        async def noted(batch: Any) -> None:
            begun.set()
            await write(batch)

        monkeypatch.setattr(view.database, "write", noted)
        task = asyncio.create_task(view.project(some[:20]))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(patience(20)):
            await view.project(some)
        assert not view.broken
    await assert_once(tmp_path, recorded, [(60, 60, False)])
