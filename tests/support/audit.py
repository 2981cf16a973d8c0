"""An audit that goes on, decided in memory and written as the workers write it, in transactions; so
that what views must answer is known to the event."""

import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.engine.partitioner import partition_of
from processor.settings import Settings
from processor.testing.memory.record import Appended
from tests.support.expected_statistics import Counted
from tests.support.load import Load
from tests.support.recorded_deployment import Recorded
from tests.support.views import PARTITIONS, ViewProcess


class Audit:
    """A history that goes on, in memory and on the topic."""

    def __init__(self, prefix: str, producer: AIOKafkaProducer) -> None:
        self.topic = f"{prefix}.audit"
        self._state = f"{prefix}.state"
        self.events: list[dict[str, Any]] = []
        self.recorded = Recorded(partitions=PARTITIONS)
        self._load = Load(cast(Any, None), prefix, random.Random(5))
        self._producer = producer

    def decide(self, commands: int) -> list[Appended]:
        """What some more commands add to the audit."""
        history = self.recorded
        before = [len(history.of("audit", p)) for p in range(PARTITIONS)]
        history.now = time.time_ns() // 1_000_000
        for _ in range(commands):
            name, key, value = self._load.next()
            home = partition_of(key, PARTITIONS)
            history.decide(home, [history.append(name, home, key, value, ())])
        return [r for p in range(PARTITIONS) for r in history.of("audit", p)[before[p] :]]

    async def write(self, records: Sequence[Appended]) -> None:
        async with self._producer.transaction():
            for record in records:
                await self._producer.send(
                    self.topic,
                    record.value,
                    record.key,
                    partition=record.partition,
                    headers=list(record.headers),
                )
        self.events += [json.loads(record.value or b"") for record in records]

    async def write_state(self) -> None:
        """The snapshots that the workers would have written, as compaction leaves them."""
        async with self._producer.transaction():
            for partition in range(PARTITIONS):
                newest = {
                    record.key: record.value for record in self.recorded.of("state", partition)
                }
                for key, value in newest.items():
                    await self._producer.send(self._state, value, key, partition=partition)

    def last(self) -> str:
        """The newest event of each partition, as `after` has it."""
        newest = {e["id"] >> 40: e["id"] for e in sorted(self.events, key=lambda e: e["id"])}
        return ",".join(map(str, newest.values()))

    def count_flows(self) -> int:
        """How many there are now. `flows` looks through all steps for each."""
        return sum(len(self.recorded.owner(p).flows) for p in range(PARTITIONS))

    def flows(self) -> dict[str, Any]:
        """Each flow and its steps, as those who decided them have them."""
        owners = [self.recorded.owner(p) for p in range(PARTITIONS)]
        return {f: (owner.flow(f), owner.steps_of(f)) for owner in owners for f in owner.flows}


@asynccontextmanager
async def audit_of(bootstrap: str, prefix: str) -> AsyncIterator[Audit]:
    """The history of topics that are made here."""
    await create_topics(
        Settings(bootstrap_servers=bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, transactional_id=f"{prefix}-audit")
    async with producer:
        yield Audit(prefix, producer)


def complete(page: Any) -> bool:
    return bool(page["view"]["complete"])


def more_than(events: int) -> Callable[[Any], bool]:
    return lambda page: complete(page) and page["events_total"] > events


async def assert_equal(view: ViewProcess, audit: Audit) -> None:
    """The view has what the audit says, all of it and once."""
    statistics = await view.until(complete, "/v1/statistics", after=audit.last(), minutes="1440")
    Counted(audit.events).assert_said(statistics)
    flows = audit.flows()
    listed = await view.pages("/v1/flows")
    assert sorted(item["id"] for item in listed) == sorted(flows)
    events = await view.pages("/v1/events")
    by_id = sorted(events, key=lambda event: event["id"])
    assert by_id == sorted(audit.events, key=lambda event: event["id"])
    for flow_id, (flow, steps) in flows.items():
        page = await view.until(complete, f"/v1/flows/{flow_id}")
        assert page["flow"] == flow
        assert sorted(page["steps"], key=lambda step: step["run_id"]) == steps
