"""AgentRuns: the executor of an agent's runs, each a managed step."""

import asyncio
from contextlib import suppress
from typing import Any, Final

from a2a.server.agent_execution import AgentExecutor, RequestContext
from a2a.server.cluster import ConcurrentTaskModificationError
from a2a.server.context import ServerCallContext
from a2a.server.events import Event, EventQueue
from a2a.server.tasks import TaskManager
from a2a.types import (
    Message,
    SendMessageRequest,
    Task,
    TaskArtifactUpdateEvent,
    TaskState,
    TaskStatus,
    TaskStatusUpdateEvent,
)

from processor.a2a.documents import TERMINAL, state_of, task_of
from processor.a2a.request_handler import run_task
from processor.a2a.task_store import OWNER_STATE, FlowTaskStore
from processor.client import CurrentFlow, GiveUp, Step
from processor.contract import FlowStatus
from processor.contract.steps import LIVE
from processor.runtime import end_tasks

CONFLICTS_MAX: Final = 20
CANCEL_TIMEOUT_S: Final = 10.0
_ENDED: Final = frozenset({FlowStatus.FINISHED, FlowStatus.FAILED, FlowStatus.CANCELLED})


class RunOver(Exception):
    """The task ended while its agent ran; further events of the agent are not recorded."""


class AgentRuns:
    """The handler of StepWorker that runs `agent` for one message of a task.

    Runs of one task are sequential. An event is saved before `enqueue_event` returns. A failed run
    is repeated, up to the step's attempts, with the task as the earlier run left it; then the task
    fails. An artifact with the same id in each attempt is replaced.
    """

    def __init__(self, agent: AgentExecutor, store: FlowTaskStore) -> None:
        self._agent = agent
        self._store = store

    async def __call__(self, step: Step) -> dict[str, Any]:
        """Run the agent; return the task's state after the run."""
        # This replica may be behind the one that scheduled the step.
        current = await self._store.flows.until(step.flow_id, lambda c: self._is_next(c, step))
        task = None if current is None else task_of(current)
        if current is None or task is None:
            raise GiveUp("the task is gone")
        message = next((m for m in task.history if m.message_id == step.input["message_id"]), None)
        if message is None:
            raise GiveUp("the message is not in the task's history")
        if state_of(current) in TERMINAL:
            return {"state": TaskState.Name(state_of(current))}
        owner = current.flow.requester_origin.partition(":")[2]
        call = ServerCallContext(state={OWNER_STATE: owner})
        manager = TaskManager(self._store, call, task.id, task.context_id, message)
        queue = _SavingQueue(manager, task)
        request = RequestContext(
            call, SendMessageRequest(message=message), task.id, task.context_id, task=task
        )
        try:
            await self._execute(request, queue, step)
        except RunOver:
            step.log.info("the task ended while its agent ran")
        except Exception:
            if step.is_last_attempt:
                with suppress(RunOver):
                    await queue.enqueue_event(_failed(task))
            raise
        newest = self._store.flows.get(step.flow_id)
        return {"state": None if newest is None else TaskState.Name(state_of(newest))}

    async def _execute(self, request: RequestContext, queue: "_SavingQueue", step: Step) -> None:
        running = asyncio.create_task(self._agent.execute(request, queue))
        ending = asyncio.create_task(self._store.flows.until(step.flow_id, _is_to_end))
        try:
            await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
                return
            with suppress(Exception):  # raised by the agent; its task has ended
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await self._agent.cancel(request, queue)
        finally:
            await end_tasks(running, ending)
        await self._store.settle(step.flow_id)

    def _is_next(self, current: CurrentFlow | None, step: Step) -> bool:
        """Whether the flow has this step, and no earlier run of it lives."""
        if current is None or step.run_id not in current.steps:
            return False
        mine = current.steps[step.run_id]
        return not any(
            other.status in LIVE
            and other.task == run_task(self._store.agent)
            and (other.created_at, other.run_id) < (mine.created_at, mine.run_id)
            for other in current.steps.values()
            if other.runtime == "managed"
        )


class _SavingQueue(EventQueue):
    """The event queue of a run: saves each event with the task."""

    def __init__(self, manager: TaskManager, task: Task) -> None:
        self._manager = manager
        self._task = task
        self._saving = asyncio.Lock()

    async def enqueue_event(self, event: Event) -> None:
        """Save the task with `event`. Raises RunOver once the task has ended."""
        if isinstance(event, Task):
            return  # the task exists: it was created with the message of this run
        if isinstance(event, Message):
            status = TaskStatus(state=TaskState.TASK_STATE_COMPLETED, message=event)
            status.timestamp.GetCurrentTime()
            event = self._update(status)
        async with self._saving:
            await self._save(event)

    async def _save(self, event: TaskStatusUpdateEvent | TaskArtifactUpdateEvent) -> None:
        for _ in range(CONFLICTS_MAX):
            task = await self._manager.get_task()
            if task is None or task.status.state in TERMINAL:
                raise RunOver
            try:
                await self._manager.save_task_event(event)
                return
            except ConcurrentTaskModificationError:
                self._manager.invalidate()
        raise RuntimeError(f"task {self._task.id} changes too often to be saved")

    def _update(self, status: TaskStatus) -> TaskStatusUpdateEvent:
        return TaskStatusUpdateEvent(
            task_id=self._task.id, context_id=self._task.context_id, status=status
        )


def _failed(task: Task) -> TaskStatusUpdateEvent:
    status = TaskStatus(state=TaskState.TASK_STATE_FAILED)
    status.timestamp.GetCurrentTime()
    return TaskStatusUpdateEvent(task_id=task.id, context_id=task.context_id, status=status)


def _is_to_end(current: CurrentFlow | None) -> bool:
    return current is None or current.flow.status in _ENDED or current.flow.cancel_requested
