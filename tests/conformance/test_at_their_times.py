"""The contract by example, through a real worker on a real Kafka, each command at the time that its
case says, and with the work items that come of it.

`commands` and `control` keep the times that the test gives (CreateTime), and the worker's own
timers are silent: the cases send each wake themselves.
"""

import asyncio
import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from processor.adapters.kafka.admin.topic_admin import open_admin
from processor.adapters.kafka.reader.topic_reader import read
from processor.contract.topics import Topics
from processor.embedded.broker import EmbeddedBroker
from processor.partition import batch_processor
from processor.partition.scheduling.step_timers import StepTimers
from processor.partition.scheduling.timers import Timers
from processor.settings import Settings
from processor.testing.memory.deployment import Deployment
from tests.conformance.test_through_kafka import CASES as ALL
from tests.conformance.test_through_kafka import PARTITIONS, rows_of, stated_of
from tests.support.json_values import json_of
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.worker import running_worker


def wakes_by_itself(case: Any) -> bool:
    """Whether a flow that waits is asked to cancel: the worker then sends its wake."""
    return any(
        sent["value"]["kind"] == "request_cancel" and expected["status"] == "waiting"
        for sent, expected in zip(case["commands"], case["expect"], strict=True)
    )


CASES = [case for case in ALL if not wakes_by_itself(case)]
"""A request to cancel a waiting flow brings the worker's wake with it, in the same transaction."""
STEPS_PARTITIONS = 6
FOR_EVER_MS = 10**13


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wake of the processor's own, and no outcome forgotten: times of one case are another's
    distant future."""

    async def nothing_due(self: StepTimers, *_: Any) -> dict[Any, Any]:
        return {}

    monkeypatch.setattr(Timers, "take", lambda *_: {})
    monkeypatch.setattr(StepTimers, "due", nothing_due)
    monkeypatch.setattr(batch_processor, "LATE_MAX_MS", FOR_EVER_MS)


async def keep_given_times(settings: Settings) -> None:
    """Let `commands` and `control` keep the times that producers give, however old."""
    topics = Topics(settings.topic_prefix)
    given = {"message.timestamp.type": "CreateTime", "retention.ms": "-1"}
    async with open_admin(settings) as admin:
        await admin.alter_configs(
            [
                ConfigResource(ConfigResourceType.TOPIC, name, configs={**spec.config, **given})
                for name, spec in topics
                if name in (topics.commands, topics.control)
            ]
        )


def expected_items(case: Any, world: Deployment) -> list[Any]:
    """The work items of a case, with the ids of the events that offered them."""
    flow_id = case["commands"][0]["value"]["flow_id"]
    outcomes = [o for r in world.all_of("outcomes") if (o := json_of(r))["flow_id"] == flow_id]
    expected = []
    for outcome, said in zip(outcomes, case["expect"], strict=True):
        for item in said.get("work", ()):
            event_id = outcome["event_ids"][item["event"]]
            expected.append({**without(item, "event"), "event_id": event_id})
    return expected


def without(item: Any, name: str) -> Any:
    return {key: value for key, value in item.items() if key != name}


@pytest.mark.soak
async def test_every_case_at_its_times(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, silent: None
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        steps_partitions=STEPS_PARTITIONS,
        state_dir=tmp_path,
        http=None,
        retain_terminal_ms=None,
    )
    # In each round, what a case sends to one topic: between two topics there is no order.
    segments = [
        [list(some) for _, some in itertools.groupby(case["commands"], lambda sent: sent["topic"])]
        for case in CASES
    ]
    async with (
        running_worker(settings),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap, max_request_size=2**21) as producer,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        await keep_given_times(settings)
        for turn in itertools.zip_longest(*segments, fillvalue=[]):
            sending = []
            for sent in itertools.chain.from_iterable(turn):
                key = sent["value"]["flow_id"].encode()
                value = json.dumps(sent["value"], ensure_ascii=False).encode()
                topic = f"{prefix}.{sent['topic']}"
                sending.append(await producer.send(topic, value, key, timestamp_ms=sent["at_ms"]))
            await asyncio.gather(*sending)
            world = await observer.settled([tmp_path], timeout_s=patience(60))
    items = defaultdict(list)
    async for record in read(settings, f"{prefix}.steps"):
        item = json.loads(record.value)
        assert record.key == f"{item['flow_id']}/{item['run_id']}".encode()
        assert dict(record.headers)["taskflow-task"] == item["task"].encode()
        items[item["flow_id"]].append(item)

    for case in CASES:
        said = [without(one, "work") for one in case["expect"]]
        stated = [without(one, "work") for one in stated_of(case, world)]
        assert stated == said, case["name"]
        flow, steps = rows_of(case, world)
        assert flow == case["flow"], case["name"]
        assert steps == sorted(case["steps"], key=lambda step: step["run_id"]), case["name"]
        expected = expected_items(case, world)
        found = items[case["commands"][0]["value"]["flow_id"]]
        assert sorted(found, key=lambda one: one["event_id"]) == expected, case["name"]
    assert sum(map(len, items.values())) >= 60
