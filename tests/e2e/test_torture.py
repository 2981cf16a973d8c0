"""`taskflow torture` from outside, short; and that its verdict can be a bad one."""

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics, open_admin
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.chaos import faults as menu
from processor.testing.chaos import run as trial
from processor.testing.chaos.faults import Act
from processor.testing.chaos.load import digest
from processor.testing.chaos.lost_records import lost_records
from processor.testing.chaos.plan import ChaosPlan
from tests.support.machine import patience

WITHIN_S = patience(170.0)


@pytest.mark.soak
@pytest.mark.parametrize("brokers", [1, 3])
async def test_a_short_trial_holds_and_tells_what_it_did(tmp_path: Path, brokers: int) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "torture", "--minutes", "0.1", "--seed", "3"),
        *("--brokers", f"{brokers}"),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, output = await asyncio.wait_for(process.communicate(), WITHIN_S)

    assert process.returncode == 0, output.decode()[-4000:]
    report = json.loads(out)
    assert report["ok"] is True
    assert (report["seed"], report["brokers"]) == (3, brokers)
    assert sum(report["faults"].values()) >= 1
    assert report["commands"]["acknowledged"] > 100
    assert {"accepted", "rejected"} <= report["commands"]["verdicts"].keys()
    assert [verified["ok"] for verified in report["verified"]] == [True, True]
    assert all(verified["checked"]["I10"] > 100 for verified in report["verified"])
    assert "healed in" in output.decode()
    left = list(tmp_path.iterdir())  # noqa: ASYNC240
    assert left == []


async def test_a_foreign_record_on_a_given_clusters_audit_is_a_violation(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def spoil(stage: Any, dice: Any) -> str:
        settings = stage.settings
        async with AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers) as producer:
            topic = f"{settings.topic_prefix}.audit"
            await producer.send_and_wait(topic, b'{"id":1}', b"x", partition=0)
        return ""

    monkeypatch.setattr(trial, "MENU", (Act("spoil the audit", 1, spoil),))
    monkeypatch.setattr(trial, "REST_S", 0.2)
    # What is spoilt does not heal, however long one waits.
    monkeypatch.setattr(trial, "HEAL_TIMEOUT_S", 5.0)
    monkeypatch.setattr(menu, "READY_TIMEOUT_S", 5.0)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    plan = ChaosPlan(seed=4, seconds=0.5, workers=1, partitions=1, bootstrap=broker.bootstrap)
    output: list[str] = []

    result = await trial.torture(plan, environ=os.environ, notify=output.append)

    assert not result.ok
    assert [sentence for sentence in result.violations if sentence.startswith("I3 not_an_event")]
    assert result.kept is not None
    assert (Path(result.kept) / "w0.log").stat().st_size > 0
    # The controller has deleted its topics; the broker learns of it a moment later.
    async with (
        open_admin(Settings(bootstrap_servers=broker.bootstrap)) as admin,
        asyncio.timeout(patience(10)),
    ):
        left = [result.prefix]
        while any(topic.startswith(result.prefix) for topic in left):
            left = await admin.list_topics()


async def test_a_record_that_was_acknowledged_and_is_not_there_is_a_violation(
    broker: EmbeddedBroker, prefix: str
) -> None:
    settings = Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=1)
    await create_topics(settings)
    topic = f"{prefix}.commands"
    async with AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer:
        for value in (b"first", b"second", b"third"):
            await producer.send_and_wait(topic, value, b"key", partition=0)
    there = {0: digest(b"key", b"first"), 2: digest(b"key", b"third")}

    assert await lost_records(settings, {(topic, 0): there}) == []
    replaced_and_cut_off = {**there, 1: digest(b"key", b"another"), 3: digest(b"key", b"fourth")}
    assert await lost_records(settings, {(topic, 0): replaced_and_cut_off}) == [
        f"2 acknowledged records of {topic}/0 are lost, the first at offset 1."
    ]
