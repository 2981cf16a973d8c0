"""Signals on a real broker, with a real worker: delivered once, early, too late, refused."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import orjson
from aiokafka import AIOKafkaProducer

from processor.adapters.kafka.admin.topic_admin import create_signal_topics
from processor.adapters.kafka.reader.topic_reader import read
from processor.client import FlowClient, FlowHandle
from processor.client.signals.signal_client import SignalClient
from processor.contract.events import Resumed
from processor.contract.headers import split_dead_letter
from processor.contract.signals import INVALID, UNCLAIMED, UNDELIVERABLE
from processor.contract.topics import SignalTopics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from processor.signals.service import SignalService
from processor.views.http.responses import SignalPublished
from tests.support.forked_program import Result, program
from tests.support.machine import patience, stretched
from tests.support.recorded_deployment import Recorded
from tests.support.served_views import serving
from tests.support.worker import running_worker

TTL_MS = int(stretched(5_000))
"""An early signal is awaited within it, and another one until it is over."""
TOKEN = "a token of the producers"


@asynccontextmanager
async def signals_running(settings: Settings) -> AsyncIterator[SignalService]:
    """The service on the test's own loop."""
    await create_signal_topics(settings)
    service, stop = SignalService(settings), asyncio.Event()
    running = asyncio.create_task(service.run(stop))
    try:
        yield service
    finally:
        stop.set()
        await running


async def dead_letters(settings: Settings, count: int) -> dict[str, str]:
    """The codes of the first `count` dead letters, by the ids of signals; "" for what has none."""
    codes: dict[str, str] = {}
    topic = SignalTopics(settings.topic_prefix).dead_letters
    async with asyncio.timeout(patience(60)):
        records = read(settings, topic, follow=True)
        async for record in records:
            name = ""
            with suppress(orjson.JSONDecodeError):
                name = orjson.loads(record.value)["id"]
            _, facts = split_dead_letter(record.headers)
            assert facts is not None
            assert name not in codes, "each once"
            codes[name] = facts.code
            if len(codes) == count:
                break
        await records.aclose()
    return codes


async def running(client: FlowClient, key: str, state: Any = None) -> FlowHandle:
    return await client.create(f"Collect {key}", state=state, running=True)


async def waiting(client: FlowClient, key: str, state: Any = None) -> FlowHandle:
    flow = await running(client, key, state)
    await flow.wait_for("payments", key)
    return flow


async def resumed(flow: FlowHandle) -> list[tuple[str, Any]]:
    return [
        (event.actor, event.payload_json.state_patch)
        async for event in flow.events()
        if isinstance(event, Resumed)
    ]


async def test_signals_end_waits_once_and_others_become_dead_letters(
    tmp_path: Path, broker: EmbeddedBroker, prefix: str
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=2,
        http=None,
        state_dir=tmp_path,
        signal_ttl_ms=TTL_MS,
    )
    async with running_worker(settings), signals_running(settings):
        async with FlowClient(settings) as client, SignalClient(settings) as sender:
            await sender.send("payments", "nobody", id="nobody")
            first = await running(client, "twice")
            for _ in range(2):
                await sender.send("payments", "twice", {"n": 1}, id="twice")
            await first.wait_for("payments", "twice")
            assert await first.until("running") == "running"
            second = await waiting(client, "twice")

            large = await waiting(client, "large", state={"x": "x" * 200_000})
            await sender.send("payments", "large", "y" * 100_000, id="large")
            arguments = ("payments", "large", "--data", '"small"', "--id", "small")
            result = await by_the_program(settings, "send", *arguments)
            assert (result.code, orjson.loads(result.out)["id"]) == (0, "small"), result
            assert await large.until("running") == "running"

            await send_as_foreign_client(settings, b"no signal")
            assert await dead_letters(settings, 3) == {
                **{"large": UNDELIVERABLE, "nobody": UNCLAIMED},
                "": INVALID,
            }

            listed = await by_the_program(settings, "deadletters")
            shown = {one["code"]: one for one in map(orjson.loads, listed.out.splitlines())}
            assert (listed.code, len(shown)) == (0, 3), listed
            assert shown[UNCLAIMED]["correlation_id"] == "nobody"
            assert shown[UNDELIVERABLE]["payload"] == "y" * 100_000
            assert shown[INVALID]["id"] is None
            await sent_by_http(settings, tmp_path / "views", id="another", payload={"n": 2})
            assert await second.until("running") == "running"
            states = [
                [event async for event in flow.events(follow=False)] for flow in (first, second)
            ]
        resumed: list[Any] = [[one for one in of if one.kind == "resumed"] for of in states]
        assert [[(one.actor, one.payload_json.state_patch) for one in of] for of in resumed] == [
            [("signal:twice", {"resume_event": {"n": 1}})],
            [("signal:another", {"resume_event": {"n": 2}})],
        ]


async def sent_by_http(settings: Settings, folder: Path, **fields: Any) -> None:
    """To the same flow twice: the views answer that Kafka has it, and the id is delivered once."""
    body = {"topic": "payments", "correlation_id": "twice", **fields}
    here = serving(
        *(folder, Recorded(partitions=2)),
        brokers=settings.bootstrap_servers,
        topic_prefix=settings.topic_prefix,
        views_token=TOKEN,
    )
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with here as served:
        for _ in range(2):
            async with served.client.post("/v1/signals", json=body, headers=headers) as response:
                found = SignalPublished.model_validate(await response.json())
                assert (response.status, found.id) == (202, "another")
                assert found.topic == SignalTopics(settings.topic_prefix).signals


async def by_the_program(settings: Settings, *arguments: str) -> Result:
    environment = {
        "TASKFLOW_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TASKFLOW_TOPIC_PREFIX": settings.topic_prefix,
    }
    return await program(environment, "signal", *arguments)


async def send_as_foreign_client(settings: Settings, value: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers)
    await producer.start()
    try:
        await producer.send_and_wait(SignalTopics(settings.topic_prefix).signals, value)
    finally:
        await producer.stop()
