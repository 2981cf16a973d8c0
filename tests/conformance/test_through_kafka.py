"""The contract by example, once more: through a real worker on a real Kafka.

All cases at once, on one worker. Cases in which the clock matters stay with the pure runner.
"""

import asyncio
import itertools
import json
import re
from contextlib import aclosing
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.reader.topic_reader import read
from processor.domain.steps import step_due_ms
from processor.domain.transitions import STEP_COMMANDS
from processor.domain.waits import due_ms
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.testing.memory.deployment import Deployment
from tests.support.builders import DAY_MS, MORNING
from tests.support.json_values import json_of
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.partition import Partition, Sent
from tests.support.worker import running_worker

PARTITIONS = 4
PACE_MS = 10
"""Between two commands of a case, where the published times have a second and more."""
SOON_MS = 120_000
"""What is due later is not met while the cases run."""
INSTANT = re.compile(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"')
CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "schemas/vectors/conformance.jsonl")
    .read_text("utf-8")
    .splitlines()
]


def is_timeless(case: Any) -> bool:
    """Whether a case comes out the same in another year and at another pace, and nothing is due by
    itself meanwhile."""
    partition, now_ms = Partition(), MORNING + 3650 * DAY_MS
    for sent, expected in zip(case["commands"], case["expect"], strict=True):
        now_ms += PACE_MS
        ((outcome, events, _),) = partition.send(Sent(sent["topic"], now_ms, sent["value"]))
        if without_times(stated(outcome, events, expected)) != without_times(expected_of(expected)):
            return False
        waits = [due_ms(row.flow) for row in partition.flows.values()]
        leases = [step_due_ms(row.step) for row in partition.steps.values()]
        if any(due is not None and due < now_ms + SOON_MS for due in [*waits, *leases]):
            return False
    flow_id = case["commands"][0]["value"]["flow_id"]
    return without_times(partition.flow(flow_id)) == without_times(case["flow"])


def stated(outcome: Any, events: list[Any], expected: Any) -> Any:
    """What is told of one command, as far as a case expects it; work items lie elsewhere."""
    stated = {name: outcome.get(name) for name in expected_of(expected)}
    stated["events"] = [
        {name: value for name, value in event.items() if name not in ("id", "source")}
        for event in events
    ]
    return stated


def expected_of(expected: Any) -> Any:
    return {name: value for name, value in expected.items() if name != "work"}


def without_times(value: Any) -> object:
    return json.loads(INSTANT.sub('"a time"', json.dumps(value)))


def stated_of(case: Any, world: Deployment) -> list[Any]:
    """What the topics tell of a case's commands, as the case expects it."""
    flow_id = case["commands"][0]["value"]["flow_id"]
    outcomes = [o for r in world.all_of("outcomes") if (o := json_of(r))["flow_id"] == flow_id]
    events = [e for r in world.all_of("audit") if (e := json_of(r))["flow_id"] == flow_id]
    return [
        stated(outcome, [e for e in events if e["source"] == outcome["source"]], expected)
        for outcome, expected in zip(outcomes, case["expect"], strict=True)
    ]


def work_of(case: Any, world: Deployment) -> list[Any]:
    """The work items that a case expects, with the ids that their events have got."""
    flow_id = case["commands"][0]["value"]["flow_id"]
    outcomes = [o for r in world.all_of("outcomes") if (o := json_of(r))["flow_id"] == flow_id]
    return [
        {name: value for name, value in item.items() if name != "event"}
        | {"event_id": outcome["event_ids"][item["event"]]}
        for outcome, expected in zip(outcomes, case["expect"], strict=True)
        for item in expected.get("work", ())
    ]


async def work_items(settings: Settings, event_ids: set[int]) -> dict[int, Any]:
    """What lies on `steps`, by event, once there is an item of each of `event_ids`."""
    found: dict[int, Any] = {}
    records = read(settings, f"{settings.topic_prefix}.steps", follow=True)
    async with asyncio.timeout(patience(20)), aclosing(records):
        async for record in records:
            item = json.loads(record.value)
            assert record.key == f"{item['flow_id']}/{item['run_id']}".encode()
            assert dict(record.headers)["taskflow-task"] == item["task"].encode()
            found[item["event_id"]] = item
            if event_ids <= found.keys():
                break
    return found


def rows_of(case: Any, world: Deployment) -> tuple[Any, list[Any]]:
    flow_id = case["commands"][0]["value"]["flow_id"]
    docs = [row.doc for table in world.tables for row in table.flows if row.flow_id == flow_id]
    steps = [
        json.loads(row.doc)
        for table in world.tables
        for row in sorted(table.steps)
        if row.flow_id == flow_id
    ]
    return (json.loads(docs[0]) if docs else None), steps


async def test_every_case_that_knows_no_clock(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path
) -> None:
    cases = [case for case in CASES if is_timeless(case)]
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=PARTITIONS,
        state_dir=tmp_path,
        http=None,
    )
    # In each round, what a case sends to one topic: between two topics there is no order.
    segments = [
        [list(some) for _, some in itertools.groupby(case["commands"], lambda sent: sent["topic"])]
        for case in cases
    ]
    async with (
        running_worker(settings),
        AIOKafkaProducer(bootstrap_servers=broker.bootstrap) as producer,
        observing(broker.bootstrap, prefix, PARTITIONS) as observer,
    ):
        for turn in itertools.zip_longest(*segments, fillvalue=[]):
            sending = []
            for sent in itertools.chain.from_iterable(turn):
                key = sent["value"]["flow_id"].encode()
                value = json.dumps(sent["value"], ensure_ascii=False).encode()
                sending.append(await producer.send(f"{prefix}.{sent['topic']}", value, key))
            await asyncio.gather(*sending)
            world = await observer.settled([tmp_path], timeout_s=patience(20))
        work = [item for case in cases for item in work_of(case, world)]
        items = await work_items(settings, {item["event_id"] for item in work})

    world.assert_clean()
    assert len(cases) >= 80
    assert {sent["value"]["kind"] for case in cases for sent in case["commands"]} >= STEP_COMMANDS
    assert len(work) >= 40
    assert items.keys() == {item["event_id"] for item in work}
    for item in work:
        assert without_times(items[item["event_id"]]) == without_times(item)
    for case in cases:
        expected = [expected_of(one) for one in case["expect"]]
        assert without_times(stated_of(case, world)) == without_times(expected), case["name"]
        flow, steps = rows_of(case, world)
        assert without_times(flow) == without_times(case["flow"]), case["name"]
        expected = sorted(case["steps"], key=lambda step: step["run_id"])
        assert without_times(steps) == without_times(expected), case["name"]
