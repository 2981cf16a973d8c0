"""What a worker refuses to start on: one clear sentence, the right exit code, no traceback."""

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from processor.adapters.kafka.admin.topic_admin import create_topics, partition_counts
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.processes import ForkedWorker, WorkerProcess, workers

REFUSED, WRONG_USE, UNREACHABLE = 1, 2, 3


async def refused(worker: WorkerProcess) -> tuple[int, str]:
    """Exit code of a worker that does not start, and its one sentence."""
    await worker.start()
    code = await asyncio.wait_for(worker.process.wait(), patience(30))
    output = [line for line in worker.output().splitlines() if not line.startswith("{")]
    assert "Traceback" not in worker.output()
    assert len(output) == 1, output
    assert output[0].endswith(".")
    return code, output[0]


@pytest.fixture
def settings(broker: EmbeddedBroker, prefix: str) -> Any:
    return Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=2)


async def test_a_second_worker_on_one_state_directory(
    broker: EmbeddedBroker, settings: Any, prefix: str, tmp_path: Path
) -> None:
    await create_topics(settings)
    async with workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS="2") as (first,):
        await first.start()
        await first.until_ready()
        second = ForkedWorker("second", tmp_path, broker.bootstrap, prefix, PARTITIONS="2")
        second.choose(STATE_DIR=str(first.state_dir))

        code, sentence = await refused(second)

        assert code == REFUSED
        assert str(first.state_dir) in sentence
        assert first.running
        # Once the first is gone, however it went, the directory is free.
        await first.kill()
        await second.start()
        await second.until_ready()
        assert await second.end() == 0


async def test_no_broker_and_one_that_never_answers(prefix: str, tmp_path: Path) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as free,
        socket.create_server(("127.0.0.1", 0)) as silent,
    ):
        addresses = [f"127.0.0.1:{one.getsockname()[1]}" for one in (free, silent)]
        free.close()
        made = [ForkedWorker(f"w{n}", tmp_path, at, prefix) for n, at in enumerate(addresses)]
        for address, (code, sentence) in zip(
            addresses, await asyncio.gather(*map(refused, made)), strict=True
        ):
            assert code == UNREACHABLE
            assert address in sentence


async def test_no_topics(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> None:
    code, sentence = await refused(ForkedWorker("w", tmp_path, broker.bootstrap, prefix))
    assert code == REFUSED
    assert f"{prefix}.commands does not exist" in sentence


@pytest.mark.parametrize("layout", ["partitions of one topic", "partitions of all", "clock"])
async def test_another_layout(
    broker: EmbeddedBroker, settings: Any, prefix: str, tmp_path: Path, layout: str
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap)
    await admin.start()
    try:
        if layout == "clock":
            await admin.create_topics([NewTopic(f"{prefix}.control", 2, 1)])
            wrong, what = f"{prefix}.control", "message.timestamp.type"
        else:
            wrong, what = f"{prefix}.audit", "partitions is"
        await create_topics(settings)
        if layout == "partitions of one topic":
            await admin.create_partitions({wrong: NewPartitions(3)})
            while await partition_counts(settings, [wrong]) != {wrong: 3}:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await admin.close()
    partitions = "4" if layout == "partitions of all" else "2"
    worker = ForkedWorker("w", tmp_path, broker.bootstrap, prefix, PARTITIONS=partitions)

    code, sentence = await refused(worker)

    assert code == REFUSED
    assert f"{wrong}: {what}" in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PARTITIONS", "none"),
        ("SESSION_TIMEOUT", "2 seconds"),
        ("TOPIC_PREFIX", "a/b"),
        ("BOOTSTRAP_SERVERS", "nowhere"),
        ("HTTP", "8900"),
        ("SECURITY_PROTOCOL", "TLS"),
    ],
)
async def test_a_bad_setting(tmp_path: Path, name: str, value: str) -> None:
    worker = ForkedWorker("w", tmp_path, "127.0.0.1:1", "p")
    worker.choose(**{name: value})
    code, sentence = await refused(worker)
    assert code == WRONG_USE
    assert f"TASKFLOW_{name}" in sentence
    assert repr(value) in sentence


async def test_an_address_that_is_taken(
    broker: EmbeddedBroker, settings: Any, prefix: str, tmp_path: Path
) -> None:
    await create_topics(settings)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        worker = ForkedWorker("w", tmp_path, broker.bootstrap, prefix, PARTITIONS="2")
        worker.choose(HTTP=address)
        code, sentence = await refused(worker)
    assert code == REFUSED
    assert address in sentence


@pytest.mark.parametrize("below", ["", "and", "below/it"])
async def test_a_state_directory_that_cannot_be_made(
    prefix: str, tmp_path: Path, below: str
) -> None:
    tmp_path.joinpath("file").write_text("")
    worker = ForkedWorker("w", tmp_path, "127.0.0.1:1", prefix)
    worker.choose(STATE_DIR=str(tmp_path / "file" / below))
    code, sentence = await refused(worker)
    assert code == REFUSED
    assert str(tmp_path / "file" / below) in sentence


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_while_it_waits_for_a_broker_ends_it_at_once(
    prefix: str, tmp_path: Path, number: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        async with workers(1, tmp_path, address, prefix) as (worker,):
            await worker.start()
            knocking, _ = await asyncio.to_thread(silent.accept)
            with knocking:
                worker.process.send_signal(number)
                code = await asyncio.wait_for(worker.process.wait(), patience(30))
            assert code == 0
            assert "Traceback" not in worker.output()
