"""A service in Node reads outcomes and audit with kafkajs, and takes them as CloudEvents."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any, Final

import pytest

from processor.client import FlowClient
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.machine import patience
from tests.support.worker import running_worker

NPM: Final = Path.home() / ".cache" / "taskflow" / "kafkajs"
PACKAGES: Final = "kafkajs@2.2.4 kafkajs-snappy@1.1.0 cloudevents@10.0.0"
SCRIPT: Final = Path(__file__).parents[1] / "support" / "kafkajs_reader.mjs"
SOURCE: Final = "//shop.example/taskflow"
CE_TYPES: Final = ("taskflow.event.created", "taskflow.event.started", "taskflow.event.finished")

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or not (NPM / "node_modules" / "kafkajs").exists(),
    reason=f"there is no Node with kafkajs here (npm install --prefix {NPM} {PACKAGES})",
)


async def read(brokers: str, records: int, *topics: str) -> dict[str, list[dict[str, Any]]]:
    """What kafkajs has of each topic."""
    node = await asyncio.create_subprocess_exec(
        *("node", str(SCRIPT), str(NPM), brokers, str(records), *topics),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(patience(60)):
        out, err = await node.communicate()
    assert node.returncode == 0, err.decode()
    found: dict[str, list[dict[str, Any]]] = {topic: [] for topic in topics}
    for line in out.splitlines():
        record = json.loads(line)
        found[record["topic"]].append(record)
    return found


async def test_kafkajs_reads_what_a_worker_writes_by_default_with_its_plug_in(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        state_dir=tmp_path,
        http=None,
        cloudevents_source=SOURCE,
    )
    assert settings.compression == "snappy", "the plug-in of another codec is needed, then"
    audit, outcomes = f"{prefix}.audit", f"{prefix}.outcomes"
    async with running_worker(settings), FlowClient(settings, session="shop") as client:
        flow = await client.create("Deliver order 17", state={"note": "x" * 2000})
        await flow.start()
        await flow.finish()
        await client.send({"kind": "cancel", "flow_id": flow.id, "issued_by": "shop"})
        found = await read(broker.bootstrap, 7, audit, outcomes)

    values = [json.loads(record["value"]) for record in found[audit]]
    assert [event["kind"] for event in values] == ["created", "started", "finished"]
    verdicts = [json.loads(record["value"])["verdict"] for record in found[outcomes]]
    assert verdicts == ["accepted", "accepted", "accepted", "rejected"]
    for record, event, ce_type in zip(found[audit], values, CE_TYPES, strict=True):
        assert record["key"] == flow.id
        assert len(record["headers"]["taskflow-chain"]) == 16
        assert record["cloudevent"] == {
            "specversion": "1.0",
            "id": str(event["id"]),
            "type": ce_type,
            "source": SOURCE,
            "subject": flow.id,
            "time": event["at"],
            "datacontenttype": "application/json",
            "partitionkey": flow.id,
            "data": event,
        }
    events = [record["cloudevent"] for record in found[outcomes]]
    assert [event["type"] for event in events] == [f"taskflow.outcome.{v}" for v in verdicts]
    assert len({event["id"] for event in events}) == 4
