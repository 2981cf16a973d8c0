"""Signals by HTTP: whose they are, and what is none. That they reach a flow is shown by
tests/integration/test_signals.py."""

from pathlib import Path
from typing import Any

import pytest

from processor.testing.fake import TaskflowFake
from processor.views.http import responses
from tests.support.served_views import acting

WRITE = "a token of the producers"
READ = "a token of the readers.."
SIGNAL = {"id": "pay-17", "topic": "payments", "correlation_id": "order-17", "payload": 1}


async def post(
    folder: Path, fake: TaskflowFake, body: Any, token: str | None, **options: Any
) -> responses.Problem:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        acting(folder, fake, **options) as here,
        here.client.post("/v1/signals", json=body, headers=headers) as response,
    ):
        problem = responses.Problem.model_validate_json(await response.read())
        assert problem.status == response.status
        return problem


async def test_without_a_write_token_there_are_no_signals(
    taskflow_fake: TaskflowFake, tmp_path: Path
) -> None:
    problem = await post(tmp_path, taskflow_fake, SIGNAL, WRITE)

    assert (problem.status, problem.code) == (403, "forbidden")
    assert "TASKFLOW_VIEWS_TOKEN" in (problem.detail or "")


@pytest.mark.parametrize("token", [None, READ, WRITE + "x"])
async def test_another_token_is_none(
    taskflow_fake: TaskflowFake, tmp_path: Path, token: str | None
) -> None:
    options = {"views_token": WRITE, "views_read_token": READ}
    problem = await post(tmp_path, taskflow_fake, SIGNAL, token, **options)

    assert (problem.status, problem.code) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"topic": ""}, "topic"),
        ({"correlation_id": None}, "correlation_id"),
        ({"id": "x" * 201}, "id"),
        ({"flow_id": "f"}, "flow_id"),
    ],
)
async def test_what_is_no_signal_is_refused_by_the_field(
    taskflow_fake: TaskflowFake, tmp_path: Path, change: dict[str, Any], field: str
) -> None:
    problem = await post(tmp_path, taskflow_fake, SIGNAL | change, WRITE, views_token=WRITE)

    assert (problem.status, problem.code) == (400, "bad_request")
    assert [one["field"] for one in problem.errors or ()] == [field]


async def test_where_the_topics_are_missing_it_says_how_to_make_them(
    taskflow_fake: TaskflowFake, tmp_path: Path
) -> None:
    problem = await post(tmp_path, taskflow_fake, SIGNAL, WRITE, views_token=WRITE)

    assert (problem.status, problem.code) == (503, "unavailable")
    assert "`taskflow topics create --signals`" in (problem.detail or "")
