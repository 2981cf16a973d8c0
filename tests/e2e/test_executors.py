"""The executors that the documentation shows for other languages do steps of a real worker."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import orjson
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, TopicPartition

from processor.client import FlowClient
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.examples import examples, go_program, started
from tests.support.forked_program import inherited
from tests.support.machine import patience, stretched
from tests.support.observed_deployment import observing
from tests.support.worker import running_worker

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "processor/docs/executing-other-languages.md").read_text("utf-8")
TASK = "count words"
PARTITIONS = 2

COUNT = """#!/bin/sh
input=$(cat)
sleep "$(printf %s "$input" | jq '(.pause_ms // 0) / 1000')"
[ "$(printf %s "$input" | jq -r .text)" ] || { echo "there is no text" >&2; exit 3; }
printf %s "$input" | jq '{words: (.text | split(" ") | length)}'
"""
"""What the executor in Go does, for the one in a shell."""


@dataclass(frozen=True)
class Place:
    settings: Settings
    home: Path

    @property
    def environ(self) -> dict[str, str]:
        return {
            **inherited(),
            "TASKFLOW_BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "TASKFLOW_TOPIC_PREFIX": self.settings.topic_prefix,
        }


@pytest_asyncio.fixture
async def place(broker: EmbeddedBroker, prefix: str, tmp_path: Path) -> AsyncIterator[Place]:
    """A running worker, and nothing but consistent records when it is over."""
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        state_dir=tmp_path / "state",
        http=None,
    )
    async with (
        running_worker(settings),
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        yield Place(settings, tmp_path)
        (await observer.settled([settings.state_dir], timeout_s=patience(30))).assert_clean()


@pytest.mark.skipif(
    shutil.which("kcat") is None or shutil.which("jq") is None,
    reason="there is no kcat here, or no jq (on Debian: apt-get install kcat jq)",
)
@pytest.mark.timeout(180)
async def test_kcat_and_a_shell(place: Place) -> None:
    ((name, code),) = examples(PAGE, mark="runs where kcat is", language="bash").items()
    (place.home / name).write_text(code)
    (place.home / "count").write_text(COUNT)
    (place.home / "count").chmod(0o755)

    command = ("bash", name, TASK, "./count")
    environ = {**place.environ, "GROUP": "words"}
    await does_its_steps(place, command, environ, lease_s=stretched(8), attempts=1)


@pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go to compile it with")
@pytest.mark.timeout(180)
async def test_go(place: Place) -> None:
    ((name, code),) = examples(PAGE, mark="runs where go is", language="go").items()
    (place.home / name).write_text(code)
    program = await go_program(place.home, name, place.environ)

    settings = place.settings
    command = (str(program), settings.bootstrap_servers, settings.topic_prefix, "words")
    await does_its_steps(place, command, place.environ, lease_s=stretched(4), attempts=2)


async def does_its_steps(
    place: Place, command: Sequence[str], environ: dict[str, str], *, lease_s: float, attempts: int
) -> None:
    """Schedule steps that succeed, fail and outlast their lease, and have `command` do them."""
    settings = place.settings
    async with FlowClient(settings) as client, asyncio.timeout(patience(150)):
        flow = await client.create("Count words", running=True)
        await flow.schedule("before", TASK, {"text": "it was there before"})
        await flow.schedule("foreign", "another task")
        async with started(command, cwd=place.home, environ=environ) as process:
            long = {"text": "longer than its lease", "pause_ms": int(lease_s * 1100)}
            await flow.schedule("long", TASK, long, lease=timedelta(seconds=lease_s))
            bad = {"text": ""}
            await flow.schedule("bad", TASK, bad, max_attempts=attempts, backoff=timedelta(0))
            await flow.join(["before", "long", "bad"])
            assert await flow.until("running") == "running"
            committed, left = await work_items(settings, "words")
            while left:
                await asyncio.sleep(0.1)
                _, left = await work_items(settings, "words")
            process.terminate()
            out, err = await process.communicate()
            print(out.decode(), err.decode())
        events = [event async for event in flow.events() if event.kind.startswith("step_")]
        assert await flow.results() == {"before": {"words": 4}, "long": {"words": 4}}

    kinds: dict[str, list[str]] = {}
    holders = set()
    for event in events:
        payload = event.model_dump(mode="json")["payload_json"]
        run_id = payload.get("run_id") or payload["step"]["run_id"]
        kinds.setdefault(run_id, []).append(event.kind.removeprefix("step_"))
        if event.kind == "step_scheduled" and run_id != "foreign":
            # Its item is committed once its start is accepted, before the work.
            assert event.id in committed
        elif event.kind == "step_started":
            holders.add(payload["changes"]["child_session_key"])
        elif event.kind == "step_failed":
            assert "there is no text" in payload["reason"]
    assert kinds["before"] == ["scheduled", "started", "succeeded"]
    tried = ["started", "retried"] * (attempts - 1)
    assert kinds["bad"] == ["scheduled", *tried, "started", "failed"]
    assert kinds["foreign"] == ["scheduled"]
    assert [*dict.fromkeys(kinds["long"])] == ["scheduled", "started", "extended", "succeeded"]
    assert kinds["long"].count("started") == 1
    (holder,) = holders
    assert holder.startswith("words:")


async def work_items(settings: Settings, group: str) -> tuple[set[int], int]:
    """The events whose work items the group has committed, and how many items it has not."""
    committed = set()
    left = 0
    async with AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, group_id=group, enable_auto_commit=False
    ) as consumer:
        topic = Topics(settings.topic_prefix).steps
        places = [TopicPartition(topic, number) for number in range(settings.partitions)]
        consumer.assign(places)
        for place, end in (await consumer.end_offsets(places)).items():
            offset = await consumer.committed(place) or 0
            left += end - offset
            consumer.seek(place, 0)
            while await consumer.position(place) < offset:
                committed.add(orjson.loads((await consumer.getone(place)).value)["event_id"])
    return committed, left
