"""A follower: the table of a partition that another worker owns."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from processor.adapters.sqlite import FlowTable, ledger, open_table, table_path
from processor.adapters.sqlite.dump import dump
from processor.cli.rebuild.tables import all_rows
from processor.engine.batch import Outgoing
from processor.partition import standby
from processor.partition.standby import StandbyPhase, StandbyReplica
from processor.recovery.ledger_window import LATE_MAX_MS
from processor.recovery.rebuild import first_difference
from processor.telemetry.metrics import Metrics
from processor.testing.memory.kafka import PATIENCE_S
from tests.support.scripted_ports import Point, Script, ScriptedHistory, Stage
from tests.unit.commands import create, finish, life, prune, start
from tests.unit.recovery.test_restore import traffic, worked

MINUTE_S = 60.0


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(standby, "BACKOFF_MIN_S", 0.0)


class Beside:
    """A follower on a disk of its own, beside the owner of `stage`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.script = Script()
        self.metrics = Metrics()
        self.state_dir = stage.state_dir.with_name("standby")
        self.turn = asyncio.Lock()
        self.history = ScriptedHistory(stage.kafka, self.script, stage.place.partition)
        self.open = 0
        self.opened = 0
        self.follower = StandbyReplica(
            stage.place,
            open_table=self._open,
            history=self.history,
            turn=self.turn,
            metrics=self.metrics,
            monotonic=lambda: stage.monotonic_s,
        )

    @property
    def path(self) -> Path:
        place = self.stage.place
        return table_path(self.state_dir, place.topics.prefix, place.partition)

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[FlowTable]:
        place = self.stage.place
        async with open_table(
            self.path,
            partition=place.partition,
            prefix=place.topics.prefix,
            partitions=place.partitions,
        ) as table:
            self.open += 1
            self.opened += 1
            try:
                yield table
            finally:
                self.open -= 1

    @asynccontextmanager
    async def following(self) -> AsyncIterator[StandbyReplica]:
        task = asyncio.create_task(self.follower.run())
        try:
            yield self.follower
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():  # noqa: ASYNC110 (what a follower does is no event of ours)
                await asyncio.sleep(0.001)

    async def looked(self) -> None:
        """Wait until it has seen all that is there now."""
        # A look that began before what we wait for was there is not enough.
        for _ in range(2):
            async with self.turn:
                self.follower.lag = None
            await self.until(lambda: self.follower.lag == 0)

    async def looks(self) -> None:
        async with self.following():
            await self.looked()

    def difference(self) -> str | None:
        """From the owner's table."""
        with dump(self.stage.path) as owner, dump(self.path) as ours:
            found = first_difference(all_rows(owner, 0), all_rows(ours, 0))
        return None if found is None else str(found)

    async def checkpoint(self) -> Any:
        async with self._open() as table:
            return await table.checkpoint()

    def metric(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, {"partition": "0"})


@pytest.fixture
def beside(stage: Stage) -> Beside:
    return Beside(stage)


@pytest.mark.parametrize("seed", range(4))
async def test_its_table_is_the_owners_however_the_looks_fall(stage: Stage, seed: int) -> None:
    beside = Beside(stage)
    async with stage.running():
        for n, (topic, command) in enumerate(traffic(seed)):
            stage.kafka.send(command, topic=topic)
            if n % 30 == seed:
                await stage.quiet()
                await beside.looks()
        await stage.quiet()
    await beside.looks()

    assert beside.difference() is None
    assert beside.open == 0


async def test_it_keeps_up_with_an_owner_that_goes_on(stage: Stage, beside: Beside) -> None:
    async with stage.running(), beside.following() as follower:
        for number in range(30):
            stage.kafka.send(*life(number))
            await asyncio.sleep(0)
        await stage.quiet()
        await beside.looked()
        assert follower.phase is StandbyPhase.FOLLOWING
        assert beside.metric("taskflow_standby_lag_records") == 0
    assert beside.difference() is None
    assert beside.opened == 1
    assert beside.metric("taskflow_standby_lag_records") is None, "nobody looks any more"


async def test_a_takeover_on_its_table_restores_nothing(stage: Stage, beside: Beside) -> None:
    await worked(stage)
    await beside.looks()
    stage.kafka.send(create(70), start(70))
    await stage.works()
    stage.state_dir = beside.state_dir
    reads = stage.script.passed[Point.READ]

    with structlog.testing.capture_logs() as logs:
        stage.kafka.send(finish(70))
        await stage.works()

    (taken,) = [line for line in logs if line["event"] == "the partition is taken over"]
    assert taken["table"] == "rolled forward"
    assert taken["records"] == 4, "two events and two outcomes came after the last look"
    assert not [line for line in logs if "filled" in line["event"]]
    assert stage.kafka.outcomes[-1]["verdict"] == "accepted"
    assert stage.script.passed[Point.READ] > reads
    stage.assert_clean()


async def test_what_is_not_committed_is_not_followed(stage: Stage, beside: Beside) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    await beside.looks()
    before = await beside.checkpoint()
    stage.kafka.send(create(2))
    stage.script.at(Point.COMMIT, stage.script.crash)
    await stage.crashes()

    await beside.looks()

    assert stage.kafka.log(stage.place.topics.audit).end > before.audit
    assert await beside.checkpoint() == before


async def test_it_writes_nothing_to_kafka_and_fences_nobody(stage: Stage, beside: Beside) -> None:
    await worked(stage)
    journal = list(stage.kafka.journal)
    ends = {name: stage.kafka.log(name).end for name, _ in stage.place.topics}
    offsets = dict(stage.kafka.group_offsets)

    await beside.looks()

    assert stage.kafka.journal == journal
    assert {name: stage.kafka.log(name).end for name, _ in stage.place.topics} == ends
    assert stage.kafka.group_offsets == offsets


async def test_pruned_flows_go_with_their_tombstones(stage: Stage, beside: Beside) -> None:
    stage.kafka.send(*life(1), *life(2))
    await stage.works()
    await beside.looks()
    stage.kafka.send(prune(1), topic="control")
    await stage.works()
    stage.kafka.compact(stage.place.topics.state)

    await beside.looks()

    assert beside.difference() is None


async def test_an_error_is_told_and_what_follows_begins_again(stage: Stage, beside: Beside) -> None:
    await worked(stage)
    beside.script.at(Point.READ, OSError("the broker went away"))
    async with beside.following() as follower:
        await beside.until(lambda: follower.error is not None)
        assert follower.error == "OSError: the broker went away"
        await beside.looked()
        assert follower.error is None
    assert beside.difference() is None


async def test_a_filling_that_was_cut_short_is_begun_anew(stage: Stage, beside: Beside) -> None:
    await worked(stage)
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    beside.script.at(Point.READ, hang, nth=9)
    async with beside.following():
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
    assert beside.open == 0

    await beside.looks()

    assert beside.difference() is None


async def test_a_table_of_other_topics_is_filled_anew(stage: Stage, beside: Beside) -> None:
    other = Stage(stage.state_dir.with_name("elsewhere"), stage.place)
    await worked(other, seed=5)
    beside.state_dir = other.state_dir
    await worked(stage, seed=2)

    await beside.looks()

    assert beside.difference() is None


async def test_topics_that_are_made_anew_while_it_follows_are_noticed(
    stage: Stage, beside: Beside
) -> None:
    async with beside.following() as follower:
        stage.kafka.send(*life(1), *life(2))
        await stage.works()
        await beside.looked()
        for name, _ in stage.place.topics:
            stage.kafka.log(name).entries.clear()
            stage.kafka.log(name)._stable_end = 0
        await beside.looked()
        stage.lose_disk()
        stage.kafka.send(create(9))
        await stage.works()
        await beside.looked()
        assert follower.phase is StandbyPhase.FOLLOWING
    assert beside.difference() is None


async def test_answers_that_nobody_can_ask_for_go(
    stage: Stage, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "GENERATION_MIN_ROWS", 4)
    window_ms = stage.place.dedupe_window_ms + LATE_MAX_MS
    stage.kafka.send(*life(1))
    await stage.works()
    await beside.looks()
    for number in (2, 3):
        stage.later(window_ms + 1)
        stage.kafka.send(*life(number))
        await stage.works()
        await beside.looks()

    with dump(beside.path) as rows:
        # Each look asks from where it begins: those of the flow before are still there.
        assert rows.counts()[2] == 2 * len(life(1))


async def test_a_foreign_transaction_keeps_the_others_waiting_for_a_while_only(
    stage: Stage, beside: Beside, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "SETTLE_TIMEOUT_S", 0.01)
    stage.kafka.send(*life(1))
    await stage.works()
    foreign = stage.kafka.begin()
    stage.kafka.put([Outgoing(b"x", b"{}", ())], stage.place.topics.state, 0, foreign)

    async with beside.following() as follower:
        await beside.until(lambda: follower.error is not None)
        async with asyncio.timeout(PATIENCE_S), beside.turn:
            assert follower.phase is StandbyPhase.FAILED


async def test_a_table_that_another_hand_wrote_to_is_filled_anew(
    stage: Stage, beside: Beside
) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    async with beside.following():
        await beside.looked()
        async with beside._open() as meddling:
            await meddling._connection.execute("DELETE FROM flow")
            await meddling._connection.commit()
        stage.kafka.send(*life(2))
        await stage.works()
        await beside.until(lambda: beside.opened >= 3)
        await beside.looked()
    assert beside.difference() is None
