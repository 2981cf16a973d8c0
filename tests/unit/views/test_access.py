"""Who may read the views: whoever has the token, if there is one."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from processor.views.http import responses, server_sent_events
from processor.views.query import fan_out
from tests.support.logged import logged
from tests.support.machine import patience
from tests.support.random_histories import random_history
from tests.support.raw_http import connected, get
from tests.support.recorded_deployment import Recorded
from tests.support.served_views import serving
from tests.support.stub_views import create, flow_id

TOKEN = "a read token of the views"
WRITE = "a write token of the views"
READS = (
    *("/v1/flows", f"/v1/flows/{flow_id(1)}", f"/v1/flows/{flow_id(1)}/history", "/v1/events"),
    *("/v1/stream", "/v1/statistics", "/v1/deadletters", "/v1/partitions"),
)


def small() -> Any:
    recorded = Recorded()
    recorded.send(("commands", create(1, "triage inbox")))
    return recorded


async def test_nothing_is_read_without_the_token(served: Any) -> None:
    async with served(small(), views_read_token=TOKEN, views_token=WRITE) as (client, _):
        for given in (None, "", "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", TOKEN,
                      f"Basic {TOKEN}", f"Bearer {WRITE}", "Bearer ü"):  # fmt: skip
            headers = {} if given is None else {"Authorization": given}
            for path in (*READS, f"/v1/flows/{flow_id(2)}", "/v1/flows?limit=x", "/v1/stream?x=1"):
                async with client.get(path, headers=headers) as response:
                    body = await response.read()
                    assert response.status == 401, (path, given)
                    assert responses.Problem.model_validate_json(body).code == "unauthorized"
                    assert response.headers["WWW-Authenticate"] == "Bearer"
                    assert TOKEN.encode() not in body


async def test_with_the_token_all_is_read(served: Any) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    async with served(small(), views_read_token=TOKEN) as (client, _):
        for path in READS:
            if path == "/v1/partitions":
                continue  # asks Kafka
            async with client.get(path, headers=headers) as response:
                assert response.status == 200, path


async def test_a_token_in_the_address_is_none(served: Any) -> None:
    async with served(small(), views_read_token=TOKEN) as (client, _):
        for name in ("token", "access_token", "authorization"):
            async with client.get("/v1/flows", params={name: TOKEN}) as response:
                assert response.status == 401


async def test_the_page_probes_and_scrapers_need_no_token_and_learn_little(served: Any) -> None:
    async with served(small(), views_read_token=TOKEN) as (client, _):
        for path in ("/", "/static/app.js", "/live", "/metrics", "/openapi.json"):
            async with client.get(path) as response:
                assert response.status == 200, path
        async with client.get("/ready") as response:
            assert set(await response.json()) == {"ready"}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with client.get("/ready", headers=headers) as response:
            assert set(await response.json()) > {"ready"}


async def test_the_read_token_publishes_nothing(served: Any) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    for write, status in ((None, 403), (WRITE, 401)):
        async with (
            served(small(), views_read_token=TOKEN, views_token=write) as (client, _),
            client.post("/v1/commands", json=create(2, "no"), headers=headers) as response,
        ):
            assert response.status == status


@pytest.mark.parametrize(("wait", "status"), [
    ("250ms", 503), ("1s", 503), ("0", 503), ("100", 503), ("0m", 503), ("5", 503),
    ("30s", 200), ("30000", 200), ("31s", 400), ("1m", 400), ("-1", 400), ("5 s", 400),
    ("1.5s", 400), ("s", 400), ("", 400), ("9" * 20 + "s", 400),
])  # fmt: skip
async def test_a_wait_is_a_duration_like_any_other(served: Any, wait: str, status: int) -> None:
    async with served(small()) as (client, _):
        after = "1" if status == 200 else "9"
        async with client.get("/v1/flows", params={"after": after, "wait": wait}) as response:
            assert response.status == status, await response.text()


async def test_no_more_requests_wait_than_a_limit_and_the_others_hear_it_at_once(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fan_out, "WAITING_MAX", 3)
    async with served(small()) as (client, _):

        async def status() -> Any:
            async with client.get("/v1/flows?after=9&wait=30s") as response:
                return response.status, (await response.json())["code"]

        waiting = [asyncio.create_task(status()) for _ in range(6)]
        done: set[asyncio.Task[Any]] = set()
        kept = set(waiting)
        async with asyncio.timeout(patience(20)):
            while len(done) < 3:
                more, kept = await asyncio.wait(kept, return_when=asyncio.FIRST_COMPLETED)
                done |= more
        assert [task.result() for task in done] == [(503, "not_yet")] * 3
        for task in kept:
            task.cancel()
        await asyncio.wait(kept)


async def test_no_more_streams_are_open_than_a_limit(served: Any) -> None:
    async with served(small(), views_streams=2) as (client, _):
        open_ones = [await client.get("/v1/stream") for _ in range(2)]
        async with client.get("/v1/stream") as response:
            body = await response.read()
            assert response.status == 503
            assert responses.Problem.model_validate_json(body).code == "busy"
        open_ones[0].close()
        async with asyncio.timeout(patience(10)):
            while True:
                response = await client.get("/v1/stream")
                if response.status == 200:
                    break
                await response.read()
                await asyncio.sleep(0.02)
        response.close()
        open_ones[1].close()


async def test_a_stream_keeps_little_for_a_client_that_does_not_read(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    begun = 0
    put = server_sent_events.StreamQueue.put

    async def noted(self: Any, item: Any, size_bytes: Any) -> None:
        nonlocal begun
        begun += 1
        await put(self, item, size_bytes)
        kept.append(self._bytes)

    monkeypatch.setattr(server_sent_events.StreamQueue, "put", noted)
    recorded = random_history(400)
    for number in range(40):
        recorded.send(("commands", create(number + 100, "large", state_json={"x": "y" * 200_000})))
    async with served(recorded) as (client, _):
        response = await client.get("/v1/stream?since=beginning")
        count = looked = 0
        async with asyncio.timeout(patience(20)):
            while begun == 0 or looked != begun:  # until it has stopped for want of room
                looked = begun
                await asyncio.sleep(0.2)
            async for line in response.content:
                count += line.startswith(b"event: event")
                if line.startswith(b"event: ready"):
                    break
        assert count == sum(len(recorded.of("audit", p)) for p in range(recorded.partitions))
        assert max(kept) <= server_sent_events.CHUNK_BYTES + 300_000
        response.close()


async def test_a_client_that_leaves_with_unread_events_is_no_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path, random_history(400)) as here:
        for path in (
            "/v1/stream?since=beginning",
            "/v1/events?limit=200",
            "/v1/flows?after=1&wait=9s",
        ):
            for _ in range(5):
                async with connected(here.address) as connection:
                    await connection.send(get(path))
                    await connection.reader.readexactly(100)
                    connection.writer.transport.abort()
        async with here.client.get("/v1/flows") as response:
            assert response.status == 200
    assert logged(caplog) == []
