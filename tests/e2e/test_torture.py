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

from processor.adapters.kafka.admin.topic_admin import open_admin
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.chaos import faults as menu
from processor.testing.chaos import run as trial
from processor.testing.chaos.faults import Act
from tests.support.machine import patience

WITHIN_S = patience(170.0)


@pytest.mark.soak
async def test_a_short_trial_holds_and_tells_what_it_did(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "torture", "--minutes", "0.1", "--seed", "3"),
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, output = await asyncio.wait_for(process.communicate(), WITHIN_S)

    assert process.returncode == 0, output.decode()[-4000:]
    report = json.loads(out)
    assert report["ok"] is True
    assert report["seed"] == 3
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
    plan = trial.ChaosPlan(seed=4, seconds=0.5, workers=1, partitions=1, bootstrap=broker.bootstrap)
    output: list[str] = []

    result = await trial.torture(plan, environ=os.environ, notify=output.append)

    assert not result.ok
    assert [sentence for sentence in result.violations if sentence.startswith("I3 not_an_event")]
    assert result.kept is not None
    assert (Path(result.kept) / "w0.log").stat().st_size > 0
    # What it made at the cluster is gone.
    async with open_admin(Settings(bootstrap_servers=broker.bootstrap)) as admin:
        left = await admin.list_topics()
    assert not [topic for topic in left if topic.startswith(result.prefix)]
