"""The consumers that schemas/README.md shows read a real audit: all of it, once, and nothing that
was aborted."""

import asyncio
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer

from processor.client import AuditStream, FlowClient
from processor.contract.topics import Topics
from processor.embedded import environment
from processor.embedded.broker import EmbeddedBroker
from processor.embedded.jars import ensure_jars
from processor.settings import Settings
from tests.support.examples import examples, go_program, shown, spoken
from tests.support.forked_program import inherited
from tests.support.worker import running_worker

FLOWS = [str(UUID(int=n)) for n in range(1, 6)]
"""They lie on both partitions, and the last where others do."""
ROOT = Path(__file__).parents[2]
KIT = (ROOT / "schemas" / "README.md").read_text("utf-8")


@dataclass(frozen=True)
class Audit:
    settings: Settings
    lines: list[str]
    """`at flow kind status` of each event, sorted."""
    home: Path

    @property
    def environ(self) -> dict[str, str]:
        return {
            **inherited(),
            "TASKFLOW_BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "TASKFLOW_TOPIC_PREFIX": self.settings.topic_prefix,
            "PYTHONPATH": str(ROOT),
        }

    @property
    def where(self) -> list[str]:
        return [self.settings.bootstrap_servers, Topics(self.settings.topic_prefix).audit]

    def complete(self, lines: list[str]) -> bool:
        output = [line for line in lines if line.startswith("20")]  # Faust greets first
        assert len(output) == len(set(output)), "an event came twice"
        return sorted(output) == self.lines


def created(flow_id: str) -> dict[str, Any]:
    return {
        "kind": "create_mirrored",
        "flow_id": flow_id,
        "issued_by": "kit",
        "controller_id": "kit",
        "goal": "be read",
        "requester_origin": "test",
    }


async def abort_something(settings: Settings) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers,
        transactional_id=f"{settings.topic_prefix}-a-stranger",
    )
    async with producer:
        await producer.begin_transaction()
        for partition in range(settings.partitions):
            topic = Topics(settings.topic_prefix).audit
            await producer.send_and_wait(topic, b"never committed", partition=partition)
        await producer.abort_transaction()


@pytest_asyncio.fixture
async def audit(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> AsyncIterator[Audit]:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=2,
        state_dir=tmp_path / "state",
        http=None,
    )
    async with running_worker(settings), FlowClient(settings) as client:
        first = FLOWS[:-1]
        await asyncio.gather(*(client.send(created(flow)) for flow in first))
        await abort_something(settings)
        end = {"kind": "finish", "issued_by": "kit"}
        await asyncio.gather(*(client.send({**end, "flow_id": flow}) for flow in first))
    async with AuditStream(settings, follow=False) as stream:
        events = [event async for event in stream]
    lines = [f"{e.at} {e.flow_id} {e.kind} {e.status}" for e in events]
    assert len(lines) == 12
    yield Audit(settings, sorted(lines), tmp_path)


async def test_audit_stream_with_a_stored_position(audit: Audit) -> None:
    (code,) = examples(KIT).values()
    command = (sys.executable, "-W", "error", "-c", code)

    assert "('finished', 4)" in await shown(command, cwd=audit.home, environ=audit.environ)
    # Again, from the position: nothing comes twice, and what is there stays.
    assert "('finished', 4)" in await shown(command, cwd=audit.home, environ=audit.environ)

    async with running_worker(audit.settings), FlowClient(audit.settings) as client:
        await client.send(created(FLOWS[-1]))
    with closing(sqlite3.connect(audit.home / "view.db")) as view, view:
        view.execute("UPDATE position SET last_id = last_id - 1")
    with pytest.raises(AssertionError, match="AuditGap"):
        await shown(command, cwd=audit.home, environ=audit.environ)


async def test_a_plain_faust_agent(audit: Audit) -> None:
    pytest.importorskip("faust", reason="Faust is not installed")
    (code,) = examples(KIT, mark="runs until it speaks").values()
    program = audit.home / "consumer.py"
    program.write_text(code)

    command = (sys.executable, str(program), "worker")
    await spoken(command, cwd=audit.home, environ=audit.environ, until=audit.complete)


@pytest.mark.skipif(shutil.which("javac") is None, reason="there is no JDK to compile it with")
async def test_java(audit: Audit) -> None:
    ((name, code),) = examples(KIT, mark="runs where javac is", language="java").items()
    (audit.home / name).write_text(code)
    jars = ensure_jars(environment.cache_dir(), lambda _: None)
    java = Path(str(shutil.which("javac"))).with_name("java")

    command = (str(java), "-cp", ":".join(map(str, jars)), name, *audit.where)
    await spoken(command, cwd=audit.home, environ=audit.environ, until=audit.complete)


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go to compile it with")
async def test_go(audit: Audit) -> None:
    ((name, code),) = examples(KIT, mark="compiles where go is", language="go").items()
    (audit.home / name).write_text(code)
    program = await go_program(audit.home, name, audit.environ)

    command = (str(program), *audit.where)
    await spoken(command, cwd=audit.home, environ=audit.environ, until=audit.complete)
