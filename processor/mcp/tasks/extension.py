"""Serve the Tasks extension: calls of executors' tools, `tasks/*`, `subscriptions/listen`."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import mcp_types as types
import orjson
from mcp.server.lowlevel import Server
from mcp.server.subscriptions import SUBSCRIPTION_ID_META_KEY
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from processor.errors import TaskflowError
from processor.mcp.context import RequestContext
from processor.mcp.flow_session import UnknownFlow
from processor.mcp.tasks.executor_tool import ExecutorTool
from processor.mcp.tasks.protocol import (
    EXTENSION,
    INPUT_RESPONSES,
    MISSING_CAPABILITY,
    REQUIRED,
    ListenParams,
    TaskNotification,
    TaskNotificationParams,
    TaskParams,
    UpdateTaskParams,
    detailed,
    fields_of,
    handle,
)
from processor.mcp.tasks.task_driver import TaskDriver
from processor.mcp.tasks.task_store import TaskRefused, TaskStore
from processor.mcp.tools.results import refusal

KEY_META: Final = "taskflow/key"
"""Key in the `_meta` of a call: a random UUID of the client; the same UUID is the same task."""
ARGUMENTS_MAX_BYTES: Final = 60 * 1024
LISTENED_MAX: Final = 100
"""Limit of the tasks of one subscription."""
LISTENERS_MAX: Final = 64

Json = dict[str, Any]


class TasksExtension:
    """The tools of executors, whose calls are tasks."""

    def __init__(self, store: TaskStore, tools: Sequence[ExecutorTool], driver: TaskDriver) -> None:
        self.tools = {tool.name: tool for tool in tools}
        self._store = store
        self._driver = driver
        self._listeners = 0

    def register(self, server: Server[Any]) -> None:
        """Add the extension's methods to a server, and let it declare the extension."""
        server.extensions[EXTENSION] = {}
        server.add_request_handler("tasks/get", TaskParams, self._get)
        server.add_request_handler("tasks/update", UpdateTaskParams, self._update)
        server.add_request_handler("tasks/cancel", TaskParams, self._cancel)
        server.add_request_handler("subscriptions/listen", ListenParams, self._listen)

    async def call(
        self, ctx: RequestContext, tool: ExecutorTool, arguments: Json
    ) -> types.CallToolResult | Json:
        """Create the task of a call and return its handle. Raises MCPError."""
        _ensure_declared(ctx)
        if (fault := tool.fault(arguments)) is not None:
            return refusal("invalid_arguments", fault)
        if len(orjson.dumps(arguments)) > ARGUMENTS_MAX_BYTES:
            return refusal("invalid_arguments", "The arguments take more than 60 KiB.")
        key = _key_of(ctx.meta or {})
        async with _as_protocol_errors("make"):
            return handle(await self._store.create(tool, arguments, key))

    async def _get(self, ctx: RequestContext, params: TaskParams) -> Json:
        _ensure_declared(ctx)
        async with _as_protocol_errors("retrieve"):
            return detailed(await self._store.get(_id_of(params)))

    async def _update(self, ctx: RequestContext, params: UpdateTaskParams) -> Json:
        _ensure_declared(ctx)
        try:
            INPUT_RESPONSES.validate_python(params.input_responses)
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"][:1]))
            message = f"inputResponses.{where} is no response to an input request"
            raise MCPError(types.INVALID_PARAMS, message) from None
        async with _as_protocol_errors("update"):
            await self._store.update(_id_of(params), params.input_responses)
        return {}

    async def _cancel(self, ctx: RequestContext, params: TaskParams) -> Json:
        _ensure_declared(ctx)
        async with _as_protocol_errors("cancel"):
            await self._store.cancel(_id_of(params))
        return {}

    async def _listen(
        self, ctx: RequestContext, params: ListenParams
    ) -> types.SubscriptionsListenResult:
        """Send each subscribed task after each change, until the client disconnects."""
        wanted = params.notifications.task_ids or []
        if wanted:
            _ensure_declared(ctx)
        if len(wanted) > LISTENED_MAX:
            raise MCPError(types.INVALID_PARAMS, f"At most {LISTENED_MAX} tasks can be listened to")
        if self._listeners >= LISTENERS_MAX:
            raise MCPError(types.INTERNAL_ERROR, "Subscription limit reached")
        self._listeners += 1
        try:
            async with _as_protocol_errors("retrieve"):
                known = [task_id for task_id in wanted if await self._is_known(task_id)]
            await self._send_changes(ctx, known)
        finally:
            self._listeners -= 1
        return types.SubscriptionsListenResult()

    async def _send_changes(self, ctx: RequestContext, known: Sequence[str]) -> None:
        meta = {SUBSCRIPTION_ID_META_KEY: ctx.request_id}
        accepted = types.SubscriptionFilter.model_validate({"taskIds": known} if known else {})
        with self._driver.listening(frozenset(known)) as changes:
            await ctx.session.send_notification(
                types.SubscriptionsAcknowledgedNotification(
                    params=types.SubscriptionsAcknowledgedNotificationParams(
                        notifications=accepted, _meta=meta
                    )
                ),
                related_request_id=ctx.request_id,
            )
            sent: dict[str, Json] = {}
            while True:
                for task_id in await changes.take():
                    try:
                        fields = fields_of(await self._store.look(task_id))
                    except TaskflowError:
                        continue  # pruned, or the views are away; the client can call tasks/get
                    if sent.get(task_id) != fields:
                        sent[task_id] = fields
                        await _notify(ctx, {**fields, "_meta": meta})

    async def _is_known(self, task_id: str) -> bool:
        try:
            await self._store.look(_uuid(task_id))
        except UnknownFlow:
            return False
        return True


async def _notify(ctx: RequestContext, params: Mapping[str, Any]) -> None:
    notification = TaskNotification(params=TaskNotificationParams.model_validate(params))
    await ctx.session.send_notification(
        notification,  # type: ignore[arg-type]  # the SDK's union has the core's alone
        related_request_id=ctx.request_id,
    )


def _ensure_declared(ctx: RequestContext) -> None:
    """Raises MCPError unless the request declares the extension."""
    declared = ctx.session.client_capabilities
    modern = ctx.protocol_version in MODERN_PROTOCOL_VERSIONS
    if not modern or declared is None or EXTENSION not in (declared.extensions or {}):
        message = f"Missing required client capability: the extension {EXTENSION}"
        raise MCPError(MISSING_CAPABILITY, message, REQUIRED)


@asynccontextmanager
async def _as_protocol_errors(what: str) -> AsyncIterator[None]:
    """Turn taskflow's errors into errors of JSON-RPC."""
    try:
        yield
    except UnknownFlow:
        message = f"Failed to {what} task: Task not found"
        raise MCPError(types.INVALID_PARAMS, message) from None
    except TaskRefused as error:
        raise MCPError(types.INVALID_PARAMS, f"Failed to {what} task: {error}") from None
    except TaskflowError as error:
        raise MCPError(types.INTERNAL_ERROR, f"Failed to {what} task: {error}") from None


def _id_of(params: TaskParams) -> str:
    """The task's id. Raises UnknownFlow if it is not a UUID."""
    return _uuid(params.task_id)


def _uuid(text: str) -> str:
    try:
        if str(UUID(text)) == text:
            return text
    except ValueError:
        pass
    raise UnknownFlow(text)


def _key_of(meta: Mapping[str, Any]) -> UUID | None:
    key = meta.get(KEY_META)
    if key is None:
        return None
    try:
        return UUID(key)
    except (ValueError, AttributeError, TypeError):
        raise MCPError(types.INVALID_PARAMS, f"_meta {KEY_META} must be a UUID") from None
