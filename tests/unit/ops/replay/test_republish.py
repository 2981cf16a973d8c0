"""Events once more to another topic: which, in which order, how fast, and what a kill leaves."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.cli.common.runner import WrongUse
from processor.cli.main import WRONG_USE, main
from processor.cli.replay.to_topic import bounds_of
from processor.ops.replay import republish as module
from processor.ops.replay.republish import ReplayRange, RepublishedRecord, republish
from processor.ops.replay.selection import Selection, mark_of, run_id
from processor.ops.verify.record_stream import RecordStream
from processor.testing.memory.deployment import MemoryLog
from tests.support.random_histories import random_history
from tests.support.recorded_deployment import Recorded

PARTITIONS = 2
HISTORY = random_history(600, seed=3, partitions=PARTITIONS)


class Killed(Exception):
    """Nothing more comes from there."""


class Target:
    """A topic with transactions; `fails_at` numbers the write that is killed, and whether what it
    wrote is there."""

    def __init__(self) -> None:
        self.copies: list[RepublishedRecord] = []
        self.positions: dict[int, int] = {}
        self.writes: list[int] = []
        self.fails_at: tuple[int, bool] | None = None

    async def write(
        self, copies: Sequence[RepublishedRecord], positions: Mapping[int, int]
    ) -> None:
        dies = self.fails_at is not None and len(self.writes) == self.fails_at[0]
        self.writes.append(len(copies))
        if dies and self.fails_at is not None and not self.fails_at[1]:
            raise Killed
        self.copies += copies
        self.positions |= positions
        if dies:
            raise Killed


async def replay(
    target: Target,
    selection: Selection | None = None,
    *,
    history: Recorded = HISTORY,
    starts: Mapping[int, int] | None = None,
    **more: Any,
) -> Any:
    """All of the audit behind what the target has."""
    selection = selection or Selection()

    def open_stream(partition: int, start: int, end: int) -> RecordStream:
        return RecordStream(
            MemoryLog(history, partition), "taskflow.audit", start, end, lambda _: None
        )

    ranges = {}
    for partition in range(history.partitions):
        end = history.end("audit", partition)
        start = max((starts or {}).get(partition, 0), target.positions.get(partition, 0))
        past = 0 if selection.needs_the_past else start
        ranges[partition] = ReplayRange(past, start, max(start, end))
    return await republish(ranges, selection, open_stream, target, "run-1", **more)


def events(history: Recorded = HISTORY) -> list[Any]:
    """By time, each partition's in its order."""
    found = [record for p in range(history.partitions) for record in history.of("audit", p)]
    return sorted(found, key=lambda record: (record.timestamp, record.partition, record.offset))


def places(copies: Sequence[RepublishedRecord]) -> list[tuple[int, int]]:
    marks = [mark_of(copy.headers) for copy in copies]
    return [(mark.partition, mark.offset) for mark in marks if mark is not None]


async def test_each_event_is_as_it_was_with_one_header_more() -> None:
    target = Target()

    done = await replay(target)

    assert done.replayed == len(target.copies) == len(events())
    for copy, record in zip(target.copies, events(), strict=True):
        assert (copy.key, copy.value, copy.at_ms) == (record.key, record.value, record.timestamp)
        assert copy.headers[:-1] == [*record.headers]
        mark = mark_of(copy.headers)
        assert mark == ("run-1", "taskflow.audit", record.partition, record.offset)
    assert target.positions == {p: HISTORY.end("audit", p) for p in range(PARTITIONS)}


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=6))
async def test_a_run_that_is_killed_goes_on_without_a_gap_and_without_a_double(kills: Any) -> None:
    target = Target()
    for kill in kills:
        target.fails_at, target.writes = kill, []
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(module, "TRANSACTION_MAX", 40)
            try:
                await replay(target)
            except Killed:
                continue
    target.fails_at = None
    await replay(target)

    for partition in range(PARTITIONS):
        mine = [offset for p, offset in places(target.copies) if p == partition]
        assert mine == [record.offset for record in HISTORY.of("audit", partition)]


async def test_a_run_that_is_done_writes_what_came_since() -> None:
    history = random_history(60, seed=4, partitions=1)
    target = Target()
    await replay(target, history=history)
    again = await replay(target, history=history)
    before = len(target.copies)
    last = history.of("audit")[-1]
    for n in (1, 2):
        history.append("audit", 0, last.key, last.value, last.headers)
        assert history.of("audit")[-1].offset >= target.positions[0], n

    more = await replay(target, history=history)

    assert (again.replayed, more.replayed) == (0, 2)
    assert len(target.copies) == before + 2


@pytest.mark.parametrize("starts", [{}, {0: 200, 1: 100}])
async def test_a_selection_is_of_flows_owners_and_kinds(starts: dict[int, int]) -> None:
    owner = "agent:joe:session:2"
    own: set[bytes] = set()
    expected = []
    for record in events():
        event = orjson.loads(record.value)
        if event["kind"] == "created":
            theirs = event["payload_json"]["owner_session_key"] == owner
            (own.add if theirs else own.discard)(record.key)
        wanted = record.key in own and event["kind"] in ("started", "finished")
        if wanted and record.offset >= starts.get(record.partition, 0):
            expected.append((record.partition, record.offset))
    target = Target()

    await replay(
        target,
        Selection(owners=frozenset({owner}), kinds=frozenset({"started", "finished"})),
        starts=starts,
    )

    assert len(expected) > 5
    assert places(target.copies) == expected
    flow = events()[-1].key.decode()
    alone = Target()
    await replay(alone, Selection(flow_ids=frozenset({flow})))
    assert {copy.key for copy in alone.copies} == {flow.encode()}
    assert len(alone.copies) == sum(record.key == flow.encode() for record in events())


async def test_what_is_passed_over_is_written_down_too() -> None:
    target = Target()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "UNWANTED_MAX", 50)
        done = await replay(target, Selection(kinds=frozenset({"no such kind"})))

    assert (done.replayed, target.copies) == (0, [])
    assert len(target.writes) > 3
    assert target.positions == {p: HISTORY.end("audit", p) for p in range(PARTITIONS)}


async def test_the_pace_is_kept() -> None:
    target, now, slept = Target(), [0.0], []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    done = await replay(target, per_s=20.0, sleep=sleep, monotonic=lambda: now[0])

    assert max(target.writes) == 5  # a quarter of a second
    assert now[0] == pytest.approx((done.replayed - target.writes[-2]) / 20, abs=0.3)
    assert max(slept) == pytest.approx(0.25)


def test_a_run_has_the_name_of_what_was_asked_for() -> None:
    assert run_id("taskflow", "t", "10m", []) == run_id("taskflow", "t", "10m", [])
    assert run_id("taskflow", "t", "10m", []) != run_id("taskflow", "t", "11m", [])


@pytest.mark.parametrize("value", [None, b"", b"run", b"run/t/0/x", b"\xff/t/0/1", b"t/0/1"])
def test_what_is_no_mark_is_none(value: bytes | None) -> None:
    assert mark_of([("taskflow-replay", value)]) is None
    assert mark_of([("traceparent", b"00")]) is None


def test_offsets_are_read() -> None:
    assert bounds_of(["0:1-2", "3:5-", "4:-6"]) == {0: (1, 2), 3: (5, None), 4: (0, 6)}
    for text in ("0", "0:5", "0:-", "x:1-2", "0:1-2-3", ":1-2", "0:a-b"):
        with pytest.raises(WrongUse, match="--offsets is"):
            bounds_of([text])


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["to", "taskflow.audit", "--yes"], "one of taskflow's own topics"),
        (["to", "t", "--yes", "--since", "soon"], "--since is 'soon'"),
        (["to", "t", "--yes", "--flow", "me"], "'me' is no flow id"),
        (["to", "t"], "take --yes, or --dry-run"),
        (["group", "g", "--to", "10m"], "take --yes, or --dry-run"),
        (["group", "g", "--yes", "--to", "then"], "--to is 'then'"),
    ],
)
def test_wrong_use_is_code_2(
    arguments: list[str], about: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", *arguments]) == WRONG_USE
    assert about in capsys.readouterr().err
