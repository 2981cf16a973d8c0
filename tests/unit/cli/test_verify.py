"""What `taskflow verify` makes of tables on disk, how it shows a report, and how far it is."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaTimeoutError

from processor.adapters.kafka.errors import (
    BrokerUnreachable,
    PositionLost,
    ReadFailed,
    TopicsWrong,
)
from processor.adapters.sqlite import table_path
from processor.cli.common import history as program
from processor.cli.common.history import reading_explained
from processor.cli.common.output import console
from processor.cli.common.runner import Refused
from processor.cli.main import WRONG_USE, main
from processor.cli.verify.execute import LocalTables, _show
from processor.contract.topics import Topics
from processor.engine.rows import Changes
from processor.ops.verify.ports import TableFlow, TablePosition, TableStep, Watcher
from processor.ops.verify.report import INVARIANTS
from processor.settings import Settings
from tests.support.recorded_deployment import edit
from tests.unit.adapters.sqlite.tables import at, flow_row, opened, step_row, uuid
from tests.unit.ops.verify.test_verify import CLEAN


class Taken:
    """What an image consists of."""

    def __call__(self, position: Any, flows: Any, steps: Any) -> None:
        self.position: TablePosition = position
        self.flows: list[TableFlow] = [*flows]
        self.steps: list[TableStep] = [*steps]


def read_table(state_dir: Path, partition: int = 0) -> Any:
    taken = Taken()
    return taken, LocalTables(Settings(state_dir=state_dir)).read_table(partition, taken)


async def written(state_dir: Path) -> Path:
    async with opened(state_dir) as table:
        changes = Changes(inserted=[flow_row(1), flow_row(2)], steps=[step_row(1, "r")])
        await table.write(changes, before=None, after=at(7))
    return table_path(state_dir, "taskflow", 0)


async def test_an_image_holds_all_of_a_table(tmp_path: Path) -> None:
    path = await written(tmp_path)

    taken, problem = read_table(tmp_path)

    assert problem is None
    assert (taken.position.path, taken.position.partitions) == (str(path), 4)
    assert taken.position.restored
    row = flow_row(1)
    assert taken.flows[0] == (
        *(uuid(1), row.doc.decode(), row.last_event_id, row.chain),
        *(0, "running", "owner", row.flow.updated_at),
    )
    assert [flow.flow_id for flow in taken.flows] == [uuid(1), uuid(2)]
    assert [(step.flow_id, step.run_id) for step in taken.steps] == [(uuid(1), "r")]


async def test_bytes_that_are_no_text_any_more_are_seen(tmp_path: Path) -> None:
    path = await written(tmp_path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE flow SET doc = CAST(X'FF' || doc AS TEXT) WHERE n = 1")

    taken, problem = read_table(tmp_path)

    assert problem is None
    assert taken.flows[0].doc.startswith("\N{REPLACEMENT CHARACTER}")


async def test_a_damaged_table_is_a_problem_and_a_missing_one_is_none(tmp_path: Path) -> None:
    path = await written(tmp_path)
    path.write_bytes(path.read_bytes()[:4096] + b"\xaa" * 4096 * 3)

    _, problem = read_table(tmp_path)
    _, missing = read_table(tmp_path, partition=3)

    assert problem is not None
    assert problem.damaged
    assert str(path) in problem.sentence
    assert missing is None


async def test_a_table_of_another_format_is_no_damage(tmp_path: Path) -> None:
    path = await written(tmp_path)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version = 99")

    _, problem = read_table(tmp_path)

    assert problem is not None
    assert not problem.damaged


async def test_a_person_sees_each_invariant_and_the_first_violation_of_each_kind(
    capsys: pytest.CaptureFixture[str],
) -> None:
    history = CLEAN.copy()
    _show(console(), await history.verify())
    clean = capsys.readouterr()
    history.of("audit")[-1] = edit(history.of("audit")[-1], actor="\x1b[2J")
    _show(console(), await history.verify())
    wrong = capsys.readouterr()

    for name, meaning in INVARIANTS.items():
        assert name in clean.out
        assert meaning in clean.out
    assert clean.err == "All that was looked at holds.\n"
    assert "I9 event_actor (1), first at taskflow.audit/0 offset" in wrong.out
    assert "\x1b[2J" not in wrong.out
    assert wrong.err.endswith("kinds.\n")


@pytest.mark.parametrize(
    ("steps", "audit", "counts"), [(2, 2, (2, 2)), (5, 2, (2, 5)), (1, 2, None), (2, 3, None)]
)
async def test_steps_alone_may_have_more_partitions(
    monkeypatch: pytest.MonkeyPatch, steps: int, audit: int, counts: tuple[int, int] | None
) -> None:
    topics = Topics()
    there = dict.fromkeys((name for name, _ in topics), 2)
    there |= {topics.steps: steps, topics.audit: audit}

    async def partition_counts(settings: Settings, names: Sequence[str]) -> dict[str, int]:
        return {name: there[name] for name in names}

    monkeypatch.setattr(program, "partition_counts", partition_counts)

    if counts is not None:
        assert await program.partitions_of(Settings(), topics) == counts
    else:
        with pytest.raises(TopicsWrong, match="differ in their partitions"):
            await program.partitions_of(Settings(), topics)


def test_retention_that_came_first_is_no_broker_that_is_away() -> None:
    with pytest.raises(Refused, match="Retention took"), reading_explained(Settings()):
        raise PositionLost("t.audit", {0: 7})
    with pytest.raises(BrokerUnreachable), reading_explained(Settings()):
        raise KafkaConnectionError
    with pytest.raises(BrokerUnreachable, match="no answer in time"), reading_explained(Settings()):
        raise ReadFailed("reading failed") from KafkaTimeoutError()


async def test_the_bar_comes_to_its_end() -> None:
    class Bar(Watcher):
        total = done = at_first = 0

        def expect(self, units: Any) -> None:
            self.total += units

        def advance(self, units: Any) -> None:
            self.at_first = self.at_first or self.total
            self.done += units

    bar, history = Bar(), CLEAN.copy()
    cut = len(history.of("state")) // 2
    history.ends["state", 0] = (history.of("state")[cut].offset,) * 2  # the rest is under way
    await history.verify(bar, at_rest=False)

    assert bar.done == bar.total > 100
    assert abs(bar.at_first - bar.total) < 20  # known before anything is read


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["--since", "yesterday"], "--since is 'yesterday'"),
        (["--flow", "me"], "'me' is no flow id"),
        (["--grace", "soon"], "--grace is 'soon'"),
    ],
)
def test_wrong_use_is_code_2(
    arguments: Any, about: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", *arguments]) == WRONG_USE
    assert about in capsys.readouterr().err
