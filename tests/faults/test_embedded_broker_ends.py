"""The embedded broker's process dies under the commands that run it."""

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from processor.embedded.broker import free_port
from processor.embedded.keeper import SOUND_AFTER_S
from tests.support.load import under_load
from tests.support.log_files import foreign_writers
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import WorkerProcess

PARTITIONS = 2
ENDED = "was killed by SIGKILL"
AGAIN = "Apache Kafka answers again at"
NOTICED_WITHIN_S = patience(15)
"""A tenth of a second on a quiet machine. A client's request that times out would take 40 s."""


class Command(WorkerProcess):
    """A command of the program that runs an embedded broker."""

    def __init__(self, command: str, home: Any, prefix: str) -> None:
        self.bootstrap = f"127.0.0.1:{free_port()}"
        self.views_http = f"127.0.0.1:{free_port()}"
        super().__init__(
            command,
            home,
            self.bootstrap,
            prefix,
            PARTITIONS=str(PARTITIONS),
            VIEWS_HTTP=self.views_http,
        )

    def _arguments(self) -> tuple[str, ...]:
        return tuple(self.name.split())

    async def kill_kafka(self) -> float:
        """SIGKILL the JVM as soon as there is one; when that was, by `time.monotonic`."""
        deadline = time.monotonic() + patience(60)
        while self.running and time.monotonic() < deadline:
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if child.name() == "java" and "kafka.Kafka" in child.cmdline():
                        child.kill()
                        return time.monotonic()
            await asyncio.sleep(0.01)
        raise AssertionError(f"there is no JVM to kill:\n{self.output()[-4000:]}")

    def views(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "views" in child.cmdline()]

    async def kill_views(self) -> None:
        (views,) = self.views()
        views.kill()

    async def until_views_respond(self) -> None:
        async with asyncio.timeout(patience(60)), aiohttp.ClientSession() as session:
            while True:
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://{self.views_http}/ready"):
                        return
                await asyncio.sleep(0.05)


@pytest.fixture
def broker_kills(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--broker-kills"))


async def test_up_outlives_its_views_and_its_broker_and_answers_every_command_once(
    prefix: str, tmp_path: Path, broker_kills: int
) -> None:
    up = Command("up", tmp_path, prefix)
    await up.start()
    try:
        await up.until_printed("taskflow is up", timeout_s=patience(90))
        async with observing(up.bootstrap, prefix, PARTITIONS) as observer:
            async with under_load(up.bootstrap, prefix, seed=14, per_s=50) as load:
                await up.kill_views()
                await up.until_printed("The view worker was killed by SIGKILL; it is started again")
                await up.until_views_respond()
                for kill in range(1, broker_kills + 1):
                    acknowledged = len(load.acknowledged)
                    await up.kill_kafka()
                    await up.until_printed(ENDED, times=kill, timeout_s=NOTICED_WITHIN_S)
                    await up.until_printed(AGAIN, times=kill, timeout_s=patience(60))
                    # The third end within a minute, none of them after a sound run, is the last.
                    sound_at = time.monotonic() + 1.5 * SOUND_AFTER_S
                    await load.until_acknowledged(acknowledged + 30)
                    await asyncio.sleep(max(0.0, sound_at - time.monotonic()))
            world = await observer.settled([up.state_dir], timeout_s=patience(60))
        assert await up.end(timeout_s=patience(30)) == 0
    finally:
        if up.running:
            await up.kill()

    assert observer.decided >= load.acknowledged
    world.assert_clean()
    assert foreign_writers(up.state_dir / "broker", prefix, PARTITIONS) == []
    output = up.output()
    for word in ("Traceback", "CancelledError", "never retrieved"):
        assert word not in output, output[output.index(word) - 300 : output.index(word) + 2000]
    assert len(output.splitlines()) < 60 + 40 * broker_kills, output


async def test_a_broker_that_keeps_ending_ends_the_command(prefix: str, tmp_path: Path) -> None:
    command = Command("broker", tmp_path, prefix)
    await command.start()
    try:
        await command.until_printed("its data is in", timeout_s=patience(60))
        for kill in (1, 2):
            killed_at = await command.kill_kafka()
            await command.until_printed(ENDED, times=kill, timeout_s=NOTICED_WITHIN_S)
            assert time.monotonic() - killed_at < NOTICED_WITHIN_S
        await command.kill_kafka()
        async with asyncio.timeout(patience(60)):
            code = await command.process.wait()
    finally:
        if command.running:
            await command.kill()

    assert code == 3
    last = command.output()
    assert "and is not started again. It ended 3 times within 60 s." in last
    assert "Traceback" not in last


@pytest.mark.soak
async def test_a_demo_whose_broker_dies_says_so_and_ends(prefix: str, tmp_path: Path) -> None:
    demo = Command("demo --verbose", tmp_path, prefix)
    await demo.start()
    try:
        await demo.until_printed("created", times=3, timeout_s=patience(60))
        await demo.kill_kafka()
        async with asyncio.timeout(patience(60)):
            code = await demo.process.wait()
    finally:
        if demo.running:
            await demo.kill()

    output = demo.output()
    assert f"{ENDED} and is not started again." in output
    assert "Traceback" not in output
    assert code == 3


async def test_a_broker_that_is_told_to_end_while_it_starts_ends(
    prefix: str, tmp_path: Path
) -> None:
    command = Command("broker", tmp_path, prefix)
    await command.start()
    await command.until_printed("starting Apache Kafka", timeout_s=patience(30))
    command.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(patience(30)):
        assert await command.process.wait() == 0
    assert "Traceback" not in command.output()
