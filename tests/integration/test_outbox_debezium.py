"""Debezium itself, by the configuration on the page of the outbox, on a real PostgreSQL."""

import asyncio
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final
from uuid import UUID, uuid4

import asyncpg
import pytest

from processor.outbox.database import statements
from tests.support.machine import patience
from tests.support.postgres import needs_postgres, running_server

JARS: Final = Path.home() / ".cache" / "taskflow" / "debezium"
PAGE: Final = Path(__file__).parents[2] / "processor" / "docs" / "outbox.md"
SOURCE: Final = Path(__file__).parents[1] / "support" / "DebeziumRecords.java"

pytestmark = [
    needs_postgres,
    pytest.mark.soak,
    pytest.mark.skipif(
        shutil.which("java") is None or not JARS.exists(),
        reason=f"there is no Java with Debezium here (mvn dependency:copy-dependencies of "
        f"io.debezium:debezium-embedded and debezium-connector-postgres 3.6.1.Final to {JARS})",
    ),
]


async def test_debezium_sends_each_command_once_with_the_flow_as_its_key(
    tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    (block,) = re.findall(r"^```json\n(.+?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    port, flow_id = unused_tcp_port_factory(), uuid4()
    config: dict[str, str] = json.loads(block)["config"] | {
        "name": "taskflow-outbox",
        "database.hostname": "127.0.0.1",
        "database.port": str(port),
        "database.user": "taskflow",
        "database.password": "-",
        "database.dbname": "postgres",
        "offset.storage": "org.apache.kafka.connect.storage.MemoryOffsetBackingStore",
    }
    del config["key.converter"], config["value.converter"]  # Connect's; here records are as made
    properties = tmp_path / "properties"
    properties.write_text("".join(f"{name}={value}\n" for name, value in config.items()))
    with running_server("wal_level=logical", "listen_addresses=127.0.0.1", f"port={port}"):
        db = await asyncpg.connect(f"postgresql://taskflow@127.0.0.1:{port}/postgres")
        await db.execute(statements())
        await insert(db, flow_id, "create_managed")
        debezium = await asyncio.create_subprocess_exec(
            *("java", "-cp", f"{JARS}/*", str(SOURCE), str(properties), "3"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert debezium.stdout is not None
        lines = []
        try:
            async with asyncio.timeout(patience(60)):
                lines.append(await debezium.stdout.readline())
                await insert(db, flow_id, "start_running")
                lines.append(await debezium.stdout.readline())
                # Neither a change nor a deletion is a command.
                await db.execute("UPDATE taskflow_outbox SET traceparent = 'x'")
                await db.execute("DELETE FROM taskflow_outbox")
                await insert(db, flow_id, "finish")
                lines.append(await debezium.stdout.readline())
                assert await debezium.wait() == 0
        finally:
            if debezium.returncode is None:
                debezium.kill()
            await db.close()
    records = [line.decode().rstrip("\n").split("\t") for line in lines]
    assert {(topic, key) for topic, key, _ in records} == {("taskflow.commands", str(flow_id))}
    commands = [json.loads(value) for _, _, value in records]
    assert [command["kind"] for command in commands] == [
        "create_managed",
        "start_running",
        "finish",
    ]
    assert len({command["command_id"] for command in commands}) == 3
    assert {command["flow_id"] for command in commands} == {str(flow_id)}


async def insert(db: asyncpg.Connection, flow_id: UUID, kind: str) -> None:
    await db.execute(
        "INSERT INTO taskflow_outbox (flow_id, command) VALUES ($1, $2)",
        flow_id,
        json.dumps({"kind": kind, "issued_by": "shop"}),
    )
