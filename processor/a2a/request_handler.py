"""FlowRequestHandler: the SDK's request handler, whose agent runs are managed steps."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final
from uuid import UUID, uuid5

from a2a.server.agent_execution import AgentExecutor
from a2a.server.cluster import ConcurrentTaskModificationError, TaskVersion
from a2a.server.context import ServerCallContext
from a2a.server.events import Event
from a2a.server.request_handlers import DefaultRequestHandlerV2, validate_request_params
from a2a.types import (
    AgentCard,
    Message,
    SendMessageRequest,
    Task,
    TaskState,
    TaskStatus,
)
from a2a.utils.errors import (
    InternalError,
    InvalidParamsError,
    TaskNotFoundError,
    UnsupportedOperationError,
)
from a2a.utils.input_mode_validator import validate_input_modes
from a2a.utils.task import apply_history_length, validate_history_length

from processor.a2a.documents import TERMINAL, flow_id_of, state_of, task_of, version_of
from processor.a2a.event_stream import FlowEventStream
from processor.a2a.task_store import FlowTaskStore
from processor.client import CurrentFlow, flow_id_for
from processor.contract.outcomes import Code, Verdict
from processor.contract.steps import LIVE

RUN_ID_MAX: Final = 256
CONFLICTS_MAX: Final = 20


def run_id_of(message_id: str) -> str:
    """Return the run id of the step that works on a message."""
    run_id = f"message {message_id}"
    return run_id if len(run_id) <= RUN_ID_MAX else f"message {flow_id_for(message_id)}"


def run_task(agent: str) -> str:
    """Return the task of the steps that an agent's executors do."""
    return f"a2a/{agent}"


class FlowRequestHandler(DefaultRequestHandlerV2):
    """Serves the tasks of `store`; any replica serves any of them.

    A message is written into its task's flow, and a managed step named after the message's id works
    on it. A repeated message, to any replica and after any time, is worked on once. A run whose
    process died is repeated elsewhere. Executors (`AgentRuns`) run `agent`, in this or another
    process; the handler does not.

    `lease_ms` (milliseconds) and `max_attempts`: of these steps. Other arguments are those of
    DefaultRequestHandlerV2.
    """

    def __init__(
        self,
        agent: AgentExecutor,
        agent_card: AgentCard,
        store: FlowTaskStore,
        events: FlowEventStream,
        *,
        lease_ms: int = 60_000,
        max_attempts: int = 3,
        **options: Any,
    ) -> None:
        super().__init__(agent, store, agent_card, event_stream=events, **options)
        self._store = store
        self._events = events
        self._lease_ms = lease_ms
        self._max_attempts = max_attempts

    @validate_request_params
    async def on_message_send(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> Task | Message:
        """Return the task once its run has ended, or at once if the client asks for that."""
        current, run_id = await self._accept(params, context)
        if not params.configuration.return_immediately:
            await self._store.flows.until(current.flow.id, _has_run(run_id))
            await self._store.settle(current.flow.id)
        newest = await self._store.get(params.message.task_id, context)
        if newest is None:
            raise TaskNotFoundError
        return apply_history_length(newest.task, params.configuration)

    @validate_request_params
    async def on_message_send_stream(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> AsyncGenerator[Event, None]:
        """Yield the task, then its events until the run of the message has ended."""
        current, run_id = await self._accept(params, context)
        task = task_of(current)
        assert task is not None
        yield apply_history_length(task, params.configuration)
        over = _has_run(run_id)
        follow = self._events.follow(task.id, version_of(current), until=over)
        async with aclosing(follow) as events:
            async for event in events:
                yield event.event

    async def _accept(
        self, params: SendMessageRequest, context: ServerCallContext
    ) -> tuple[CurrentFlow, str]:
        """Record the message and schedule its step; return the task's flow and the step's run id.

        Sets `task_id` and `context_id` of the message.
        """
        validate_history_length(params.configuration)
        if self._validate_input_modes:
            validate_input_modes(params.message, self._agent_card)
        message = params.message
        config = None
        if self._push_config_store is not None and params.configuration.HasField(
            "task_push_notification_config"
        ):
            config = params.configuration.task_push_notification_config
            await self._reject_unsafe_push_url(config.url)
        run_id = run_id_of(message.message_id)
        task_id = message.task_id or flow_id_for(
            f"{self._store.agent} {self._store.origin(context)} {message.message_id}"
        )
        flow_id = flow_id_of(task_id)
        for _ in range(CONFLICTS_MAX):
            current = await self._store.current(task_id, context)
            if current is None and message.task_id:
                raise TaskNotFoundError(f"Task {task_id} not found")
            if current is not None and run_id in current.steps:
                self._place(message, task_id, current)
                return current, run_id
            try:
                await self._record(message, task_id, current, context)
                break
            except ConcurrentTaskModificationError:
                continue  # the agent, or another replica, has saved the task meanwhile
        else:
            raise InternalError(f"Task {task_id} changes too often to take a message")
        if self._push_config_store is not None and config is not None:
            await self._push_config_store.set_info(task_id, config, context)
        await self.schedule(flow_id, message.message_id)
        current = await self._store.flows.until(
            flow_id, lambda c: c is not None and run_id in c.steps
        )
        assert current is not None
        return current, run_id

    def _place(self, message: Message, task_id: str, current: CurrentFlow) -> None:
        context_id = current.flow.state_json["context_id"]
        if message.context_id and message.context_id != context_id:
            raise InvalidParamsError(
                f"Context {message.context_id} does not match context {context_id} of task "
                f"{task_id}"
            )
        message.task_id, message.context_id = task_id, context_id

    async def _record(
        self,
        message: Message,
        task_id: str,
        current: CurrentFlow | None,
        context: ServerCallContext,
    ) -> None:
        """Add the message to the task's history unless it is there."""
        flow_id = UUID(flow_id_of(task_id))
        seed = uuid5(flow_id, f"message {message.message_id}")
        task = None if current is None else task_of(current)
        if current is None or task is None:
            message.task_id = task_id
            message.context_id = message.context_id or str(uuid5(flow_id, "context"))
            created = Task(
                id=task_id,
                context_id=message.context_id,
                status=TaskStatus(state=TaskState.TASK_STATE_SUBMITTED),
                history=[message],
            )
            created.status.timestamp.GetCurrentTime()
            await self._store.write(created, created, TaskVersion.MISSING, context, seed=seed)
            return
        self._place(message, task_id, current)
        if any(known.message_id == message.message_id for known in task.history):
            return
        if state_of(current) in TERMINAL:
            raise UnsupportedOperationError(
                f"Task {task_id} is in terminal state: {TaskState.Name(state_of(current))}"
            )
        if task.status.HasField("message"):
            task.history.append(task.status.message)
            task.status.ClearField("message")
        task.history.append(message)
        version = TaskVersion(version_of(current))
        await self._store.write(task, None, version, context, seed=seed)

    async def schedule(self, flow_id: str, message_id: str) -> None:
        """Schedule the step that works on the message, unless the flow has it already."""
        current = self._store.flows.get(flow_id)
        assert current is not None
        outcome = await self._store.send(
            {
                "kind": "schedule_step",
                "flow_id": flow_id,
                "issued_by": current.flow.owner_session_key,
                "command_id": command_id_of(flow_id, message_id),
                "run_id": run_id_of(message_id),
                "task": run_task(self._store.agent),
                "input_json": {"message_id": message_id},
                "lease_ms": self._lease_ms,
                "max_attempts": self._max_attempts,
            }
        )
        known = (Code.STEP_EXISTS, Code.IDEMPOTENCY_CONFLICT)
        if (
            Verdict.ACCEPTED not in (outcome.verdict, outcome.original)
            and outcome.code not in known
        ):
            raise UnsupportedOperationError(f"The message was refused: {outcome.message}")


def command_id_of(flow_id: str, message_id: str) -> str:
    """Return the `command_id` of a message's `schedule_step`: the message's id if it is a UUID in
    the contract's form, else a UUIDv5 of it."""
    try:
        if str(UUID(message_id)) == message_id:
            return message_id
    except ValueError:
        pass
    return str(uuid5(UUID(flow_id), message_id))


def _has_run(run_id: str) -> Callable[[CurrentFlow | None], bool]:
    """Whether the step has ended and, if it failed, the task has ended too."""

    def over(current: CurrentFlow | None) -> bool:
        if current is None or run_id not in current.steps:
            return True
        step = current.steps[run_id]
        failed = step.status == "failed" and state_of(current) not in TERMINAL
        return step.status not in LIVE and not failed

    return over
