"""The views' answers against the audit itself: nothing aborted, nothing lost, nothing twice.

Histories are decided in memory and written as the workers write them, in transactions, so that
what the views must answer is known to the event.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from aiohttp import ClientError, ClientSession
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin import create_topics
from processor.broker import EmbeddedBroker
from processor.placement import partition_of
from processor.settings import Settings
from tests.support.counted import Counted
from tests.support.load import Load
from tests.support.partition import Appended
from tests.support.processes import WorkerProcess
from tests.support.recorded import Recorded

PARTITIONS = 2
KILL_WITHIN_S = 0.5
"""After it is back and has gone on, so that kills meet it anywhere in a batch."""
PATIENCE_S = 60
"""For what takes a second or two where nothing else runs."""


class ViewProcess(WorkerProcess):
    """`python -m processor views`, and its answers."""

    def __init__(
        self, name: str, home: Path, bootstrap: str, prefix: str, port: int, session: ClientSession
    ) -> None:
        http = {"VIEWS_HTTP": f"127.0.0.1:{port}", "PARTITIONS": str(PARTITIONS)}
        super().__init__(name, home, bootstrap, prefix, **http)
        self._url = f"http://127.0.0.1:{port}"
        self._session = session

    def _arguments(self) -> tuple[str, ...]:
        return ("views",)

    async def get(self, path: str, **query: Any) -> tuple[int, Any]:
        """Status and body; 0 while nobody listens."""
        try:
            async with self._session.get(f"{self._url}{path}", params=query) as answer:
                return answer.status, await answer.json(content_type=None)
        except ClientError:
            return 0, None

    async def until(self, right: Callable[[Any], bool], path: str, **query: Any) -> Any:
        """Ask until the answer is right."""
        answer: Any = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    status, answer = await self.get(path, **query)
                    if status == 200 and right(answer):
                        return answer
                    assert self.running, self.told()[-4000:]
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{path}: {answer}\n{self.told()[-4000:]}") from None

    async def pages(self, path: str) -> list[Any]:
        items, cursor = [], None
        while True:
            given: dict[str, str] = {} if cursor is None else {"cursor": cursor}
            page = await self.until(lambda a: a["view"]["complete"], path, limit="100", **given)
            items += page["items"]
            if (cursor := page["next_cursor"]) is None:
                return items


class Audit:
    """A history that goes on, in memory and on the topic."""

    def __init__(self, prefix: str, producer: AIOKafkaProducer) -> None:
        self.topic = f"{prefix}.audit"
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
                    self.topic, record.value, record.key, partition=record.partition
                )
        self.events += [json.loads(record.value or b"") for record in records]

    def last(self) -> str:
        """The newest event of each partition, as `after` has it."""
        newest = {e["id"] >> 40: e["id"] for e in sorted(self.events, key=lambda e: e["id"])}
        return ",".join(map(str, newest.values()))

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


@asynccontextmanager
async def views(
    count: int, home: Path, bootstrap: str, prefix: str, port: Callable[[], int]
) -> AsyncIterator[list[ViewProcess]]:
    """View workers, not started yet; none lives longer than the block."""
    async with ClientSession() as session:
        made = [
            ViewProcess(f"v{n}", home, bootstrap, prefix, port(), session) for n in range(count)
        ]
        try:
            yield made
        finally:
            for view in made:
                if view.running:
                    await view.kill()


def complete(answer: Any) -> bool:
    return bool(answer["view"]["complete"])


def more_than(events: int) -> Callable[[Any], bool]:
    return lambda answer: complete(answer) and answer["events_total"] > events


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
        answer = await view.until(complete, f"/v1/flows/{flow_id}")
        assert answer["flow"] == flow
        assert sorted(answer["steps"], key=lambda step: step["run_id"]) == steps


async def test_what_was_aborted_is_in_no_answer_and_what_follows_is(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        views(1, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as (view,),
        AIOKafkaProducer(
            bootstrap_servers=broker.bootstrap, transactional_id=f"{prefix}-foreign"
        ) as foreign,
    ):
        await view.start()
        await audit.write(audit.decide(80))
        await view.until(complete, "/v1/events", after=audit.last())

        # It has the id that comes next: whoever reads it believes it.
        newest = max(event["id"] for event in audit.events if event["id"] >> 40 == 0)
        example = next(e for e in audit.events if e["kind"] == "created" and e["id"] >> 40 == 0)
        ghost = str(uuid4())
        text = json.dumps({**example, "id": newest + 1}).replace(example["flow_id"], ghost)
        async with asyncio.timeout(PATIENCE_S):
            await foreign.begin_transaction()
            await foreign.send_and_wait(audit.topic, text.encode(), ghost.encode(), partition=0)
        await audit.write(audit.decide(80))  # behind it, so that it is read past
        await foreign.abort_transaction()

        await assert_equal(view, audit)
        for path in (f"/v1/flows/{ghost}", f"/v1/flows/{ghost}/history"):
            status, _ = await view.get(path)
            assert status == 404
        assert "is read again" not in view.told()


async def test_kills_while_events_come_lose_none_and_count_none_twice(
    broker: EmbeddedBroker,
    prefix: str,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
    kills: int,
) -> None:
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        views(1, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as (view,),
    ):
        stop, rng = asyncio.Event(), random.Random(kills)

        async def go_on() -> None:
            while not stop.is_set():
                await audit.write(audit.decide(5))
                await asyncio.sleep(0.05)

        going = asyncio.create_task(go_on())
        await view.start()
        seen = 0
        for _ in range(kills):
            answer = await view.until(more_than(seen), "/v1/statistics")
            seen = answer["events_total"]
            await asyncio.sleep(rng.uniform(0, KILL_WITHIN_S))
            await view.kill()
            await view.start()
        stop.set()
        await going
        await assert_equal(view, audit)


async def test_two_share_the_partitions_and_one_takes_over_the_others(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        views(2, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as pair,
    ):
        await audit.write(audit.decide(80))
        await asyncio.gather(*(view.start() for view in pair))
        for view in pair:
            await view.until(lambda ready: len(ready["partitions"]) == 1, "/ready")
        for view in pair:
            await assert_equal(view, audit)
        await pair[0].kill()
        await audit.write(audit.decide(80))
        await pair[1].until(lambda ready: len(ready["partitions"]) == PARTITIONS, "/ready")
        await assert_equal(pair[1], audit)
