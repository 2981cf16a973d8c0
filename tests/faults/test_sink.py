"""`taskflow sink postgres` as a process: killed at any moment while events come, stopped, asked."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from aiohttp import ClientConnectionError, ClientSession

from processor.adapters.kafka.reader.topic_reader import read
from processor.cli.main import REFUSED
from processor.contract.topics import Topics
from processor.contract.values import EVENTS_PER_PARTITION
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.sink.comparison import compare
from tests.support.audit import Audit, audit_of
from tests.support.forked_program import program
from tests.support.machine import patience
from tests.support.postgres import database, needs_postgres
from tests.support.processes import ForkedWorker, environment

pytestmark = needs_postgres

COMMANDS_AT_ONCE = 300
KILL_WITHIN_S = 0.3
"""After it has gone on, so that kills meet it anywhere in a batch."""


class SinkProcess(ForkedWorker):
    """The sink of one schema, which has the prefix as its name."""

    def _arguments(self) -> tuple[str, ...]:
        return ("sink", "postgres")


@asynccontextmanager
async def sink_process(
    home: Path, bootstrap: str, prefix: str, dsn: str, http: str = "off"
) -> AsyncIterator[SinkProcess]:
    """Not started yet; it lives no longer than the block."""
    sink = SinkProcess(
        *("sink", home, bootstrap, prefix), SINK_DSN=dsn, SINK_SCHEMA=prefix, SINK_HTTP=http
    )
    try:
        yield sink
    finally:
        if sink.running:
            await sink.kill()


async def count_events(dsn: str, schema: str) -> int:
    async with database(dsn, schema) as db:
        if not await db.fetchval("SELECT to_regclass('taskflow_events') IS NOT NULL"):
            return 0
        return int(await db.fetchval("SELECT count(*) FROM taskflow_events"))


async def until_written(sink: SinkProcess, dsn: str, schema: str, events: int) -> int:
    """How many are there, once they are at least so many."""
    async with asyncio.timeout(patience(120)):
        while True:
            if (there := await count_events(dsn, schema)) >= events:
                return there
            assert sink.running, sink.output()[-4000:]
            await asyncio.sleep(0.05)


async def until_ready_with(session: ClientSession, url: str, events: int) -> None:
    """Wait until the sink says that it is ready, and has written so many."""
    async with asyncio.timeout(patience(60)):
        while True:
            with suppress(ClientConnectionError):
                async with session.get(url) as response:
                    parts = (await response.json())["partitions"].values()
                    written = sum(part["event_id"] % EVENTS_PER_PARTITION for part in parts)
                    if response.status == 200 and written == events:
                        return
            await asyncio.sleep(0.05)


async def assert_written(audit: Audit, bootstrap: str, dsn: str, prefix: str) -> None:
    """Nothing is missing, nothing is there twice, and all of it is what the topics say."""
    await audit.write_state()
    settings = Settings(bootstrap_servers=bootstrap, topic_prefix=prefix)
    report = await compare(dsn, prefix, Topics(prefix), lambda topic: read(settings, topic))
    assert report.ok, report.shown
    assert report.compared["events"] == len(audit.events)
    assert report.compared["flows"] == audit.count_flows()
    assert (report.behind, report.changed_flows) == (0, 0)


async def killed_while_events_come(
    kills: int, events: int, broker: EmbeddedBroker, prefix: str, home: Path, dsn: str
) -> None:
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        sink_process(home, broker.bootstrap, prefix, dsn) as sink,
    ):
        rng, between = random.Random(kills), events // (kills + 1)

        async def go_on() -> None:
            while len(audit.events) < events:
                await audit.write(audit.decide(COMMANDS_AT_ONCE))

        await sink.start()
        coming = asyncio.create_task(go_on())
        for nth in range(kills):
            await until_written(sink, dsn, prefix, nth * between + 1)
            await asyncio.sleep(rng.uniform(0, KILL_WITHIN_S))
            await sink.kill()
            await sink.start()
        await coming
        await until_written(sink, dsn, prefix, len(audit.events))
        assert await sink.end() == 0, sink.output()[-4000:]
        await assert_written(audit, broker.bootstrap, dsn, prefix)


async def test_kills_while_events_come_lose_none_and_write_none_twice(
    broker: EmbeddedBroker, postgres: str, prefix: str, tmp_path: Path
) -> None:
    await killed_while_events_come(2, 3_000, broker, prefix, tmp_path, postgres)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_twenty_kills_while_100_000_events_come(
    broker: EmbeddedBroker, postgres: str, prefix: str, tmp_path: Path
) -> None:
    await killed_while_events_come(20, 100_000, broker, prefix, tmp_path, postgres)


async def test_it_answers_when_it_is_ready_and_verify_compares(
    broker: EmbeddedBroker,
    postgres: str,
    prefix: str,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> None:
    address = f"127.0.0.1:{unused_tcp_port_factory()}"
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        sink_process(tmp_path, broker.bootstrap, prefix, postgres, address) as sink,
        ClientSession() as session,
    ):
        await audit.write(audit.decide(50))
        await sink.start()
        await until_ready_with(session, f"http://{address}/ready", len(audit.events))
        async with session.get(f"http://{address}/metrics") as response:
            assert f"taskflow_sink_events_total {len(audit.events)}.0" in await response.text()
        assert await sink.end() == 0
        await audit.write_state()
        async with database(postgres, prefix) as db:
            await db.execute("UPDATE taskflow_flows SET revision = revision + 1")
        settings = {"SINK_DSN": postgres, "SINK_SCHEMA": prefix}
        env = environment(broker.bootstrap, prefix, tmp_path, **settings)
        done = await program(env, "verify", "--sink", "-")
        assert done.code == REFUSED, done.err
        differing = {"events": 0, "flows": audit.count_flows(), "steps": 0}
        assert json.loads(done.out)["differing"] == differing
