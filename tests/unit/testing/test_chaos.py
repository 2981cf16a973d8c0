"""What a trial draws, sends and reports; the trial itself is in tests/e2e/test_torture.py."""

import random
from collections import Counter
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from processor.contract.topics import Topics
from processor.settings import Settings
from processor.testing.chaos import run as trial
from processor.testing.chaos.cluster_faults import CLUSTER_MENU
from processor.testing.chaos.faults import KILLS, MENU, Act, draw
from processor.testing.chaos.load import Load
from processor.testing.chaos.plan import ChaosPlan, ChaosResult
from processor.testing.chaos.stage import ChaosStage, worker_environment

TOPICS = Topics("torture")
KINDS = {
    *("create_managed", "create_mirrored", "start_running", "set_waiting", "resume"),
    *("resume_external", "finish", "fail", "request_cancel", "cancel", "update_state"),
    *("record_step_observation", "wake", "prune"),
    *("schedule_step", "cancel_step", "retry_step", "wake_step"),
}


def drawn(seed: int, *, with_broker: bool = True, menu: tuple[Act, ...] = MENU) -> list[str]:
    return [
        draw(menu, random.Random(f"{seed}/{number}"), with_broker=with_broker).name
        for number in range(300)
    ]


def test_a_seed_draws_the_same_faults_in_the_same_order_and_in_time_all_of_them() -> None:
    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert set(drawn(1)) == {act.name for act in MENU}


def test_with_several_brokers_their_faults_come_beside_all_others() -> None:
    menu = MENU + CLUSTER_MENU
    assert set(drawn(1, menu=menu)) == {act.name for act in menu}
    assert len({act.name for act in menu}) == len(menu)
    assert set(drawn(1, with_broker=False, menu=menu)) == set(drawn(1, with_broker=False))


def test_at_a_given_cluster_only_workers_are_broken() -> None:
    assert set(drawn(1, with_broker=False)) == {a.name for a in MENU if not a.needs_broker}
    assert not [act.name for act in MENU if "broker" in act.name and not act.needs_broker]


def test_kills_are_kill_9_of_workers_executors_and_the_broker_and_nothing_else() -> None:
    workers = {"kill a worker", "kill all workers"}
    assert {act.name for act in KILLS} == workers | {"kill an executor", "kill the broker"}


def test_the_load_has_every_kind_every_wait_and_records_of_every_trouble() -> None:
    load = Load(TOPICS, 4, random.Random(3))
    records = [load.next() for _ in range(5_000)]

    assert load.sent.keys() >= KINDS
    assert {"rubbish", "resend", "misplaced"} <= load.sent.keys()
    assert sum(load.sent.values()) > len(records)  # what is misplaced is a command, too
    waits: Counter[tuple[str, bool]] = Counter()
    for _, _, value, _ in records:
        if b'"set_waiting"' in value:
            wait = orjson.loads(value)["wait"]
            waits[wait["kind"], bool({"at", "timeout_at"} & wait.keys())] += 1
    assert set(waits) == {
        ("timer", True),
        ("external_event", False),
        ("external_event", True),
        ("manual", False),
        ("manual", True),
        ("steps", True),
    }
    control = {orjson.loads(v)["kind"] for topic, _, v, _ in records if topic == TOPICS.control}
    assert control == {"fail", "wake", "wake_step", "prune"}


def test_the_load_is_the_same_for_the_same_seed() -> None:
    def ids(seed: int) -> list[bytes]:
        load = Load(TOPICS, 4, random.Random(seed))
        return [load.next()[1] for _ in range(200)]

    assert ids(1) == ids(1) != ids(2)


def test_workers_see_no_settings_but_those_of_the_trial() -> None:
    given = {"PATH": "/bin", "TASKFLOW_SASL_PASSWORD": "hunter2", "TASKFLOW_GROUP_ID": "mine"}

    own = worker_environment(ChaosPlan(seed=1, seconds=1), "torture-1", given)
    assert "TASKFLOW_SASL_PASSWORD" not in own
    assert "TASKFLOW_GROUP_ID" not in own
    assert own["PATH"] == "/bin"
    assert "TASKFLOW_REPLICATION_FACTOR" not in own
    three = worker_environment(ChaosPlan(seed=1, seconds=1, brokers=3), "torture-1", given)
    assert three["TASKFLOW_REPLICATION_FACTOR"] == "3"
    there = worker_environment(ChaosPlan(seed=1, seconds=1, bootstrap="k:9092"), "torture-1", given)
    assert there["TASKFLOW_SASL_PASSWORD"] == "hunter2"
    assert "TASKFLOW_GROUP_ID" not in there
    assert there["TASKFLOW_TOPIC_PREFIX"] == "torture-1"


def test_a_report_with_a_violation_is_not_ok() -> None:
    result = ChaosResult(ChaosPlan(seed=5, seconds=None, kills=2), "torture-5")
    assert result.as_json()["ok"] is True
    result.heal_s += [1.0, 2.0, 9.0]
    result.violations.append("w0 ended by itself.")
    report = orjson.loads(orjson.dumps(result.as_json()))
    assert (report["ok"], report["seed"]) == (False, 5)
    assert report["heal_s"] == {"p50": 2.0, "p99": 2.0, "max": 9.0}


class Restoring:
    """A worker: started, it makes a table where it has none."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir, self.ends = state_dir, 0
        self.table = state_dir / "0.db"
        state_dir.mkdir()

    def tables(self) -> list[Path]:
        return [self.table]

    async def end(self) -> int:
        self.ends += 1
        return 0

    async def start(self, **_settings: str) -> None:
        if not self.table.exists():
            self.table.write_text("sound")

    def check(self) -> None:
        pass

    async def until_printed(self, _landmark: str, *, timeout_s: float) -> None:
        pass


async def verdict(
    home: Path, monkeypatch: pytest.MonkeyPatch, *, flipped: bool
) -> tuple[list[Restoring], ChaosResult]:
    """Of a run whose second worker's table is damaged, by us or not."""

    async def verify(_settings: Settings, state_dir: Path) -> tuple[dict[str, Any], int]:
        path = state_dir / "0.db"
        if path.read_text() == "sound":
            return {"ok": True, "violations": []}, 0
        one = {"invariant": "I5", "kind": "table_step", "topic": str(path), "partition": 0}
        return {"ok": False, "violations": [{**one, "offset": -1, "message": "Not the fold."}]}, 1

    workers = [Restoring(home / "w0"), Restoring(home / "w1")]
    workers[0].table.write_text("sound")
    workers[1].table.write_text("damaged")
    stage = ChaosStage(Settings(), cast(Any, workers), [], None, None)
    stage.flipped |= {workers[1].table} if flipped else set()
    result = ChaosResult(ChaosPlan(seed=1, seconds=1), "torture-1")
    monkeypatch.setattr(trial, "_verify", verify)
    await trial._verdict(stage, result, lambda _said: None)
    return workers, result


async def test_a_flipped_bit_that_no_worker_has_read_is_gone_with_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, result = await verdict(tmp_path, monkeypatch, flipped=True)

    assert result.ok
    assert result.repaired == [f"I5 table_step at {workers[1].table}/0 offset -1: Not the fold."]
    assert [worker.ends for worker in workers] == [0, 1]
    assert [report["ok"] for report in result.verified] == [True, True]


async def test_a_table_that_is_not_the_fold_is_a_violation_where_no_bit_was_flipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers, result = await verdict(tmp_path, monkeypatch, flipped=False)

    assert result.violations == [f"I5 table_step at {workers[1].table}/0 offset -1: Not the fold."]
    assert (result.repaired, [worker.ends for worker in workers]) == ([], [0, 0])
