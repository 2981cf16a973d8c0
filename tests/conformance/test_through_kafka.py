"""The contract by example, once more: through a real worker on a real Kafka.

All cases at once, on one worker. Cases in which the clock matters stay with the pure runner.
"""

import asyncio
import itertools
import json
import re
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from processor.settings import Settings
from tests.support.deployment import Deployment
from tests.support.machine import patience
from tests.support.observed_deployment import observing
from tests.support.worker import running_worker

PARTITIONS = 4
TIMES = ("expires_at", "at", "timeout_at")
INSTANT = re.compile(r'"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"')
CASES = [
    json.loads(line)
    for line in (Path(__file__).parents[2] / "schemas/vectors/conformance.jsonl")
    .read_text("utf-8")
    .splitlines()
]


def names_a_time(value: Any) -> bool:
    """Whether what must come of it depends on when it is sent."""
    inside = {**value, **(value.get("wait") or {})}
    return any(inside.get(name) is not None for name in TIMES)


def wakes_by_itself(case: Any) -> bool:
    """A flow that waits and is asked to cancel gets its wake from the worker."""
    return any(
        sent["value"]["kind"] == "request_cancel" and expected["status"] == "waiting"
        for sent, expected in zip(case["commands"], case["expect"], strict=True)
    )


def is_timeless(case: Any) -> bool:
    return not wakes_by_itself(case) and not any(
        names_a_time(sent["value"]) for sent in case["commands"]
    )


def without_times(value: Any) -> Any:
    return json.loads(INSTANT.sub('"a time"', json.dumps(value)))


def told_of(case: Any, world: Deployment) -> list[Any]:
    """What the topics tell of a case's commands, as the case expects it."""
    flow_id = case["commands"][0]["value"]["flow_id"]
    outcomes = [
        o for r in world.all_of("outcomes") if (o := json.loads(r.value))["flow_id"] == flow_id
    ]
    events = [e for r in world.all_of("audit") if (e := json.loads(r.value))["flow_id"] == flow_id]
    told = []
    for outcome, expected in zip(outcomes, case["expect"], strict=True):
        answer = {name: outcome.get(name) for name in expected if name != "events"}
        answer["events"] = [
            {name: value for name, value in event.items() if name not in ("id", "source")}
            for event in events
            if event["source"] == outcome["source"]
        ]
        told.append(answer)
    return told


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


async def test_every_case_that_knows_no_clock(broker, prefix, tmp_path):
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

    world.assert_clean()
    assert len(cases) >= 50
    for case in cases:
        assert without_times(told_of(case, world)) == without_times(case["expect"]), case["name"]
        flow, steps = rows_of(case, world)
        assert without_times(flow) == without_times(case["flow"]), case["name"]
        expected = sorted(case["steps"], key=lambda step: step["run_id"])
        assert without_times(steps) == without_times(expected), case["name"]
