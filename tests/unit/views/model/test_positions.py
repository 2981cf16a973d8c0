"""Positions that clients send are held to the partitions that there are: no other is looked for."""

import asyncio
import base64
import json
import random
from typing import Any

import pytest

from processor.contract.values import EVENTS_PER_PARTITION
from processor.views.http import responses, server_sent_events
from processor.views.model.database import Database
from tests.support.logged import logged
from tests.support.machine import patience
from tests.support.recorded_deployment import Recorded
from tests.support.stub_views import create, flow_id

PARTITIONS = 4
ID = EVENTS_PER_PARTITION
HISTORY = f"/v1/flows/{flow_id(1)}/history"


def packed(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def some() -> Any:
    recorded = Recorded(PARTITIONS)
    for number in range(1, 9):
        recorded.send(("commands", create(number, f"goal {number}")))
    return recorded


async def refused(client: Any, path: Any, field: Any, **headers: Any) -> None:
    async with asyncio.timeout(patience(10)), client.get(path, headers=headers) as response:
        body = await response.read() if response.status == 400 else b""
        assert response.status == 400, (path, headers, body[:200])
        body = responses.Problem.model_validate_json(body)
        assert body.code == "bad_request"
        assert {error["field"] for error in body.errors} == {field}, path


OUTSIDE = [
    {"1": 1},
    {"0": ID},
    {"4": 4 * ID + 1},
    {"0": 0, "1": 0},
    {"3": 2**63 - 1},
    {"0": -1},
    {"0": 2**63},
    {"0": 10**30},
    {"0": 1.5},
    {"0": True},
    {"0": None},
    {"00": 1},
    {"-1": 1},
    {"99999": 1},
    {"x": 1},
    {"": 1},
    [1],
    "x",
    7,
    None,
    [[[[[[]]]]]],
]


async def test_a_stream_begins_in_its_partitions_only(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: Any, **__: Any) -> None:
        raise AssertionError("a position that is refused is not looked for")

    monkeypatch.setattr(server_sent_events, "events_after", never)
    async with served(some()) as (client, _):
        for value in OUTSIDE:
            await refused(client, f"/v1/stream?last_event_id={packed(value)}", "last_event_id")
            header = {"Last-Event-ID": packed(value)}
            await refused(client, "/v1/stream", "last_event_id", **header)
        for text in ("x", "%00", "e30=" * 300, "%FF%FE", "W" * 5000):
            await refused(client, f"/v1/stream?last_event_id={text}", "last_event_id")


async def test_a_stream_may_begin_at_the_beginning_and_ahead_of_the_view(served: Any) -> None:
    async with served(some()) as (client, view):
        newest = {str(p): view.position(p).event_id for p in range(PARTITIONS)}
        for value in (
            {},
            {str(p): p * ID for p in range(PARTITIONS)},
            newest,
            {"0": newest["0"] + 5},
            {"2": 3 * ID - 1},
        ):
            path = f"/v1/stream?last_event_id={packed(value)}"
            async with asyncio.timeout(patience(10)), client.get(path) as response:
                assert response.status == 200
                assert b"event: ready" in await response.content.readuntil(b"{}\n\n")


@pytest.mark.parametrize(
    "after",
    ["4398046511105", "99999999999999999999", "0", str(ID), str(2 * ID), str(2**63),
     "1,4398046511105", "9" * 1000, "-1", "1.5", "1e3", "x", ","],
)  # fmt: skip
async def test_events_that_cannot_be_are_not_awaited(served: Any, after: Any) -> None:
    async with served(some()) as (client, _):
        for path in (
            *("/v1/flows", "/v1/events", "/v1/statistics", "/v1/deadletters"),
            *(f"/v1/flows/{flow_id(1)}", HISTORY, "/v1/partitions"),
        ):
            if after == ",":
                async with client.get(f"{path}?after={after}") as response:
                    assert response.status == 200
            else:
                await refused(client, f"{path}?after={after}&wait=30s", "after")


async def test_an_event_that_may_come_is_not_yet_there(served: Any) -> None:
    async with served(some()) as (client, _):
        for after in (ID - 1, ID + 1000, 4 * ID - 1):
            async with client.get(f"/v1/flows?after={after}&wait=0s") as response:
                assert (response.status, (await response.json())["code"]) == (503, "not_yet")


CURSORS = [
    ("/v1/flows?cursor=", ["updated", 1, 4 * ID + 1]),
    ("/v1/flows?cursor=", ["updated", 1, 0]),
    ("/v1/flows?cursor=", ["updated", 1, ID]),
    ("/v1/flows?cursor=", ["updated", 1, 2**63 - 1]),
    ("/v1/flows?cursor=", ["updated", 2**62, 1]),
    ("/v1/flows?cursor=", ["updated", -1, 1]),
    ("/v1/flows?cursor=", ["created", 1, 1]),
    ("/v1/flows?sort=created&cursor=", ["created", 1, 4 * ID + 1]),
    ("/v1/flows?sort=wait&cursor=", ["wait", 1, 10**25]),
    (f"{HISTORY}?cursor=", ["history-asc", 4 * ID + 1]),
    (f"{HISTORY}?cursor=", ["history-asc", 0]),
    (f"{HISTORY}?cursor=", ["history-desc", 1]),
    (f"{HISTORY}?order=desc&cursor=", ["history-desc", 2**62]),
    ("/v1/deadletters?cursor=", ["letters", 1, 4, 0]),
    ("/v1/deadletters?cursor=", ["letters", 2**62, 1, 0]),
    ("/v1/deadletters?cursor=", ["letters", 1, 1, 2**64]),
    ("/v1/events?cursor=", {"7": 5}),
    ("/v1/events?cursor=", {"0": ID}),
    ("/v1/events?cursor=", {"1": 1}),
    ("/v1/events?cursor=", {"1": ID}),
    ("/v1/events?cursor=", {"3": 2**63 - 1}),
    ("/v1/events?cursor=", {"0": 1, "4": 0}),
    ("/v1/events?cursor=", ["updated", 1, 1]),
]


def watched(monkeypatch: pytest.MonkeyPatch) -> list[Database]:
    """Takes note of each database that is read."""
    read, asked = Database.reading, list[Database]()

    def reading(database: Database, *, stream: bool = False) -> Any:
        asked.append(database)
        return read(database, stream=stream)

    monkeypatch.setattr(Database, "reading", reading)
    return asked


async def test_a_page_goes_on_in_its_partitions_only(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = watched(monkeypatch)
    async with served(some()) as (client, _):
        asked.clear()
        for path, cursor in CURSORS:
            await refused(client, path + packed(cursor), "cursor")
        assert asked == [], "no query was made for any"


async def test_a_page_of_events_that_begins_ahead_of_the_view_is_its_newest(served: Any) -> None:
    async with served(some()) as (client, _):
        async with client.get("/v1/events") as response:
            newest = (await response.json())["items"]
        ahead = {str(p): (p + 1) * ID - 1 for p in range(PARTITIONS)}
        async with client.get(f"/v1/events?cursor={packed(ahead)}") as response:
            body = await response.json()
            assert (body["items"], body["next_cursor"]) == (newest, None)


async def test_pages_lead_through_everything_once(served: Any) -> None:
    async with served(some()) as (client, _):
        for path, key in (
            ("/v1/flows?limit=3", "id"),
            ("/v1/flows?sort=created&limit=1", "id"),
            ("/v1/events?limit=3", "id"),
            (f"{HISTORY}?limit=1", "id"),
            (f"{HISTORY}?limit=1&order=desc", "id"),
        ):
            found, cursor = [], None
            while True:
                async with client.get(path + (f"&cursor={cursor}" if cursor else "")) as response:
                    page = await response.json()
                assert response.status == 200, page
                found += [item[key] for item in page["items"]]
                if (cursor := page["next_cursor"]) is None:
                    break
            assert len(found) == len(set(found)) > 0
            if path.startswith(("/v1/flows?", "/v1/events")):
                assert len(found) >= 8


async def test_no_position_whatever_makes_a_failure_or_many_queries(
    served: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random positions of every kind."""
    chance = random.Random(14)
    asked = watched(monkeypatch)

    def number() -> Any:
        return chance.choice(
            [0, 1, 2, ID - 1, ID, ID + 1, 4 * ID - 1, 4 * ID, 2**62, 2**63 - 1, 2**63, 2**64, -1,
             chance.randrange(-(2**65), 2**65)]
        )  # fmt: skip

    def position() -> Any:
        names = ["updated", "created", "wait", "history-asc", "history-desc", "letters"]
        return chance.choice(
            [
                {str(chance.randrange(-1, 6)): number() for _ in range(chance.randrange(4))},
                [chance.choice(names), *(number() for _ in range(chance.randrange(4)))],
            ]
        )

    async with served(some()) as (client, _):
        for _ in range(600):
            asked.clear()
            path = chance.choice(["/v1/flows", "/v1/events", HISTORY, "/v1/deadletters"])
            name, value = chance.choice(
                [("cursor", packed(position())), ("after", str(number())),
                 ("after", ",".join(str(number()) for _ in range(3)))]
            )  # fmt: skip
            async with client.get(path, params={name: value, "wait": "0"}) as response:
                assert response.status in (200, 400, 503), (path, name, value)
            assert len(asked) <= 2
    assert logged(caplog) == []
