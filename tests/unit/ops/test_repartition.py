"""Random histories on N partitions, rewritten on M: verified, and held against the old side."""

from collections.abc import AsyncIterator

import orjson
import pytest

from processor.contract.headers import MOVED_FROM
from processor.engine.rows import Position
from processor.ops.repartition.rewriter import Rewriter, progress_of
from processor.ops.repartition.steps import MoveStep, merged_by_time
from processor.testing.memory.record import Appended
from tests.support.json_values import json_of
from tests.support.moved_deployment import differences, moved, side, undecided
from tests.support.random_histories import check, random_history
from tests.support.recorded_deployment import TOPICS, edit, violations

WINDOW_MS = 3_600_000


@pytest.mark.parametrize(("seed", "count", "to"), [(1, 4, 7), (2, 3, 1), (3, 1, 5)])
async def test_the_new_side_verifies_and_has_the_same_flows_and_history(
    seed: int, count: int, to: int
) -> None:
    old = random_history(800, seed=seed, partitions=count)
    assert (await old.verify(at_rest=False)).ok

    new = await moved(old, to)

    report = await new.verify(at_rest=False)
    assert report.ok, violations(report)
    assert differences(old, new) == []
    left = sum(len(undecided(old, name, q)) for name in SOURCES for q in range(count))
    assert report.counts["undecided"] == left
    ids = {record.headers for some in (new.of("audit", p) for p in range(to)) for record in some}
    names = [dict(headers)[MOVED_FROM] or b"" for headers in ids]
    old_ids = [json_of(r)["id"] for q in range(count) for r in old.of("audit", q)]
    assert sorted(names) == sorted(f"taskflow/{old_id}".encode() for old_id in old_ids)
    # The header says where a copy comes from; no decision made it, and none is missed.
    replayed = await check(new)
    assert replayed.ok, replayed.first[:3]
    assert replayed.records["events"] == len(ids)


SOURCES = ("commands", "control")


async def test_what_retention_took_stays_behind_and_history_does_not() -> None:
    old = random_history(800, seed=4, partitions=4)
    for q in (0, 2):
        commands = old.of("commands", q)
        old.records["commands", q] = commands[len(commands) // 2 :]
        old.starts["commands", q] = commands[len(commands) // 2].offset
    outcomes = old.of("outcomes", 1)
    old.records["outcomes", 1] = outcomes[10:]
    old.starts["outcomes", 1] = outcomes[10].offset

    new = await moved(old, 7)

    report = await new.verify(at_rest=False)
    assert report.ok, violations(report)
    mine, theirs = side(old, copy=False), side(new, copy=True)
    mine.forget(2**60)
    assert list(mine.differences(theirs)) == []
    assert report.counts["events_without_kept_outcome"] > 0


@pytest.mark.parametrize("name", ["audit", "state", "outcomes"])
async def test_what_is_not_the_same_is_told(name: str) -> None:
    old = random_history(300, seed=5, partitions=2)
    new = await moved(old, 3)
    assert differences(old, new) == []

    some = next(new.of(name, p) for p in range(3) if len(new.of(name, p)) > 6)
    if name == "state":
        snapshots = [n for n, one in enumerate(some) if (one.value or b"").startswith(b'{"flow"')]
        newest = snapshots[-1]
        value = json_of(some[newest])
        some[newest] = edit(some[newest], flow=value["flow"] | {"goal": "another"})
    elif name == "audit":
        some[3] = edit(some[3], actor="somebody else")
    else:
        del some[:3]

    assert differences(old, new) != []


async def test_a_flow_that_lies_wrong_is_told() -> None:
    old = random_history(300, seed=6, partitions=2)
    new = await moved(old, 3)
    new.records["audit", 0], new.records["audit", 1] = new.of("audit", 1), new.of("audit", 0)
    for p in (0, 1):
        new.records["audit", p] = [
            Appended(r.topic, p, r.offset, r.timestamp, r.key, r.value, r.headers)
            for r in new.of("audit", p)
        ]

    assert any("lies on partition" in sentence for sentence in differences(old, new))


def test_progress_stands_on_the_cursor() -> None:
    rewriter = Rewriter(TOPICS, TOPICS, 3, WINDOW_MS)
    copy = rewriter.cursor(1, Position(2, 3, 4), {"outcomes/0": 5})

    assert progress_of(copy.record.headers) == {"outcomes/0": 5}
    assert progress_of([]) is None
    # The first owner of the new side writes the work items of all steps that are offered.
    assert orjson.loads(copy.record.value or b"")["offered"] == 0


async def test_steps_of_different_partitions_come_by_time() -> None:
    async def stream(q: int, *times: int) -> AsyncIterator[MoveStep]:
        for at in times:
            yield MoveStep(q, at, None, None, None, [], None)

    streams = [stream(0, 1, 5), stream(1), stream(2, 2, 3, 9)]
    merged = [step async for step in merged_by_time(streams)]

    assert [(step.at_ms, step.partition) for step in merged] == [
        *((1, 0), (2, 2), (3, 2), (5, 0), (9, 2))
    ]
