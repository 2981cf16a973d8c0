"""The messages of the Tasks extension, `io.modelcontextprotocol/tasks` (SEP-2663).

Sources: `specification/draft/tasks.md` and `schema/draft/schema.ts` of
https://github.com/modelcontextprotocol/ext-tasks at commit e4345978 (2026-08-21), which belong to
the specification 2026-07-28. The SDK has no helper for the extension, so its methods are registered
with the server by these models. The tasks of the specification 2025-11-25 are another design.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from mcp_types import (
    MISSING_REQUIRED_CLIENT_CAPABILITY,
    CallToolResult,
    InputResponses,
    Notification,
    NotificationParams,
    RequestParams,
    SubscriptionFilter,
    SubscriptionsListenRequestParams,
)
from mcp_types.methods import validate_server_result
from mcp_types.version import LATEST_MODERN_VERSION
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
)
from pydantic.alias_generators import to_camel

EXTENSION: Final = "io.modelcontextprotocol/tasks"
MISSING_CAPABILITY: Final = MISSING_REQUIRED_CLIENT_CAPABILITY
REQUIRED: Final[Mapping[str, Any]] = {"requiredCapabilities": {"extensions": {EXTENSION: {}}}}
"""`data` of the error for a client whose request does not declare the extension."""

INPUT_RESPONSES: Final[TypeAdapter[InputResponses]] = TypeAdapter(InputResponses)


class Task(BaseModel):
    """The fields of every task. `ttl_ms`: milliseconds from the creation; None: no limit."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    task_id: str
    status_message: str | None = None
    created_at: str
    last_updated_at: str
    ttl_ms: int | None
    poll_interval_ms: int | None = None

    @model_serializer(mode="wrap")
    def _with_ttl(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Add `ttlMs`: the SDK leaves nulls out, but the field is required and may be null."""
        return {"ttlMs": self.ttl_ms, **serialize(self)}


_COMMON: Final = [to_camel(name) for name in Task.model_fields]


class WorkingTask(Task):
    """The request is being processed."""

    status: Literal["working"] = "working"


class InputRequiredTask(Task):
    """The task needs input of the client: `input_requests` are those without a response."""

    status: Literal["input_required"] = "input_required"
    input_requests: Annotated[dict[str, Any], Field(min_length=1)]


class CompletedTask(Task):
    """The request has a result, which may be a tool's failure."""

    status: Literal["completed"] = "completed"
    result: dict[str, Any]


class FailedTask(Task):
    """The request ended with a JSON-RPC error."""

    status: Literal["failed"] = "failed"
    error: dict[str, Any]


class CancelledTask(Task):
    """The request was cancelled before it was completed."""

    status: Literal["cancelled"] = "cancelled"


DetailedTask = Annotated[
    WorkingTask | InputRequiredTask | CompletedTask | FailedTask | CancelledTask,
    Field(discriminator="status"),
]


class TaskParams(RequestParams):
    """Parameters of `tasks/get` and `tasks/cancel`."""

    task_id: str


class UpdateTaskParams(TaskParams):
    """Parameters of `tasks/update`: responses by the keys of the requests."""

    input_responses: dict[str, Any]


class TaskSubscriptionFilter(SubscriptionFilter):
    """The filter of `subscriptions/listen` with the extension's fields."""

    task_ids: list[str] | None = None


class ListenParams(SubscriptionsListenRequestParams):
    """Parameters of `subscriptions/listen` with the extension's fields."""

    notifications: TaskSubscriptionFilter


class TaskNotificationParams(NotificationParams):
    """A DetailedTask, field by field."""

    model_config = ConfigDict(extra="allow")


class TaskNotification(Notification[TaskNotificationParams, Literal["notifications/tasks"]]):
    """A task has changed."""

    method: Literal["notifications/tasks"] = "notifications/tasks"


def handle(task: Task) -> dict[str, Any]:
    """Return the result of `tools/call` for a new task: the fields of every task and its status."""
    said = fields_of(task)
    common = {name: said[name] for name in (*_COMMON, "status") if name in said}
    return {"resultType": "task", **common}


def detailed(task: Task) -> dict[str, Any]:
    """Return the result of `tasks/get`."""
    return {"resultType": "complete", **fields_of(task)}


def fields_of(task: Task) -> dict[str, Any]:
    """Return a task's fields by their JSON names; absent ones are left out."""
    return task.model_dump(mode="json", by_alias=True, exclude_none=True)


def tool_result(value: Mapping[str, Any]) -> CallToolResult:
    """Read a CallToolResult. Raises ValidationError."""
    return CallToolResult.model_validate(value)


def check_question(value: Mapping[str, Any]) -> None:
    """Check an InputRequiredResult against the protocol. Raises ValidationError."""
    asked = {name: value[name] for name in ("resultType", "inputRequests")}
    validate_server_result("tools/call", LATEST_MODERN_VERSION, asked)
