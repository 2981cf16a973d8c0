"""What the API answers and refuses, in this process, over a real file and without Kafka."""

import asyncio
import json
from typing import Any

import pytest

from processor.contract.values import COMMAND_MAX_BYTES, STATE_MAX_BYTES
from processor.views.http import responses
from processor.views.http import server_sent_events as streams
from tests.support.logged import logged
from tests.support.random_histories import random_history
from tests.support.read_model_harness import docs_of, expected, messages
from tests.support.recorded_deployment import Recorded
from tests.support.stub_views import HOSTILE, command, create, flow_id

TOKEN = "a token of thirty-two characters."

LARGE = {"x": "é" * ((STATE_MAX_BYTES - len('{"x":""}')) // 2)}
"""As large as a state may be."""


def small() -> Any:
    recorded = Recorded()
    recorded.send(("commands", create(1, "triage inbox")))
    return recorded


async def problem(response: Any, status: Any, code: Any) -> Any:
    """The refusal, checked against its model."""
    assert (response.status, response.content_type) == (status, "application/problem+json")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    body = responses.Problem.model_validate_json(await response.read())
    assert (body.status, body.code) == (status, code)
    return body


REFUSED = [
    ("/v1/flows?limit=0", "limit"),
    ("/v1/flows?limit=201", "limit"),
    ("/v1/flows?limit=x", "limit"),
    ("/v1/flows?sort=name", "sort"),
    ("/v1/flows?status=running,dancing", "status"),
    ("/v1/flows?waiting=luck", "waiting"),
    ("/v1/flows?created_after=yesterday", "created_after"),
    ("/v1/flows?nothing=1", "nothing"),
    ("/v1/flows?q=%3F%3F", "q"),
    ("/v1/flows?cursor=rubbish", "cursor"),
    ("/v1/flows?cursor=%FF%FE", "cursor"),
    ("/v1/flows?cursor=WyJjcmVhdGVkIiwxLDJd", "cursor"),
    ("/v1/flows?cursor=WyJ1cGRhdGVkIiwxXQ", "cursor"),
    ("/v1/flows?cursor=WyJ1cGRhdGVkIiwtMSwyXQ", "cursor"),
    ("/v1/flows?limit=1&limit=2", ""),
    ("/v1/flows?wait=30001", "wait"),
    ("/v1/flows?after=0", "after"),
    ("/v1/flows?after=x", "after"),
    (f"/v1/flows/{flow_id(1)}?revision=-1", "revision"),
    (f"/v1/flows/{flow_id(1)}/history?order=up", "order"),
    (f"/v1/flows/{flow_id(1)}/history?cursor=e30", "cursor"),
    ("/v1/events?kind=dance", "kind"),
    ("/v1/events?cursor=WzFd", "cursor"),
    ("/v1/statistics?minutes=1441", "minutes"),
    ("/v1/deadletters?code=nothing", "code"),
    ("/v1/stream?flow=x", "flow"),
    ("/v1/stream?since=then", "since"),
]


async def test_parameters_that_cannot_be_understood_are_refused_by_name(served: Any) -> None:
    async with served(small()) as (client, _):
        for path, field in REFUSED:
            async with client.get(path) as response:
                body = await problem(response, 400, "bad_request")
                assert field in {one["field"] for one in body.errors}, path


async def test_whoever_leaves_a_stream_is_no_error(
    served: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.01)
    async with served(small()) as (client, view):
        response = await client.get("/v1/stream")
        assert await response.content.readuntil(b"{}\n\n")
        assert open_streams(view) == 1
        response.close()
        while open_streams(view):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert logged(caplog) == []


def open_streams(view: Any) -> Any:
    return view.metrics.registry.get_sample_value("taskflow_view_streams")


async def test_what_is_not_there_is_told(served: Any) -> None:
    async with served(small()) as (client, _):
        for path, code in (
            ("/v1/flows/nobody", "not_found"),
            (f"/v1/flows/{flow_id(2)}", "not_found"),
            (f"/v1/flows/{flow_id(2)}/history", "not_found"),
            (f"/v1/flows/{flow_id(1)}?revision=9", "revision_unknown"),
            ("/v2", "not_found"),
        ):
            async with client.get(path) as response:
                await problem(response, 404, code)
        async with client.delete("/v1/flows") as response:
            await problem(response, 405, "method_not_allowed")


async def test_without_a_token_commands_are_switched_off(served: Any) -> None:
    async with served(small()) as (client, _):
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": "Bearer "}):
            async with client.post("/v1/commands", json={}, headers=headers) as response:
                body = await problem(response, 403, "forbidden")
                assert "TASKFLOW_VIEWS_TOKEN" in body.detail


@pytest.mark.parametrize(
    "given", [None, "", TOKEN, "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}",
              f"Bearer {TOKEN}x", "Bearer ü"],
)  # fmt: skip
async def test_a_wrong_token_is_refused(served: Any, given: Any) -> None:
    headers = {} if given is None else {"Authorization": given}
    async with (
        served(small(), views_token=TOKEN) as (client, _),
        client.post("/v1/commands", json=create(2, "no"), headers=headers) as response,
    ):
        await problem(response, 401, "unauthorized")
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in await response.text()


async def test_with_the_token_a_body_that_is_no_command_is_refused_before_kafka(
    served: Any,
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    async with served(small(), views_token=TOKEN) as (client, _):
        for data, status, code in (
            (b"{", 400, "bad_request"),
            (b"[]", 400, "bad_request"),
            (b" " * (COMMAND_MAX_BYTES + 1), 413, "too_large"),
        ):
            async with client.post("/v1/commands", data=data, headers=headers) as response:
                await problem(response, status, code)
        plain = {**headers, "Content-Type": "text/plain"}
        async with client.post("/v1/commands", data=b"{}", headers=plain) as response:
            await problem(response, 400, "bad_request")


async def test_hostile_texts_come_back_as_json_and_nothing_else(served: Any) -> None:
    recorded = Recorded()
    # Nearly as large as a state may be: one character takes six bytes, one three.
    big = "\u202e<b>\x01" * (STATE_MAX_BYTES // 12 - 100)
    state = {HOSTILE: [HOSTILE], "big": big}
    recorded.send(("commands", create(1, HOSTILE, state_json=state)))
    recorded.send(("commands", command(1, "fail", reason=HOSTILE)))
    recorded.send(("commands", b"{<script>alert(9)</script>\xff\x00"), partition=0)
    async with served(recorded) as (client, _):
        for path in (
            "/v1/flows",
            f"/v1/flows/{flow_id(1)}",
            f"/v1/flows/{flow_id(1)}/history",
            "/v1/events",
            "/v1/deadletters",
            "/v1/statistics",
        ):
            async with client.get(path) as response:
                assert (response.status, response.content_type) == (200, "application/json"), path
                assert response.headers["X-Content-Type-Options"] == "nosniff"
                assert response.headers["Cache-Control"] == "no-store"
                assert response.headers["Content-Security-Policy"].startswith("default-src 'none'")
                raw = await response.read()
                assert not [byte for byte in raw if byte < 32], "control characters are escaped"
                json.loads(raw)
        async with client.get(f"/v1/flows/{flow_id(1)}") as response:
            flow = (await response.json())["flow"]
            assert flow["goal"] == HOSTILE
            assert flow["state_json"][HOSTILE] == [HOSTILE]
            assert flow["state_json"]["big"] == big
        async with client.get("/v1/deadletters") as response:
            (dead_letter,) = (await response.json())["items"]
            assert dead_letter["value"] == "{<script>alert(9)</script>\ufffd\x00"


async def test_a_hostile_parameter_is_not_given_back(served: Any) -> None:
    hostile = {"limit": "<script>", "<script>": "1"}
    async with served(small()) as (client, _), client.get("/v1/flows", params=hostile) as response:
        await problem(response, 400, "bad_request")


async def test_the_largest_state_comes_back_whole(served: Any) -> None:
    recorded = Recorded()
    recorded.send(("commands", create(1, "large", state_json=LARGE)))
    async with served(recorded) as (client, _):
        async with client.get(f"/v1/flows/{flow_id(1)}") as response:
            assert (await response.json())["flow"]["state_json"] == LARGE
        async with client.get("/v1/flows") as response:
            (item,) = (await response.json())["items"]
            assert item["state_bytes"] == STATE_MAX_BYTES


async def test_what_is_not_projected_yet_is_told_and_what_comes_in_time_is_awaited(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = small()
    async with served(recorded) as (client, view):
        async with client.get("/v1/flows?after=1,2&wait=0") as response:
            assert response.status == 200
        async with client.get("/v1/flows?after=3&wait=0") as response:
            await problem(response, 503, "not_yet")
            assert response.headers["Retry-After"] == "1"
        async with client.get(f"/v1/flows/{flow_id(1)}?after=1,3&wait=10") as response:
            await problem(response, 503, "not_yet")
        recorded.send(("commands", command(1, "finish")))
        asked = client.get(f"/v1/flows/{flow_id(1)}?after=3&wait=30000")

        async def responded() -> Any:
            async with asked as response:
                return response.status, (await response.json())["flow"]["status"]

        begun, includes = asyncio.Event(), view.includes

        async def noted(*arguments: Any) -> Any:
            begun.set()
            return await includes(*arguments)

        monkeypatch.setattr(view, "includes", noted)
        task = asyncio.create_task(responded())
        await begun.wait()
        assert not task.done()
        await view.project(messages(recorded))
        assert await task == (200, "finished")


async def test_an_event_of_a_partition_that_nobody_has_cannot_be_awaited(served: Any) -> None:
    async with served(small()) as (client, view):
        view.assign([])
        async with client.get("/v1/flows?after=1&wait=30000") as response:
            await problem(response, 503, "not_yet")
        async with client.get(f"/v1/flows/{flow_id(1)}") as response:
            await problem(response, 503, "unavailable")
        async with client.get("/v1/flows") as response:
            body = await response.json()
            assert (body["items"], body["view"]["complete"], body["view"]["missing"]) == (
                [], False, [0],
            )  # fmt: skip


async def test_answers_are_what_their_models_say(served: Any) -> None:
    recorded = random_history(150)
    some = docs_of(messages(recorded))
    found = expected(some)
    flow = next(iter(found.flows.values()))
    async with served(recorded) as (client, _):
        for path, model in (
            ("/v1/flows", responses.FlowPage),
            ("/v1/flows?sort=wait", responses.FlowPage),
            (f"/v1/flows/{flow.id}", responses.FlowAnswer),
            (f"/v1/flows/{flow.id}/history", responses.EventPage),
            ("/v1/events", responses.EventPage),
            ("/v1/statistics", responses.Statistics),
            ("/v1/deadletters", responses.DeadLetterPage),
        ):
            async with client.get(path) as response:
                assert response.status == 200, path
                model.model_validate_json(await response.read())
        async with client.get("/v1/statistics") as response:
            body = await response.json()
            assert body["events_total"] == len(some)
            assert body["flows_total"] == len(found.flows)


async def test_a_file_of_the_page_that_did_not_change_is_not_sent_again(served: Any) -> None:
    async with served(small()) as (client, _):
        async with client.get("/static/app.js") as response:
            etag = response.headers["ETag"]
        async with client.get("/static/app.js", headers={"If-None-Match": etag}) as response:
            assert response.status == 304
            assert response.headers["X-Content-Type-Options"] == "nosniff"
