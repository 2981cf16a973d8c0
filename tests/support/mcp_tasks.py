"""What a client of the Tasks extension sends, by the official SDK."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, cast

from mcp import Client
from mcp.client import ClientExtension, NotificationBinding
from mcp_types import (
    CallToolRequest,
    CallToolRequestParams,
    Request,
    RequestParamsMeta,
    Result,
    SubscriptionFilter,
    SubscriptionsListenRequest,
    SubscriptionsListenRequestParams,
)
from pydantic import ConfigDict, TypeAdapter

from processor.mcp.tasks.extension import KEY_META
from processor.mcp.tasks.protocol import (
    EXTENSION,
    DetailedTask,
    TaskNotificationParams,
    TaskParams,
    UpdateTaskParams,
)
from tests.support.machine import patience

TIMEOUT_S = patience(20.0)
DETAILED_TASK: Final[TypeAdapter[DetailedTask]] = TypeAdapter(DetailedTask)


class TaskRequest(Request[TaskParams, Literal["tasks/get", "tasks/cancel"]]):
    """A client's request about a task; the header `Mcp-Name` is the task's id."""

    name_param = "taskId"


class UpdateTaskRequest(Request[UpdateTaskParams, Literal["tasks/update"]]):
    """A client's responses for a task; the header `Mcp-Name` is the task's id."""

    name_param = "taskId"
    method: Literal["tasks/update"] = "tasks/update"


class AnyResult(Result):
    """A result as it came, whatever fields it has."""

    model_config = ConfigDict(extra="allow")


async def raw(client: Client, request: Request[Any, Any]) -> dict[str, Any]:
    """The result of a request, as it came. Raises MCPError."""
    result = await client.session.send_request(request, AnyResult)
    return result.model_dump(by_alias=True, exclude_unset=True)


async def called(
    client: Client, name: str, arguments: Mapping[str, Any], *, key: str | None = None
) -> dict[str, Any]:
    """The result of a call, as it came."""
    meta = None if key is None else cast("RequestParamsMeta", {KEY_META: key})
    params = CallToolRequestParams(name=name, arguments=dict(arguments), _meta=meta)
    return await raw(client, CallToolRequest(params=params))


async def gotten(client: Client, task_id: str) -> dict[str, Any]:
    """The task, which is one of the specification's."""
    request = TaskRequest(method="tasks/get", params=TaskParams(task_id=task_id))
    task = await raw(client, request)
    assert task["resultType"] == "complete"
    DETAILED_TASK.validate_python(task)
    return task


async def updated(client: Client, task_id: str, responses: Mapping[str, Any]) -> dict[str, Any]:
    params = UpdateTaskParams(task_id=task_id, input_responses=dict(responses))
    return await raw(client, UpdateTaskRequest(params=params))


class TaskListener(ClientExtension):
    """The Tasks extension of a client that is notified; `tasks` are those that came, in order."""

    identifier = EXTENSION

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.began = asyncio.Event()
        """Set once one has come: from then on no change is missed."""
        self.ended = asyncio.Event()
        """Set once one of them has ended."""

    def notifications(self) -> Sequence[NotificationBinding[Any]]:
        async def came(params: TaskNotificationParams) -> None:
            task = params.model_dump(by_alias=True, exclude_unset=True)
            self.tasks.append(task)
            self.began.set()
            if task["status"] in ("completed", "failed", "cancelled"):
                self.ended.set()

        binding = NotificationBinding(
            method="notifications/tasks", params_type=TaskNotificationParams, handler=came
        )
        return [binding]

    async def listen(self, client: Client, *task_ids: str) -> None:
        """Listen until cancelled."""
        wanted = SubscriptionFilter.model_validate({"taskIds": list(task_ids)})
        params = SubscriptionsListenRequestParams(notifications=wanted)
        await raw(client, SubscriptionsListenRequest(params=params))


async def cancelled(client: Client, task_id: str) -> dict[str, Any]:
    request = TaskRequest(method="tasks/cancel", params=TaskParams(task_id=task_id))
    return await raw(client, request)


async def until(
    client: Client, task_id: str, *statuses: str, message: str | None = None
) -> dict[str, Any]:
    """Ask for the task until it has one of these statuses, and this message if one is given."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            task = await gotten(client, task_id)
            said = task.get("statusMessage")
            if task["status"] in statuses and message in (None, said):
                return task
            await asyncio.sleep(0.02)
