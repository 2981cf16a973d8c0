"""`taskflow outbox` as a process: relay and database killed at any moment while rows come."""

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from processor.adapters.kafka.reader.topic_reader import read
from processor.embedded.broker import EmbeddedBroker
from processor.outbox.database import statements
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.postgres import PostgresServer, needs_postgres, running_server
from tests.support.processes import ForkedWorker
from tests.support.worker import running_worker

pytestmark = needs_postgres

ROWS_OF_A_FLOW: Final = 10
KILL_WITHIN_S: Final = 0.3
"""After rows have got outcomes again, so that kills meet relay and database anywhere."""
LOST: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
CREATE: Final = {
    "kind": "create_managed",
    "issued_by": "shop",
    "controller_id": "orders",
    "goal": "Endure",
    "requester_origin": "tests",
}


class OutboxProcess(ForkedWorker):
    """The relay of one schema."""

    def _arguments(self) -> tuple[str, ...]:
        return ("outbox",)


@asynccontextmanager
async def outbox_process(
    home: Path, bootstrap: str, prefix: str, dsn: str
) -> AsyncIterator[OutboxProcess]:
    """Not started yet; it lives no longer than the block."""
    relay = OutboxProcess("outbox", home, bootstrap, prefix, OUTBOX_DSN=dsn, OUTBOX_HTTP="off")
    try:
        yield relay
    finally:
        if relay.running:
            await relay.kill()


class Producer:
    """A service with rows of its own: it connects again where the database was killed, and repeats
    a transaction unless it was committed."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._db: Any = None

    async def ask(self, statement: str, *values: Any) -> Any:
        """The value of a query, from whatever database there is."""
        while True:
            try:
                if self._db is None:
                    self._db = await asyncpg.connect(self._dsn)
                return await self._db.fetchval(statement, *values)
            except LOST:
                await self._forget()

    async def commit(self, flow_id: UUID, commands: list[dict[str, Any]]) -> None:
        """Insert the commands in one transaction, once."""
        ids = [uuid4() for _ in commands]
        texts = [json.dumps(command) for command in commands]
        insert = (
            "WITH new AS (INSERT INTO taskflow_outbox (flow_id, command_id, command) "
            "SELECT $1, id, command::jsonb FROM unnest($2::uuid[], $3::text[]) "
            "WITH ORDINALITY AS given(id, command, nth) "
            "WHERE NOT EXISTS (SELECT FROM taskflow_outbox WHERE command_id = $2[1]) "
            "ORDER BY nth RETURNING 1) SELECT count(*) FROM new"
        )
        await self.ask(insert, flow_id, ids, texts)

    async def until_outcomes(self, rows: int, relay: OutboxProcess) -> None:
        async with asyncio.timeout(patience(120)):
            while True:
                count = "SELECT count(*) FROM taskflow_outbox WHERE outcome_at IS NOT NULL"
                if await self.ask(count) >= rows:
                    return
                assert relay.running, relay.output()[-4000:]
                await asyncio.sleep(0.05)

    async def rows(self) -> list[dict[str, Any]]:
        rows = await self.ask("SELECT json_agg(o ORDER BY id)::text FROM taskflow_outbox AS o")
        return list(json.loads(rows))

    async def close(self) -> None:
        await self._forget()

    async def _forget(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.terminate()
        await asyncio.sleep(0.05)


async def insert_all(producer: Producer, flows: int) -> None:
    """A flow that is created, then changed, in a transaction for each; flows are mixed."""
    ids = [uuid4() for _ in range(flows)]
    for flow_id in ids:
        await producer.commit(flow_id, [CREATE])
    for nth in range(1, ROWS_OF_A_FLOW, 3):
        for flow_id in ids:
            patches = [{"n": n} for n in range(nth, nth + 3)]
            await producer.commit(
                flow_id,
                [{"kind": "update_state", "issued_by": "shop", "patch": p} for p in patches],
            )


async def killed_while_rows_come(
    kills: int,
    flows: int,
    broker: EmbeddedBroker,
    server: PostgresServer,
    prefix: str,
    home: Path,
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, state_dir=home / "w", http=None
    )
    rows, rng = flows * ROWS_OF_A_FLOW, random.Random(kills)
    producer, watcher = Producer(server.dsn), Producer(server.dsn)
    await producer.ask("SELECT 1")
    await producer._db.execute(statements())
    async with (
        running_worker(settings),
        outbox_process(home, broker.bootstrap, prefix, server.dsn) as relay,
    ):
        await relay.start()
        coming = asyncio.create_task(insert_all(producer, flows))
        for nth in range(kills):
            await watcher.until_outcomes(nth * rows // (kills + 1) + 1, relay)
            await asyncio.sleep(rng.uniform(0, KILL_WITHIN_S))
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            await asyncio.sleep(rng.uniform(0, KILL_WITHIN_S))
            await relay.kill()
            await relay.start()
        await coming
        await watcher.until_outcomes(rows, relay)
        assert await relay.end() == 0, relay.output()[-4000:]
        written = await watcher.rows()
        await producer.close()
        await watcher.close()

    # Each row has its outcome: its own event, in the order of its flow.
    assert len(written) == rows
    assert Counter(row["verdict"] for row in written) == {"accepted": rows}
    revisions: dict[str, list[int]] = {}
    for row in written:
        revisions.setdefault(row["flow_id"], []).append(row["revision"])
    assert all(found == list(range(ROWS_OF_A_FLOW)) for found in revisions.values())
    # Each command was applied once.
    events = [json.loads(r.value or b"") async for r in read(settings, f"{prefix}.audit")]
    assert Counter(event["command_id"] for event in events) == dict.fromkeys(
        (row["command_id"] for row in written), 1
    )
    assert {event["command_id"]: [event["id"]] for event in events} == {
        row["command_id"]: row["event_ids"] for row in written
    }


async def test_kills_while_rows_come_apply_each_command_once(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """Its own PostgreSQL: it is killed, too."""
    with running_server() as server:
        await killed_while_rows_come(2, 30, broker, server, prefix, tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_twenty_kills_while_20_000_rows_come(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    with running_server() as server:
        await killed_while_rows_come(20, 2_000, broker, server, prefix, tmp_path)
