"""Tasks of an MCP server: its executors' tools, called by the official client."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from mcp import Client
from mcp.client import advertise
from mcp.shared.exceptions import MCPError
from mcp_types import Request

from processor.client import FlowClient, GiveUp, Step, StepWorker
from processor.mcp.tasks.executor_tool import ExecutorTool
from processor.mcp.tasks.progress import CONTROLLER
from processor.mcp.tasks.protocol import EXTENSION
from processor.runtime import end_tasks
from processor.testing.fake import TaskflowFake
from tests.support.machine import patience
from tests.support.mcp_server import OWNER, in_a_task, mcp_client
from tests.support.mcp_tasks import TaskListener, called, cancelled, gotten, raw, until, updated

CONVERT = ExecutorTool(
    name="convert",
    description="Convert a file.",
    input_schema={
        "type": "object",
        "properties": {"file": {"type": "string"}},
        "required": ["file"],
    },
    max_attempts=2,
    backoff_ms=0,
)

ASK = {
    "method": "elicitation/create",
    "params": {
        "mode": "form",
        "message": "Which page?",
        "requestedSchema": {"type": "object", "properties": {"page": {"type": "integer"}}},
    },
}
Handler = Callable[[Step], Awaitable[Any]]


@asynccontextmanager
async def executor(handler: Handler) -> AsyncIterator[None]:
    """An executor of the tool's task, inside the block."""
    async with StepWorker({"convert": handler}, group="converters") as worker:
        working = asyncio.create_task(worker.run())
        yield
        worker.stop()
        await working


@pytest_asyncio.fixture
async def client(taskflow_fake: TaskflowFake, tmp_path: Path) -> AsyncIterator[Client]:
    async with in_a_task(
        mcp_client(tmp_path, taskflow_fake, extension=advertise(EXTENSION), tools=[CONVERT])
    ) as connected:
        yield connected


async def test_a_call_is_a_task_that_an_executor_completes(
    client: Client, taskflow_fake: TaskflowFake
) -> None:
    async def convert(step: Step) -> dict[str, Any]:
        return {"pages": len(step.input["file"])}

    made = await called(client, "convert", {"file": "abc"})
    seen = await gotten(client, made["taskId"])
    async with executor(convert):
        done = await until(client, made["taskId"], "completed")

    assert made["resultType"] == "task"
    assert (made["status"], made["ttlMs"]) == ("working", None)
    assert (seen["status"], seen["createdAt"]) == ("working", made["createdAt"])
    assert done["result"]["structuredContent"] == {"pages": 3}
    assert done["result"]["isError"] is False
    assert done["ttlMs"] > 30 * 24 * 3_600_000 - 1
    flow = taskflow_fake.flow(made["taskId"])
    assert flow is not None
    assert (flow.status, flow.owner_session_key) == ("finished", OWNER)
    assert (await taskflow_fake.verify()).ok


async def test_a_tool_that_failed_is_completed_with_an_error(client: Client) -> None:
    async def convert(step: Step) -> None:
        raise GiveUp("the file is damaged")

    async with executor(convert):
        made = await called(client, "convert", {"file": "abc"})
        done = await until(client, made["taskId"], "completed", "failed")

    assert done["status"] == "completed"
    assert done["result"]["isError"] is True
    assert done["result"]["content"][0]["text"] == "the file is damaged"


async def test_a_question_is_input_required_and_its_response_goes_to_the_next_call(
    client: Client, taskflow_fake: TaskflowFake
) -> None:
    inputs = []

    async def convert(step: Step) -> Any:
        inputs.append(step.input)
        if "inputResponses" in step.input:
            return f"page {step.input['inputResponses']['which']['content']['page']}"
        asked = {"resultType": "input_required", "inputRequests": {"which": ASK}}
        return {**asked, "requestState": "s1"}

    async with executor(convert):
        made = await called(client, "convert", {"file": "abc"})
        task_id = made["taskId"]
        asked = await until(client, task_id, "input_required")
        (key,) = asked["inputRequests"]
        response = {"action": "accept", "content": {"page": 7}}
        ignored = await updated(client, task_id, {"call-1.unknown": response})
        again = await gotten(client, task_id)
        acknowledged = await updated(client, task_id, {key: response})
        late = await updated(client, task_id, {key: {"action": "decline"}})
        done = await until(client, task_id, "completed")

    assert asked["inputRequests"][key] == ASK
    assert again["status"] == "input_required"
    for result in (ignored, acknowledged, late):
        assert result.keys() - {"_meta"} == {"resultType"}
    assert done["result"]["content"][0]["text"] == "page 7"
    assert inputs[1]["inputResponses"] == {"which": response}
    assert (inputs[1]["requestState"], inputs[1]["file"]) == ("s1", "abc")
    resumed = [event for event in taskflow_fake.events(task_id) if event.kind == "resumed"]
    assert len(resumed) == 1


async def test_two_questions_may_be_answered_one_by_one(client: Client) -> None:
    async def convert(step: Step) -> Any:
        if "inputResponses" in step.input:
            return sorted(step.input["inputResponses"])
        return {"resultType": "input_required", "inputRequests": {"a": ASK, "b": ASK}}

    response = {"action": "accept", "content": {"page": 1}}
    async with executor(convert):
        task_id = (await called(client, "convert", {"file": "abc"}))["taskId"]
        asked = await until(client, task_id, "input_required")
        first, second = sorted(asked["inputRequests"])
        await updated(client, task_id, {first: response})
        left = await gotten(client, task_id)
        await updated(client, task_id, {second: response})
        done = await until(client, task_id, "completed")

    assert left["inputRequests"].keys() == {second}
    assert done["result"]["structuredContent"] == ["a", "b"]


async def test_a_wait_of_a_program_that_speaks_no_mcp_is_a_form(client: Client) -> None:
    task_id = (await called(client, "convert", {"file": "abc"}))["taskId"]
    async with FlowClient(session=OWNER) as own:
        await own.flow(task_id).wait_for("approvals", "4711", prompt="May I?")
    asked = await until(client, task_id, "input_required")
    ((key, request),) = asked["inputRequests"].items()
    await updated(client, task_id, {key: {"action": "accept", "content": {"response": "yes"}}})
    goes_on = await gotten(client, task_id)

    assert "4711" not in key
    assert request["params"]["message"] == "May I?"
    assert goes_on["status"] == "working"


async def test_a_cancelled_task_ends_with_its_step(
    client: Client, taskflow_fake: TaskflowFake
) -> None:
    task_id = (await called(client, "convert", {"file": "abc"}))["taskId"]
    await cancelled(client, task_id)
    task = await gotten(client, task_id)
    await cancelled(client, task_id)

    assert task["status"] == "cancelled"
    assert taskflow_fake.steps(task_id)["call-1"].status == "cancelled"


async def test_a_task_that_an_operator_failed_is_failed(client: Client) -> None:
    task_id = (await called(client, "convert", {"file": "abc"}))["taskId"]
    async with FlowClient(session=OWNER) as own:
        await own.flow(task_id).fail("the shop is closed")
    task = await until(client, task_id, "failed")

    assert task["error"] == {"code": -32603, "message": "the shop is closed"}


async def test_progress_is_the_status_message(client: Client) -> None:
    go_on = asyncio.Event()

    async def convert(step: Step) -> str:
        await step.progress("half of it")
        await go_on.wait()
        return "done"

    async with executor(convert):
        task_id = (await called(client, "convert", {"file": "abc"}))["taskId"]
        await until(client, task_id, "working", message="half of it")
        go_on.set()
        await until(client, task_id, "completed")


async def asking(step: Step) -> dict[str, Any]:
    return {"resultType": "input_required", "inputRequests": {"which": ASK}}


async def test_the_same_key_is_the_same_task_and_for_one_call_only(
    client: Client, taskflow_fake: TaskflowFake
) -> None:
    key = str(uuid4())
    first = await called(client, "convert", {"file": "abc"}, key=key)
    second = await called(client, "convert", {"file": "abc"}, key=key)
    with pytest.raises(MCPError, match="another call"):
        await called(client, "convert", {"file": "xyz"}, key=key)
    with pytest.raises(MCPError, match="must be a UUID"):
        await called(client, "convert", {"file": "xyz"}, key="guessable")

    assert first["taskId"] == second["taskId"]
    async with executor(asking):
        await until(client, first["taskId"], "input_required")
        third = await called(client, "convert", {"file": "abc"}, key=key)
    assert (third["resultType"], third["status"]) == ("task", "input_required")
    assert "inputRequests" not in third, "a client would take it for a result that asks for input"
    assert len(taskflow_fake.steps(first["taskId"])) == 1


async def test_what_is_no_task_of_the_session_is_not_found(client: Client) -> None:
    async with FlowClient(session="bob") as bob, FlowClient(session=OWNER) as own:
        of_bob = await bob.create("of another one")
        no_task = await own.create("no task")
        no_call = await own.create("no call", controller=CONTROLLER, running=True)
    for task_id in (str(uuid4()), "no uuid", of_bob.id, no_task.id, no_call.id):
        for request in (gotten, cancelled):
            refused = await refusal(client, request, task_id)
            assert "Task not found" in str(refused)
            assert refused.code == -32602


async def refusal(client: Client, request: Callable[..., Awaitable[Any]], task_id: str) -> MCPError:
    """The last one: where the views are behind, it says to ask again."""
    async with asyncio.timeout(patience(20)):
        while True:
            with pytest.raises(MCPError) as refused:
                await request(client, task_id)
            if "ask again" not in str(refused.value):
                return refused.value
            await asyncio.sleep(0.02)


async def test_superseded_methods_are_not_there(client: Client) -> None:
    for method in ("tasks/result", "tasks/list"):
        with pytest.raises(MCPError) as refused:
            await raw(client, Request(method=method, params=None))
        assert refused.value.code == -32601


async def test_arguments_that_do_not_fit_are_an_error_of_the_tool(client: Client) -> None:
    result = await called(client, "convert", {"file": 7})

    assert result["isError"] is True
    assert "$.file" in result["structuredContent"]["message"]


async def test_a_client_that_does_not_declare_the_extension_gets_no_task(
    taskflow_fake: TaskflowFake, tmp_path: Path
) -> None:
    async with mcp_client(tmp_path, taskflow_fake, tools=[CONVERT]) as client:
        for request in (called(client, "convert", {"file": "abc"}), gotten(client, str(uuid4()))):
            with pytest.raises(MCPError) as refused:
                await request
            assert refused.value.code == -32021
            required = refused.value.data["requiredCapabilities"]
            assert required == {"extensions": {"io.modelcontextprotocol/tasks": {}}}
    assert taskflow_fake.events() == []


async def test_who_listens_gets_each_change_as_a_whole_task(
    taskflow_fake: TaskflowFake, tmp_path: Path
) -> None:
    async def convert(step: Step) -> str:
        await step.progress("half of it")
        return "done"

    listener = TaskListener()
    async with mcp_client(tmp_path, taskflow_fake, extension=listener, tools=[CONVERT]) as client:
        task_id = (await called(client, "convert", {"file": "abc"}))["taskId"]
        listening = asyncio.create_task(listener.listen(client, task_id, str(uuid4())))
        async with asyncio.timeout(patience(20)):
            await listener.began.wait()
            async with executor(convert):
                await listener.ended.wait()
        shown = await gotten(client, task_id)
        await end_tasks(listening)

    last = listener.tasks[-1]
    assert {task["taskId"] for task in listener.tasks} == {task_id}
    assert listener.tasks[0]["status"] == "working"
    assert last["_meta"].keys() == {"io.modelcontextprotocol/subscriptionId"}
    fields = shown.keys() - {"_meta", "resultType"}
    assert {name: last[name] for name in fields} == {name: shown[name] for name in fields}
