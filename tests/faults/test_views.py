"""The views' answers against the audit itself: nothing aborted, nothing lost, nothing twice."""

import asyncio
import json
import random
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from aiohttp import web
from aiokafka import AIOKafkaProducer

from processor.embedded.broker import EmbeddedBroker
from tests.support.audit import assert_equal, audit_of, complete, more_than
from tests.support.views import PARTITIONS, PATIENCE_S, views

KILL_WITHIN_S = 0.5
"""After it is back and has gone on, so that kills meet it anywhere in a batch."""


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
        assert "is read again" not in view.output()


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

        async with asyncio.TaskGroup() as group:
            group.create_task(go_on())
            await view.start()
            seen = 0
            for _ in range(kills):
                response = await view.until(more_than(seen), "/v1/statistics")
                seen = response["events_total"]
                await asyncio.sleep(rng.uniform(0, KILL_WITHIN_S))
                await view.kill()
                await view.start()
            stop.set()
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


async def test_a_member_of_the_group_that_is_no_worker_of_ours_is_not_believed(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port_factory: Callable[[], int]
) -> None:
    """It has joined the group with an address of its own, where it answers what it likes."""
    asked: list[web.Request] = []

    async def forge(request: web.Request) -> web.Response:
        asked.append(request)
        document = {"items": [{"id": "forged"}], "view": {"partitions": [], "lag_ms": 0}}
        if len(asked) % 2:
            raise web.HTTPFound(f"{honest.url}/v1/flows")
        return web.json_response(document)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forge)
    runner = web.AppRunner(app)
    await runner.setup()
    port = unused_tcp_port_factory()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        views(2, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as (honest, foreign),
    ):
        foreign.choose(VIEWS_ADVERTISE=f"http://127.0.0.1:{port}")
        await audit.write(audit.decide(80))
        await asyncio.gather(honest.start(), foreign.start())
        for view in (honest, foreign):
            await view.until(lambda ready: len(ready["partitions"]) == 1, "/ready")
        (ours,) = (await honest.until(lambda _: True, "/ready"))["partitions"]
        for path in ("/v1/flows", "/v1/events", "/v1/statistics"):
            response = await honest.until(lambda a: a["view"]["behind"] is None, path)
            assert response["view"]["missing"] == [1 - int(ours)]
            assert "forged" not in json.dumps(response)
        assert asked
        secret = Path.home() / ".local/state/taskflow/views-peer-secret"
        for request in asked:
            assert secret.read_text() not in str(request.headers)
        assert "TASKFLOW_VIEWS_PEER_SECRET" in honest.output()
        async with honest.session.get(
            f"{honest.url}/ready", headers={"Host": "evil.example"}
        ) as no:
            assert no.status == 421
        await foreign.kill()
        await honest.until(lambda ready: len(ready["partitions"]) == PARTITIONS, "/ready")
        await assert_equal(honest, audit)
    await runner.cleanup()
