"""A follower: the table of a partition that another worker owns."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import structlog

from processor.adapters.sqlite import FlowTable, ledger, open_table, table_path
from processor.adapters.sqlite.readonly.dump import dump
from processor.cli.rebuild.tables import all_rows
from processor.engine.batch import Outgoing
from processor.partition import standby as standby_module
from processor.partition.standby import StandbyPhase, StandbyReplica
from processor.recovery.ledger_window import LATE_MAX_MS
from processor.recovery.rebuild import first_difference
from processor.telemetry.metrics import Metrics
from tests.support.moments import Op
from tests.support.scripted_kafka import PATIENCE_S
from tests.support.scripted_ports import Script, ScriptedHistory, Stage
from tests.unit.commands import create, finish, life, prune, start
from tests.unit.recovery.deployments import traffic, worked


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby_module, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(standby_module, "BACKOFF_MIN_S", 0.0)


class Standby:
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
        self.replica = StandbyReplica(
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
        task = asyncio.create_task(self.replica.run())
        try:
            yield self.replica
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
                self.replica.lag = None
            await self.until(lambda: self.replica.lag == 0)

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
def standby(stage: Stage) -> Standby:
    return Standby(stage)


@pytest.mark.parametrize("seed", range(4))
async def test_its_table_is_the_owners_however_the_looks_fall(stage: Stage, seed: int) -> None:
    standby = Standby(stage)
    async with stage.running():
        for n, (topic, command) in enumerate(traffic(seed)):
            stage.kafka.send(command, topic=topic)
            if n % 30 == seed:
                await stage.quiet()
                await standby.looks()
        await stage.quiet()
    await standby.looks()

    assert standby.difference() is None
    assert standby.open == 0


async def test_it_keeps_up_with_an_owner_that_goes_on(stage: Stage, standby: Standby) -> None:
    async with stage.running(), standby.following() as replica:
        for number in range(30):
            stage.kafka.send(*life(number))
            await asyncio.sleep(0)
        await stage.quiet()
        await standby.looked()
        assert replica.phase is StandbyPhase.FOLLOWING
        assert standby.metric("taskflow_standby_lag_records") == 0
    assert standby.difference() is None
    assert standby.opened == 1
    assert standby.metric("taskflow_standby_lag_records") is None, "nobody looks any more"


async def test_a_takeover_on_its_table_restores_nothing(stage: Stage, standby: Standby) -> None:
    await worked(stage)
    await standby.looks()
    stage.kafka.send(create(70), start(70))
    await stage.works()
    stage.state_dir = standby.state_dir
    reads = stage.script.passed[Op.READ]

    with structlog.testing.capture_logs() as logs:
        stage.kafka.send(finish(70))
        await stage.works()

    (taken,) = [line for line in logs if line["event"] == "the partition is taken over"]
    assert taken["table"] == "caught up"
    assert taken["records"] == 4, "two events and two outcomes came after the last look"
    assert not [line for line in logs if "restored" in line["event"]]
    assert stage.kafka.outcomes[-1]["verdict"] == "accepted"
    assert stage.script.passed[Op.READ] > reads
    stage.assert_clean()


async def test_what_is_not_committed_is_not_followed(stage: Stage, standby: Standby) -> None:
    stage.kafka.send(create(1))
    await stage.works()
    await standby.looks()
    before = await standby.checkpoint()
    stage.kafka.send(create(2))
    stage.script.at(Op.COMMIT, stage.script.crash)
    await stage.crashes()

    await standby.looks()

    assert stage.kafka.log(stage.place.topics.audit).end > before.audit
    assert await standby.checkpoint() == before


async def test_it_writes_nothing_to_kafka_and_fences_nobody(stage: Stage, standby: Standby) -> None:
    await worked(stage)
    journal = list(stage.kafka.journal)
    ends = {name: stage.kafka.log(name).end for name, _ in stage.place.topics}
    offsets = dict(stage.kafka.group_offsets)

    await standby.looks()

    assert stage.kafka.journal == journal
    assert {name: stage.kafka.log(name).end for name, _ in stage.place.topics} == ends
    assert stage.kafka.group_offsets == offsets


async def test_pruned_flows_go_with_their_tombstones(stage: Stage, standby: Standby) -> None:
    stage.kafka.send(*life(1), *life(2))
    await stage.works()
    await standby.looks()
    stage.kafka.send(prune(1), topic="control")
    await stage.works()
    stage.kafka.compact(stage.place.topics.state)

    await standby.looks()

    assert standby.difference() is None


async def test_an_error_is_told_and_what_follows_begins_again(
    stage: Stage, standby: Standby
) -> None:
    await worked(stage)
    standby.script.at(Op.READ, OSError("the broker went away"))
    async with standby.following() as replica:
        await standby.until(lambda: replica.error == "OSError: the broker went away")
        await standby.looked()
        assert replica.error is None
    assert standby.difference() is None


async def test_a_filling_that_was_cut_short_is_begun_anew(stage: Stage, standby: Standby) -> None:
    await worked(stage)
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    standby.script.at(Op.READ, hang, nth=9)
    async with standby.following():
        await asyncio.wait_for(reached.wait(), PATIENCE_S)
    assert standby.open == 0

    await standby.looks()

    assert standby.difference() is None


async def test_a_table_of_other_topics_is_filled_anew(stage: Stage, standby: Standby) -> None:
    other = Stage(stage.state_dir.with_name("elsewhere"), stage.place)
    await worked(other, seed=5)
    standby.state_dir = other.state_dir
    await worked(stage, seed=2)

    await standby.looks()

    assert standby.difference() is None


async def test_topics_that_are_made_anew_while_it_follows_are_noticed(
    stage: Stage, standby: Standby
) -> None:
    async with standby.following() as replica:
        stage.kafka.send(*life(1), *life(2))
        await stage.works()
        await standby.looked()
        for name, _ in stage.place.topics:
            stage.kafka.log(name).entries.clear()
            stage.kafka.log(name)._stable_end = 0
        await standby.looked()
        stage.lose_disk()
        stage.kafka.send(create(9))
        await stage.works()
        await standby.looked()
        assert replica.phase is StandbyPhase.FOLLOWING
    assert standby.difference() is None


async def test_answers_that_nobody_can_ask_for_go(
    stage: Stage, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger, "GENERATION_MIN_ROWS", 4)
    window_ms = stage.place.dedupe_window_ms + LATE_MAX_MS
    stage.kafka.send(*life(1))
    await stage.works()
    await standby.looks()
    for number in (2, 3):
        stage.later(window_ms + 1)
        stage.kafka.send(*life(number))
        await stage.works()
        await standby.looks()

    with dump(standby.path) as rows:
        # Each look asks from where it begins: those of the flow before are still there.
        assert rows.counts()[2] == 2 * len(life(1))


async def test_a_foreign_transaction_keeps_the_others_waiting_for_a_while_only(
    stage: Stage, standby: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby_module, "SETTLE_TIMEOUT_S", 0.01)
    # It does not begin again meanwhile, which it would with the turn in its hand.
    monkeypatch.setattr(standby_module, "BACKOFF_MIN_S", PATIENCE_S)
    stage.kafka.send(*life(1))
    await stage.works()
    foreign = stage.kafka.begin()
    stage.kafka.put([Outgoing(b"x", b"{}", ())], stage.place.topics.state, 0, foreign)

    async with standby.following() as replica:
        await standby.until(lambda: replica.error is not None)
        async with asyncio.timeout(PATIENCE_S), standby.turn:
            assert replica.phase is StandbyPhase.FAILED


async def test_a_table_that_another_hand_wrote_to_is_filled_anew(
    stage: Stage, standby: Standby
) -> None:
    stage.kafka.send(*life(1))
    await stage.works()
    async with standby.following():
        await standby.looked()
        async with standby._open() as meddling:
            await meddling._connection.execute("DELETE FROM flow")
            await meddling._connection.commit()
        stage.kafka.send(*life(2))
        await stage.works()
        await standby.until(lambda: standby.opened >= 3)
        await standby.looked()
    assert standby.difference() is None
