"""The version before and this one, side by side on one prefix: an upgrade, and the way back.

Workers are replaced one after the other while commands come, as processor/docs/upgrading.md says.
"""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.memory.deployment import Deployment
from tests.support.load import under_load
from tests.support.machine import patience, stretched
from tests.support.observed_deployment import observing
from tests.support.processes import WorkerProcess, until_assigned, workers

ROOT = Path(__file__).parents[2]
BEFORE = "c296f1c7f1090676070c3d664940ac5a3597263a"
"""The last commit before this test; releases are to stand here by their tags."""
PARTITIONS = 4
OUTCOME_MAX_S = 10.0
"""From the append of a command to that of its outcome."""


@pytest.fixture
def version_before(tmp_path: Path) -> Path:
    """What a wheel of that version holds, unpacked."""
    archived = subprocess.run(
        ["git", "archive", BEFORE, "processor"], cwd=ROOT, capture_output=True
    )
    if archived.returncode:
        pytest.skip(
            f"The version before, {BEFORE[:7]}, is not in the history of this folder; in a clone "
            "`git fetch --unshallow` brings it."
        )
    home = tmp_path / "before"
    with tarfile.open(fileobj=io.BytesIO(archived.stdout)) as archive:
        archive.extractall(home, filter="data")
    return home


class VersionedWorker(WorkerProcess):
    """A worker of the version that stands in a folder."""

    def choose_version(self, home: Path) -> None:
        """From its next start on."""
        self._environment["PYTHONPATH"] = str(home)

    def _program(self) -> tuple[str, ...]:
        return ("-P", *super()._program())  # nothing of the folder that we run in


async def replace(worker: WorkerProcess, home: Path, starts: int) -> None:
    """Stop it, and start the version in `home` in its place."""
    assert isinstance(worker, VersionedWorker)
    assert await worker.end() == 0
    worker.choose_version(home)
    await worker.start()
    await worker.until_ready(times=starts)


def slowest_outcome_s(world: Deployment) -> float:
    """From the append of a command to that of its outcome, by the broker's clock."""
    appended = {
        (record.topic, record.partition, record.offset): record.timestamp
        for name in ("commands", "control")
        for partition in range(PARTITIONS)
        for record in world.of(name, partition)
    }
    waited_ms = []
    for partition in range(PARTITIONS):
        for outcome in world.of("outcomes", partition):
            source = json.loads(outcome.value or b"")["source"]
            place = (source["topic"], source["partition"], source["offset"])
            waited_ms.append(outcome.timestamp - appended[place])
    return max(waited_ms) / 1000


@pytest.mark.soak
async def test_workers_are_upgraded_one_by_one_and_back_again_and_nothing_is_lost(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, version_before: Path
) -> None:
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(2, tmp_path, broker.bootstrap, prefix, VersionedWorker) as pair,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        for worker in pair:
            assert isinstance(worker, VersionedWorker)
            worker.choose(INSTANCE_ID=worker.name)
            worker.choose_version(version_before)
            await worker.start()
        await until_assigned(PARTITIONS, pair)
        async with under_load(broker.bootstrap, prefix, seed=19, per_s=100) as load:
            starts = 1
            for home in (ROOT, version_before):
                starts += 1
                for worker in pair:
                    await load.until_further(100)  # also while one is new and the other one is not
                    await replace(worker, home, starts)
                await until_assigned(PARTITIONS, pair)
            await load.until_further(100)
        world = await observer.settled([one.state_dir for one in pair], timeout_s=patience(30))
        codes = [await worker.end() for worker in pair]

    assert codes == [0, 0]
    assert observer.decided >= load.acknowledged
    assert len(load.acknowledged) > 500
    world.assert_clean()
    slowest_s = slowest_outcome_s(world)
    print(f"{len(load.acknowledged)} commands, the slowest outcome after {slowest_s:.2f} s")
    assert slowest_s < stretched(OUTCOME_MAX_S)
    for worker in pair:
        assert "Traceback" not in worker.output()


@pytest.mark.soak
def test_the_version_before_is_really_run(version_before: Path) -> None:
    program = "import processor.cli.main; print(processor.cli.main.__file__)"
    found = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=ROOT,
        env={"PYTHONPATH": str(version_before)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(found.stdout.strip()).is_relative_to(version_before)
