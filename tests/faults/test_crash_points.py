"""A real worker that breaks at each named point, one after the other, under load."""

import asyncio
import json
import signal
from pathlib import Path

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.load import under_load
from tests.support.log_files import foreign_writers
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import WorkerProcess, workers

PARTITIONS = 2
AT_A_POINT = '"a crash point is reached"'
# K10 comes behind K7, whose table is behind the topics. Before K11 the tables are taken away.
KILLED_AT = (
    *("K0:kill@3", "K1:kill@3", "K2:kill@3", "K3:kill@3", "K4:kill@3", "K5:kill", "K6:kill@3"),
    *("K7:kill@3", "K10:kill", "K8:kill@3", "K9:kill@3", "K11:kill", "K10:kill@2"),
)
RAISED_AT = "K0:raise@9,K1:raise@12,K2:raise@15,K3:raise@18,K4:raise@21,K6:raise@24,K7:raise@27"
RAISED_AT += ",K8:raise@30,K9:raise@33,K10:raise@2,K8:full@40,K4:delay=3s@45,K6:delay=50ms@50"
PATIENCE_S = patience(30.0)


async def topics(bootstrap: str, prefix: str) -> None:
    await create_topics(
        Settings(bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )


def reached(worker: WorkerProcess) -> list[str]:
    """The points that it came to and broke at, in order."""
    output = (json.loads(line) for line in worker.output().splitlines() if AT_A_POINT in line)
    return [f"{line['point']}:{line['does']}" for line in output]


def lose_tables(state_dir: Path) -> None:
    for path in state_dir.glob("*.db*"):
        path.unlink()


async def test_a_worker_killed_at_each_point_loses_nothing(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await topics(broker.bootstrap, prefix)
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        # Its place in the group is kept, so that each is the first one's next life.
        worker.choose(INSTANCE_ID="one")
        async with under_load(broker.bootstrap, prefix, seed=11, per_s=100) as load:
            for faults in KILLED_AT:
                if faults.startswith("K11"):
                    lose_tables(worker.state_dir)
                worker.choose(FAULTS=faults)
                await worker.start()
                code = await asyncio.wait_for(worker.process.wait(), PATIENCE_S)
                assert code == -signal.SIGKILL, f"{faults}: {worker.output()[-3000:]}"
            worker.choose(FAULTS="")
            await worker.start()
            await worker.until_ready()
        world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        assert await worker.end() == 0

    assert reached(worker) == [faults.partition("@")[0] for faults in KILLED_AT]
    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []


async def test_errors_and_delays_at_each_point_are_outlived(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    await topics(broker.bootstrap, prefix)
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=f"{PARTITIONS}") as (worker,),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        worker.choose(FAULTS=RAISED_AT, COMMIT_TIMEOUT="1s")
        await worker.start()
        async with under_load(broker.bootstrap, prefix, seed=12, per_s=300) as load:
            await worker.until_printed(AT_A_POINT, times=len(RAISED_AT.split(",")))
        world = await observer.settled([worker.state_dir], timeout_s=PATIENCE_S)
        assert await worker.end() == 0

    asked = [fault.partition("@")[0].partition("=")[0] for fault in RAISED_AT.split(",")]
    assert sorted(reached(worker)) == sorted(asked)
    assert worker.output().count("Injected: K") >= RAISED_AT.count("raise")
    assert "CommitUncertain" in worker.output()  # the delay was longer than a commit may take
    assert "TASKFLOW_FAULTS is set" in worker.output()
    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(broker.data_dir, prefix, PARTITIONS) == []
