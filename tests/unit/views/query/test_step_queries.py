"""`GET /v1/steps`: managed steps by task, status, holder, flow and age."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from processor.contract.values import instant
from processor.views.model.projection import ViewedStep, project, read
from tests.support.builders import MORNING
from tests.support.recorded_deployment import Recorded
from tests.support.stub_views import flow_id

SCHEDULED = 3


def event(row_number: int, n: int, kind: str, payload: dict[str, Any]) -> bytes:
    """Event `n` of partition 0, of flow `number`."""
    return orjson.dumps(
        {
            "id": n,
            "flow_id": flow_id(row_number),
            "kind": kind,
            "payload_json": payload,
            "at": instant(MORNING + n * 1000),
            "revision": 1,
            "status": "running",
            "command_id": flow_id(n),
            "actor": "kate",
            "source": {"topic": "taskflow.commands", "partition": 0, "offset": n},
            "schema_version": 1,
        }
    )


def execution(**changes: Any) -> dict[str, Any]:
    return {
        "attempt": 0,
        "max_attempts": 3,
        "lease_ms": 60_000,
        "backoff_ms": 1000,
        "offers": 1,
        "due_at": instant(MORNING + 60_000),
        "timeout_at": None,
        "progress": None,
        "last_failure": None,
        **changes,
    }


def a_step(run_id: str, task: str = "classify", **changes: Any) -> dict[str, Any]:
    return {
        "id": flow_id(9),
        "flow_id": flow_id(1),
        "runtime": "managed",
        "child_session_key": None,
        "run_id": run_id,
        "task": task,
        "status": "pending",
        "result_json": None,
        "created_at": instant(MORNING),
        "updated_at": instant(MORNING),
        "input_json": {"mail": run_id},
        "execution": execution(),
        **changes,
    }


CREATED = {
    "controller_id": "c",
    "goal": "g",
    "owner_session_key": "kate",
    "requester_origin": "o",
    "current_step": "init",
    "state_json": {},
}


def test_a_changed_step_keeps_its_number_and_takes_the_changes() -> None:
    docs = [
        event(1, 1, "created", CREATED),
        event(1, 2, "step_scheduled", {"step": a_step("a")}),
    ]
    known: dict[str, Any] = {}
    steps: dict[tuple[int, str], ViewedStep] = {}
    project([read(doc) for doc in docs], known, steps)
    changes = {
        "updated_at": instant(MORNING + 5000),
        "status": "running",
        "child_session_key": "executor",
        "execution": execution(attempt=1, offers=0),
    }

    done = project(
        [read(event(1, 3, "step_started", {"run_id": "a", "changes": changes}))], known, steps
    )

    (step,) = done.steps.values()
    assert (step.row_number, step.flow) == (2, 1)
    assert step.step == {**a_step("a"), **changes}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, ["b", "a", "c"]),
        ({"task": "classify"}, ["b", "a"]),
        ({"status": "running"}, ["b"]),
        ({"status": "pending,running", "task": "send"}, ["c"]),
        ({"holder": "executor"}, ["b"]),
        ({"holder": "nobody"}, []),
        ({"flow": flow_id(1)}, ["b", "a", "c"]),
        ({"flow": flow_id(2)}, []),
        ({"updated_before": instant(MORNING + 4500)}, ["a", "c"]),
        ({"limit": "2"}, ["b", "a"]),
    ],
    ids=json.dumps,
)
async def test_steps_are_found_by_what_is_asked(served_steps: Any, asked: Any, found: Any) -> None:
    async with served_steps() as client, client.get("/v1/steps", params=asked) as response:
        body = await response.json()
        assert response.status == 200, body
    assert [item["run_id"] for item in body["items"]] == found
    assert all("input_json" not in item for item in body["items"])


async def test_pages_give_each_step_once(served_steps: Any) -> None:
    async with served_steps() as client:
        seen, cursor = [], None
        while True:
            asked = {"limit": "1"} | ({"cursor": cursor} if cursor else {})
            async with client.get("/v1/steps", params=asked) as response:
                body = await response.json()
            seen += [item["run_id"] for item in body["items"]]
            cursor = body["next_cursor"]
            if cursor is None:
                break
    assert seen == ["b", "a", "c"]


@pytest.fixture
def served_steps(served: Any) -> Any:
    """a (pending), b (running), c (of another task); the newest change first: b, a, c."""
    started = {
        "updated_at": instant(MORNING + 5000),
        "status": "running",
        "child_session_key": "executor",
        "execution": execution(attempt=1, offers=0),
    }
    docs = [
        event(1, 1, "created", CREATED),
        event(1, 2, "step_scheduled", {"step": a_step("c", "send")}),
        event(1, 3, "step_scheduled", {"step": a_step("a", updated_at=instant(MORNING + 1))}),
        event(1, 4, "step_scheduled", {"step": a_step("b")}),
        event(1, 5, "step_started", {"run_id": "b", "changes": started}),
    ]

    messages = [
        SimpleNamespace(
            partition=0, offset=n, timestamp=MORNING + n, key=b"k", value=doc, headers=()
        )
        for n, doc in enumerate(docs)
    ]

    @asynccontextmanager
    async def serving() -> AsyncIterator[Any]:
        async with served(Recorded(partitions=1)) as (client, view):
            await view.project(messages)
            yield client

    return serving
