"""`taskflow verify` as people run it: beside a worker under load, at rest, and on a table with a
flipped payload."""

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.forked_program import program
from tests.support.load import under_load
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.processes import environment, workers

PARTITIONS = 2
VERIFY_TIMEOUT_S = patience(90)


async def verify(env: dict[str, str], *options: str) -> tuple[int, Any, str]:
    """Exit code, the report and what was said."""
    async with asyncio.timeout(VERIFY_TIMEOUT_S):
        done = await program(env, "verify", *options)
    assert "Traceback" not in done.err, done.err
    return done.code, json.loads(done.out) if done.out else None, done.err


def flip(table: Path) -> str:
    """Change a payload of a flow in a table that nobody has open; whose it is."""
    with closing(sqlite3.connect(table)) as db, db:
        ((number, flow_id, doc),) = db.execute("SELECT n, id, doc FROM flow LIMIT 1")
        flipped = {**json.loads(doc), "goal": "endure"}
        db.execute("UPDATE flow SET doc = ? WHERE n = ?", (json.dumps(flipped), number))
    return str(flow_id)


async def test_a_deployment_is_clean_live_and_at_rest_until_a_payload_is_flipped(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS
    )
    await create_topics(settings)
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=str(PARTITIONS)) as (worker,),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        env = environment(broker.bootstrap, prefix, worker.state_dir)
        await worker.start()
        await worker.until_ready()
        async with under_load(broker.bootstrap, prefix, seed=3, per_s=150) as load:
            await load.send(600)
            async with asyncio.timeout(patience(30)):
                while len(observer.decided) <= 300:
                    await observer.catch_up()
            code, report, err = await verify(env)
            assert (code, report["violations"]) == (0, []), err
            assert report["covered"]["mode"] == "live"
            assert report["counts"]["outcomes"] > 300
            assert len(report["covered"]["tables"]) == PARTITIONS
        await observer.settled([worker.state_dir], timeout_s=patience(30))

        code, report, err = await verify(env, "--at-rest")
        assert (code, report["violations"]) == (0, []), err
        assert report["counts"]["outcomes"] >= len(load.acknowledged)
        assert report["counts"]["flows"] > 0
        assert report["counts"]["steps"] > 0
        never = {name for name, count in report["checked"].items() if count == 0}
        assert never <= {"I14", "I15", "I17"}, "the load schedules no managed steps"

        code, report, err = await verify(env, "--since", "10m")
        assert (code, report["violations"]) == (0, []), err
        assert report["counts"]["outcomes"] > 0
        assert await worker.end() == 0

    flow_id = flip(worker.state_dir / f"{prefix}-1.db")

    code, report, _ = await verify(env, "--at-rest")
    assert (code, report["ok"]) == (1, False)
    (violation,) = report["violations"]
    assert (violation["invariant"], violation["flow_id"]) == ("I5", flow_id)
    assert violation["message"].endswith("they differ in goal.")
    code, report, _ = await verify(env, "--flow", flow_id)
    assert code == 1
    assert report["counts"]["flows"] == 1
    assert [found["flow_id"] for found in report["violations"]] == [flow_id]


async def test_what_cannot_be_verified_has_its_exit_code(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    """Without a broker: tests/e2e/test_program.py."""
    code, _, err = await verify(environment(broker.bootstrap, prefix, tmp_path))

    assert code == 1
    assert "`taskflow topics check` says more" in err
