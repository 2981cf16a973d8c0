"""Operators' actions by HTTP: the real engine decides them, on Kafka in memory."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from processor.client import FlowClient, FlowHandle, flow_id_for
from processor.contract import headers
from processor.testing.fake import TaskflowFake
from processor.views.http import responses
from tests.support.recorded_deployment import kinds
from tests.support.served_views import ServedView, acting

OPERATOR = "a token of the operators"
READ = "a token of the readers.."
WRITE = "a token of the producers"
AUTHORIZED = {"Authorization": f"Bearer {OPERATOR}"}
KATE = {"issued_by": "operator:kate", "reason": "the customer called"}


@pytest_asyncio.fixture
async def here(taskflow_fake: TaskflowFake, tmp_path: Path) -> AsyncIterator[ServedView]:
    async with acting(
        tmp_path,
        taskflow_fake,
        views_operator_token=OPERATOR,
        views_read_token=READ,
        views_token=WRITE,
    ) as served:
        yield served


async def act(here: ServedView, path: str = "/v1/control", **body: Any) -> tuple[int, Any]:
    async with here.client.post(
        path, params={"wait": "10s"}, json=KATE | body, headers=AUTHORIZED
    ) as response:
        return response.status, await response.json()


async def waiting(client: FlowClient) -> FlowHandle:
    flow = await client.create("settle invoice 4711")
    await flow.start()
    await flow.wait_for("payments", "4711", prompt="paid?", timeout=timedelta(days=1))
    return flow


async def test_an_action_is_decided_as_the_person_who_is_named_with_the_reason_beside_it(
    here: ServedView, taskflow_fake: TaskflowFake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "processor.views.http")
    async with FlowClient() as client:
        flow = await waiting(client)
    resume: dict[str, Any] = {
        "kind": "resume",
        "flow_id": flow.id,
        "state_patch": {"paid": True},
    }

    status, preview = await act(here, **resume, expected_revision=2, dry_run=True)
    assert (status, preview["outcome"]["verdict"]) == (200, "accepted")
    assert preview["outcome"]["status"] == "running"
    now = taskflow_fake.flow(flow.id)
    assert now is not None
    assert now.status == "waiting"

    status, done = await act(here, **resume, expected_revision=2)
    assert (status, done["outcome"]["verdict"]) == (200, "accepted")
    now = taskflow_fake.flow(flow.id)
    assert now is not None
    assert (now.status, now.state_json) == ("running", {"paid": True})
    last = taskflow_fake.events(flow.id)[-1]
    assert (last.kind, last.actor) == ("resumed", "operator:kate")
    assert last.source.topic == "taskflow.control"
    (record,) = (
        one for one in taskflow_fake.deployment().of("control") if one.offset == last.source.offset
    )
    assert dict(record.headers)[headers.REASON] == b"the customer called"
    assert f"operator:kate by HTTP: resume of flow {flow.id}" in caplog.text

    status, stale = await act(here, kind="cancel", flow_id=flow.id, expected_revision=2)
    assert (status, stale["outcome"]["code"]) == (200, "revision_mismatch")
    assert kinds(await taskflow_fake.verify()) == set()


async def test_a_step_is_tried_again_and_cancelled(
    here: ServedView, taskflow_fake: TaskflowFake
) -> None:
    async with FlowClient() as client:
        flow = await client.create("charge the cards", running=True)
        await flow.schedule("card-1", "charge")
    for kind, status in (("cancel_step", "cancelled"), ("retry_step", "pending")):
        code, done = await act(here, kind=kind, flow_id=flow.id, run_id="card-1")
        assert (code, done["outcome"]["verdict"]) == (200, "accepted")
        assert taskflow_fake.steps(flow.id)["card-1"].status == status


@pytest.mark.parametrize("token", [None, READ, WRITE, f"{OPERATOR}x"])
async def test_no_other_token_acts(
    here: ServedView, taskflow_fake: TaskflowFake, token: str | None
) -> None:
    sent = {} if token is None else {"Authorization": f"Bearer {token}"}
    flow_id = flow_id_for("order-17")
    body = {**KATE, "kind": "cancel", "flow_id": flow_id}
    for path in ("/v1/control", "/v1/deadletters/0/0/redrive"):
        async with here.client.post(path, json=body, headers=sent) as response:
            problem = responses.Problem.model_validate_json(await response.read())
            assert (response.status, problem.code) == (401, "unauthorized")
    assert taskflow_fake.outcomes() == []


async def test_without_the_setting_nothing_acts(
    taskflow_fake: TaskflowFake, tmp_path: Path
) -> None:
    async with acting(tmp_path, taskflow_fake, views_token=WRITE) as here:
        for path in ("/v1/control", "/v1/deadletters/0/0/redrive"):
            status, problem = await act(here, path)
            assert (status, problem["code"]) == (403, "forbidden")
            assert "TASKFLOW_VIEWS_OPERATOR_TOKEN" in problem["detail"]
        async with here.client.get("/v1/partitions") as response:
            assert (await response.json())["actions"] is False


async def test_what_a_page_of_another_site_could_send_is_refused(here: ServedView) -> None:
    body = json.dumps({**KATE, "kind": "cancel", "flow_id": flow_id_for("order-17")})
    for sent, code in (
        ({"Content-Type": "text/plain"}, "bad_request"),
        ({"Content-Type": "application/json", "Origin": "https://evil.example"}, "forbidden"),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "cross-site"}, "forbidden"),
        ({"Content-Type": "application/json", "Host": "evil.example"}, "misdirected"),
    ):
        async with here.client.post(
            "/v1/control", data=body, headers={**AUTHORIZED, **sent}
        ) as response:
            assert (await response.json())["code"] == code, sent


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "prune"}, "kind"),
        ({"kind": "wake"}, "kind"),
        ({"kind": "cancel", "reason": ""}, "reason"),
        ({"kind": "cancel", "issued_by": ""}, "issued_by"),
        ({"kind": "cancel", "surprise": 1}, "surprise"),
        ({"kind": "retry_step"}, "run_id"),
        ({"kind": "cancel", "state_patch": {}}, "state_patch"),
    ],
)
async def test_what_is_no_action_is_refused_by_field(
    here: ServedView, body: dict[str, Any], field: str
) -> None:
    status, problem = await act(here, **{"flow_id": flow_id_for("order-17"), **body})
    assert status == 400
    assert field in {error["field"].removeprefix("$.") for error in problem["errors"]}, problem


async def test_a_letter_is_edited_and_goes_back(
    here: ServedView, taskflow_fake: TaskflowFake
) -> None:
    flow_id = flow_id_for("order-17")
    create = {
        **{"kind": "create_managed", "flow_id": flow_id, "issued_by": "kate", "goal": "hoist"},
        **{"controller_id": "crane", "requester_origin": "web", "command_id": flow_id_for("c")},
    }
    async with FlowClient():  # the engine runs
        value = json.dumps(create).replace("crane", "crané")[:-1].encode()
        taskflow_fake.kafka.append("taskflow.commands", 0, flow_id.encode(), value)
        await taskflow_fake.settle()
    path = "/v1/deadletters/0/0/redrive"

    status, preview = await act(here, path, dry_run=True)
    assert (status, preview["code"], preview["value"]) == (200, "malformed", value.decode())
    assert preview["stays"].startswith("would still be malformed: at byte ")
    status, problem = await act(here, path)
    assert (status, problem["code"]) == (400, "invalid_command")
    edited = json.dumps(create)
    status, preview = await act(here, path, value=edited, dry_run=True)
    assert (preview["code"], preview["stays"], preview["outcome"]) == (None, None, None)
    assert taskflow_fake.flow(flow_id) is None

    status, done = await act(here, path, value=edited)
    assert (status, done["outcome"]["verdict"]) == (200, "accepted"), done
    assert taskflow_fake.flow(flow_id) is not None
    sent = dict(taskflow_fake.deployment().of("commands")[-1].headers)
    assert sent == {
        headers.ISSUED_BY: b"operator:kate",
        headers.REASON: b"the customer called",
        "taskflow-redriven-from": b"taskflow.deadletters/0/0",
    }
    for place in ("0/9", "7/0", "x/0", "0/1"):
        status, problem = await act(here, f"/v1/deadletters/{place}/redrive", dry_run=True)
        assert (status, problem["code"]) == (404, "not_found"), place


async def test_an_action_goes_on_when_its_sender_leaves(
    here: ServedView, taskflow_fake: TaskflowFake
) -> None:
    async with FlowClient() as client:
        flow = await client.create("settle invoice 4711")
    sending = asyncio.ensure_future(act(here, kind="cancel", flow_id=flow.id))
    await taskflow_fake.kafka.watch([("taskflow.control", 0)])
    sending.cancel()
    await taskflow_fake.settle()
    now = taskflow_fake.flow(flow.id)
    assert now is not None
    assert now.status == "cancelled"
