"""The embedded broker is a real Kafka, keeps what it should, and leaves nothing running."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from processor.embedded import directory, environment
from processor.embedded.broker import EmbeddedBroker, broker_responds, embedded_broker
from processor.embedded.errors import BadOption, BrokerDidNotStart, DataDirInUse, PortTaken
from processor.embedded.jars import ensure_jars
from processor.embedded.progress import to_stderr
from tests.support.machine import patience

# What somebody's program does: start a broker, say which, and live until told otherwise.
PARENT = """
import asyncio, sys
from pathlib import Path
from processor.embedded.broker import embedded_broker

async def main():
    data_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    async with embedded_broker(data_dir=data_dir) as broker:
        print(broker.pid, broker.data_dir, flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


async def create_topic(bootstrap: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def send(bootstrap: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        await producer.send_and_wait(topic, value, partition=0)


async def first_value(bootstrap: str, topic: str) -> bytes | None:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap) as consumer:
        consumer.assign([TopicPartition(topic, 0)])
        await consumer.seek_to_beginning()
        record = await asyncio.wait_for(consumer.getone(), patience(20))
        value: bytes | None = record.value
        return value


@contextlib.contextmanager
def somebody_with_a_broker(
    *arguments: str,
) -> Iterator[tuple[subprocess.Popen[str], psutil.Process, Path]]:
    """A process that runs an embedded broker, its JVM, and the data directory."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        # Neither a Java nor anything else of this machine is found by name.
        env={**os.environ, "PATH": "/nonexistent"},
        # Started in the background of a shell, we would hand on that SIGINT is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert parent.stdout is not None
        pid, data_dir = parent.stdout.readline().split(maxsplit=1)
        yield parent, psutil.Process(int(pid)), Path(data_dir.strip())
    finally:
        parent.kill()
        parent.communicate()


async def test_it_answers_on_the_loopback_interface_only(broker: EmbeddedBroker) -> None:
    assert await broker_responds(broker.bootstrap)

    listening = {
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.Process(broker.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


async def test_a_named_directory_outlives_a_killed_parent_and_a_kill(
    tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker of its own: that of the session would recover the logs of all its topics.

    An end is outlived in tests/e2e/test_program.py.
    """
    monkeypatch.setattr(directory, "LOCK_PATIENCE_S", patience(directory.LOCK_PATIENCE_S))
    with somebody_with_a_broker(str(tmp_path)) as (parent, jvm, _):
        parent.kill()
        async with embedded_broker(data_dir=tmp_path) as broker:
            bootstrap, first_pid = broker.bootstrap, broker.pid
            assert first_pid != jvm.pid
            await create_topic(bootstrap, prefix)
            await send(bootstrap, prefix, b"here to stay")

            await broker.kill()
            assert not broker.running
            assert not await broker_responds(bootstrap)
            await broker.restart()

            assert await first_value(bootstrap, prefix) == b"here to stay"
            assert broker.bootstrap == bootstrap
            assert broker.pid != first_pid


async def test_a_directory_in_use_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "LOCK_PATIENCE_S", 0.2)
    async with directory.open_directory(tmp_path):
        with pytest.raises(DataDirInUse, match=f"embedded broker of process {os.getpid()}") as no:
            async with embedded_broker(data_dir=tmp_path):
                pytest.fail("two brokers in one directory")
    assert "\n" not in str(no.value)


async def test_a_taken_port_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as somebody_else:
        port = somebody_else.getsockname()[1]
        with pytest.raises(PortTaken, match=f"Port {port} of 127.0.0.1 is taken"):
            async with embedded_broker(data_dir=tmp_path, port=port):
                pytest.fail("a port for two")


def test_a_directory_is_formatted_as_kafkas_own_tool_does_it(tmp_path: Path) -> None:
    """The tool takes a JVM; a Kafka of another version wants other features."""
    jars = ensure_jars(environment.cache_dir(), to_stderr)
    java = [str(environment.java()), *environment.aot_options(), "-cp", ":".join(map(str, jars))]
    expected = directory.features_checkpoint(java, tmp_path)

    assert without_time(directory.FEATURES.read_bytes()) == without_time(expected)

    by_tool = (tmp_path / "logs" / "meta.properties").read_text().splitlines()
    ours = directory.META_PROPERTIES.format(cluster_id="", node_id=1, directory_id="").splitlines()
    assert {line.split("=")[0] for line in by_tool if line[0] != "#"} == {
        line.split("=")[0] for line in ours
    }


def without_time(checkpoint: bytes) -> list[bytes]:
    """A snapshot's batches without when they were written, and the checksums of that."""
    batches, at = [], 0
    while at < len(checkpoint):
        end = at + 12 + int.from_bytes(checkpoint[at + 8 : at + 12])
        one = checkpoint[at:end]
        batches.append(one[:17] + one[21:27] + one[43:])
        at = end
    return batches


async def test_a_broker_that_cannot_start_says_the_last_lines_of_its_log(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "meta.properties").write_text("version=1\nnode.id=7\ncluster.id=x\n")

    with pytest.raises(
        BrokerDidNotStart,
        match=r"(?s)ended with exit code 1 before it answered; the last lines of .*broker\.log.*7",
    ):
        async with embedded_broker(data_dir=tmp_path):
            pytest.fail("it runs on a foreign directory")


async def test_a_heap_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLOW_BROKER_HEAP", "plenty")
    with pytest.raises(BadOption, match="TASKFLOW_BROKER_HEAP is 'plenty'"):
        async with embedded_broker():
            pytest.fail("it runs on words")


async def test_a_compiler_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLOW_BROKER_JIT", "warp")
    with pytest.raises(BadOption, match="TASKFLOW_BROKER_JIT is 'warp'"):
        async with embedded_broker():
            pytest.fail("it runs on words")


def test_a_parent_killed_at_once_takes_the_jvm_and_the_temporary_directory_along() -> None:
    with somebody_with_a_broker() as (parent, jvm, data_dir):
        supervisor = jvm.parent()
        assert supervisor is not None

        parent.kill()

        psutil.wait_procs([jvm, supervisor], timeout=patience(10))
        assert not jvm.is_running()
        assert not supervisor.is_running()
        assert not data_dir.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that way")
def test_a_supervisor_killed_at_once_takes_the_jvm_along(tmp_path: Path) -> None:
    with somebody_with_a_broker(str(tmp_path)) as (_, jvm, _data_dir):
        supervisor = jvm.parent()
        assert supervisor is not None

        supervisor.kill()

        jvm.wait(timeout=patience(10))


async def test_ctrl_c_in_the_terminal_does_not_reach_the_jvm(broker: EmbeddedBroker) -> None:
    # The terminal signals the foreground process group; the JVM is not even in the session.
    assert os.getsid(broker.pid) != os.getsid(0)
    assert os.getpgid(broker.pid) != os.getpgid(0)


def test_ctrl_c_ends_the_parent_and_the_parent_ends_the_jvm() -> None:
    with somebody_with_a_broker() as (parent, jvm, data_dir):
        parent.send_signal(signal.SIGINT)

        assert parent.wait(timeout=patience(30)) != 0
        assert not jvm.is_running()
        assert not data_dir.exists()


async def test_whoever_listens_but_is_no_kafka_does_not_answer() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert not await broker_responds(f"127.0.0.1:{port}", timeout_s=1)
