"""What benchmarks make of what they saw, also where they saw little."""

import math
import uuid
from pathlib import Path
from typing import Any

import orjson
import pytest

from processor.contract.steps import STEPS
from processor.engine.codec import Draft, Readable, decode
from processor.engine.partitioner import partition_of
from tests.benchmarks import brokers, many_flows, paced
from tests.benchmarks.jobs.effects import Effects, after_kills, latency, throughput
from tests.benchmarks.results import KEPT, PLOTS, Run, digest, kept
from tests.benchmarks.steps import handler, lapse
from tests.benchmarks.steps.leases import step_snapshot
from tests.benchmarks.steps.work import PER_FLOW, Work, step_of
from tests.benchmarks.throughput import command
from tests.benchmarks.views import slowest_per_s

PLOTTED = [name for name, of in PLOTS.items() if kept(of)]
DRAWN = KEPT.parent / "plots"


def test_the_slowest_tenth_is_found() -> None:
    steady = [(float(n), 100 * n) for n in range(11)]
    assert slowest_per_s(steady) == 100
    assert slowest_per_s([*steady[:5], *((at_s + 4, have) for at_s, have in steady[5:])]) == 20


@pytest.mark.parametrize("points", [[(0.0, 5), (0.2, 105)], [(0.0, 5), (0.1, 95), (0.2, 105)]])
def test_an_audit_that_was_there_within_two_looks_has_a_rate(points: Any) -> None:
    assert slowest_per_s(points) > 0


def test_the_longest_pause_lies_between_outcomes_that_follow_each_other() -> None:
    assert brokers.longest_pause_s([3.0, 1.0, 1.5, 9.0, 9.5]) == 6.0
    assert math.isnan(brokers.longest_pause_s([1.0]))


class Clock:
    """Time that passes only while somebody sleeps, and once in between for `stall_s`."""

    def __init__(self, stall_s: float = 0.0, stalled_at: int = 0) -> None:
        self.now_s = 100.0
        self._stall_s = stall_s
        self._stalled_at = stalled_at
        self.sent: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def send(self, number: int) -> None:
        if number == self._stalled_at:
            self.now_s += self._stall_s
        self.sent.append(self.now_s)


def test_commands_are_sent_when_they_are_due() -> None:
    clock = Clock()
    began_s, behind_s = paced.pace(500, 100, clock.send, clock=clock, sleep=clock.sleep)
    assert [at_s - began_s for at_s in clock.sent] == pytest.approx(
        [n / 100 for n in range(500)], abs=paced.TICK_S
    )
    assert max(behind_s) <= paced.TICK_S + 1e-9


def test_what_a_stall_holds_up_counts_from_when_it_was_due() -> None:
    """100 ms of nothing at 1,000 a second, each answered 2 ms after it was sent: the hundred that
    were due meanwhile are late by up to those 100 ms, and the load says that it fell behind."""
    clock = Clock(stall_s=0.1, stalled_at=500)
    began_s, behind_s = paced.pace(1_000, 1_000, clock.send, clock=clock, sleep=clock.sleep)
    r = paced.result(began_s, 1_000, 0, behind_s, [at_s + 0.002 for at_s in clock.sent])
    assert r["p50"] == pytest.approx(2, abs=1.5)
    assert r["p95"] == pytest.approx(52, abs=3)
    assert r["max"] == pytest.approx(102, abs=2)
    assert r["answered_per_s"] == pytest.approx(1_000, rel=0.01)
    assert paced.fell_behind(r)


def test_what_was_never_answered_is_told() -> None:
    r = paced.result(0.0, 10, 5, [0.0] * 10, [0.0] * 8 + [1.0, 1.0])
    assert (r["commands"], r["unanswered"]) == (5, 3)
    assert "3 were not answered" in paced.row("taskflow", r)


@pytest.mark.parametrize(("flow", "turn"), [(0, 0), (3, 1), (paced.FLOWS - 1, 4_711)])
def test_an_answer_says_which_command_it_answers(flow: int, turn: int) -> None:
    ours = command(str(uuid.uuid4()), turn, flow)
    for value in (ours, paced.in_reference_words(ours)):
        assert paced.number_of(value) == turn * paced.FLOWS + flow


def test_updates_meet_all_flows_before_they_meet_one_again() -> None:
    met = [key for key, _ in many_flows.updates(1_000, 2_000)]
    assert len(set(met[:1_000])) == 1_000
    assert met[:1_000] == met[1_000:]


def test_the_flows_that_are_filled_are_those_that_are_updated() -> None:
    there = dict(many_flows.snapshots(1_000))
    assert there.keys() == {key for key, _ in many_flows.updates(1_000, 1_000)}
    for key, value in there.items():
        assert orjson.loads(value)["flow"]["id"] == key.decode()
    assert {partition_of(key, many_flows.PARTITIONS) for key in there} == {0, 1, 2, 3}


def test_figures_are_kept_as_they_are(tmp_path: Path) -> None:
    run = Run("flows", {"commands": 3}, [{"flows": 1, "rate_per_s": 2.5}])
    run.keep(tmp_path)
    Run("flows-of-others", {}, []).keep(tmp_path)
    assert kept("flows", tmp_path) == [run]


@pytest.mark.parametrize("name", PLOTTED)
def test_a_plot_shows_what_is_kept(name: str) -> None:
    drawn = (DRAWN / f"{name}.svg").read_text("utf-8")
    assert digest(PLOTS[name]) in drawn, "the figures are newer: make plots"


def test_a_whole_step_is_three_commands_that_can_be_read() -> None:
    work, step = Work(3, 4), 2 * PER_FLOW + 1
    made = [
        work.create(2),
        work.schedule(step, lapse.SCHEDULE),
        work.start(step),
        work.start(step, 2),
        work.complete(step, 2),
    ]
    read = [decode(Draft(one.key, one.value)) for one in made]
    commands = [one.command for one in read if isinstance(one, Readable)]
    assert [one.kind for one in commands] == [
        "create_managed",
        "schedule_step",
        "start_step",
        "start_step",
        "complete_step",
    ]
    assert len({one.command_id for one in commands}) == len(made)
    assert {one.flow_id for one in commands} == {made[0].key.decode()}
    assert {one.partition for one in made} == {partition_of(made[0].key, 4)}
    assert step_of(made[0].key + b"/run-%d" % step) == step


def test_a_lease_at_rest_is_a_step_as_state_has_it() -> None:
    flow_id = str(uuid.uuid4())
    key, value = step_snapshot(flow_id, "run-1")
    step = STEPS.validate_python(orjson.loads(value)["step"], strict=False)
    assert key.decode() == f"{flow_id}/run-1"
    assert step.id == str(uuid.uuid5(uuid.UUID(flow_id), "run-1"))


def test_a_handler_that_never_began_is_told() -> None:
    r = handler.result([1.0, 2.0, 3.0], [1.02, 2.04, 0.0])
    assert (r["steps"], r["not_begun"]) == (3, 1)
    assert r["p99"] == pytest.approx(40)


def test_the_way_of_a_lapsed_lease_is_told_in_parts() -> None:
    """Of three, the first is skipped and the last not handed out."""
    rows = [(0, 9_000, 9_000.0), (1, 2_100, 2_130.0)]
    r = lapse.result(rows, {0: 0, 1: 2_000, 2: 3_000}, {0: 1, 1: 2_040}, steps=3, skipped=1)
    assert (r["leases"], r["not_handed_out"]) == (2, 1)
    assert (r["wake_p99"], r["item_p99"], r["seen_p99"]) == (40, 60, 130)


def test_jobs_are_judged_by_their_effects() -> None:
    lines = """begins 0 10.0\nends 0 10.5\nbegins 1 10.0\nbegins 2 10.1\nends 2 11.0
    begins 2 15.0\nends 2 16.0""".splitlines()
    effects = Effects.of(lines)
    assert after_kills(effects, range(4)) == {"kill_jobs": 4, "lost": 2, "twice": 1}
    assert throughput(effects, [0, 2]) == {"jobs": 2, "jobs_per_s": 2 / 1.0}
    r = latency(effects, [0, 1, 2], 9.9, 10, skipped=1)
    assert r["latency_jobs"] == 2
    assert r["max"] == pytest.approx(0, abs=1e-6)
