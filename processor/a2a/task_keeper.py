"""TaskKeeper: completes the commands of savers that died."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from a2a.server.cluster import ConcurrentTaskModificationError, TaskVersion
from a2a.server.context import ServerCallContext
from a2a.types import Role, TaskState, TaskStatus, TaskStatusUpdateEvent
from a2a.utils.errors import A2AError

from processor.a2a.documents import TERMINAL, state_of, task_of, version_of
from processor.a2a.moves import next_move
from processor.a2a.request_handler import run_id_of, run_task
from processor.a2a.task_store import OWNER_STATE, FlowTaskStore, controller
from processor.client import CurrentFlow
from processor.contract import StepStatus
from processor.errors import TaskflowError

GRACE_S: Final = 1.0
"""Seconds without an event after which a flow's saver is taken for dead."""

_log = logging.getLogger(__name__)


class TaskKeeper:
    """Checks each flow some time after its newest event; runs in every replica.

    - A flow whose status lags its task's state is moved (see `moves`).
    - A task whose run failed for good, for instance by a lost lease, becomes FAILED.
    - A recorded message without a step gets its step.

    Its commands depend on the flow alone, so of several keepers one succeeds.
    """

    def __init__(
        self,
        store: FlowTaskStore,
        schedule: Callable[[str, str], Awaitable[None]],
        *others: Callable[[CurrentFlow], Awaitable[None]],
        grace_s: float = GRACE_S,
    ) -> None:
        """`schedule(flow id, message id)` schedules the step of a message. `others` are called with
        flows that are not tasks of the agent. `grace_s`: see GRACE_S."""
        self._store = store
        self._schedule = schedule
        self._others = others
        self._grace_s = grace_s
        self._touched: dict[str, float] = {}
        store.flows.listen(self._touch)

    async def run(self) -> None:
        """Check flows until cancelled."""
        loop = asyncio.get_running_loop()
        for current in self._store.flows:
            self._touched[current.flow.id] = loop.time()
        while True:
            await asyncio.sleep(self._grace_s)
            due = [
                flow_id
                for flow_id, at in self._touched.items()
                if loop.time() - at >= self._grace_s
            ]
            for flow_id in due:
                touched_at = self._touched[flow_id]
                if await self._keep(flow_id) and self._touched.get(flow_id) == touched_at:
                    del self._touched[flow_id]

    async def _keep(self, flow_id: str) -> bool:
        """Complete a flow; false if it must be tried again."""
        current = self._store.flows.get(flow_id)
        if current is None:
            return True
        try:
            if current.flow.controller_id != controller(self._store.agent):
                for other in self._others:
                    await other(current)
            else:
                await self._keep_task(current)
        except ConcurrentTaskModificationError:
            return True  # another replica was first; its event touches the flow again
        except (TaskflowError, TimeoutError) as error:
            _log.warning("flow %s is not where its task is: %r", flow_id, error)
            return False
        except A2AError as error:
            # The processor refuses it as the flow stands: its next event is another occasion.
            _log.warning("flow %s stays where it is: %s", flow_id, error)
        except Exception:  # one flow's trouble is not that of the others
            _log.exception("flow %s stays where it is", flow_id)
        return True

    async def _keep_task(self, current: CurrentFlow) -> None:
        if version_of(current) and state_of(current) not in TERMINAL:
            if any(
                step.task == run_task(self._store.agent) and step.status is StepStatus.FAILED
                for step in current.steps.values()
                if step.runtime == "managed"
            ):
                await self._fail(current)
                return
            message_id = _without_run(current)
            if message_id is not None and not current.flow.cancel_requested:
                await self._schedule(current.flow.id, message_id)
        if next_move(current) is not None:
            await self._store.settle(current.flow.id)

    async def _fail(self, current: CurrentFlow) -> None:
        task = task_of(current)
        assert task is not None
        owner = current.flow.requester_origin.partition(":")[2]
        status = TaskStatus(state=TaskState.TASK_STATE_FAILED)
        status.timestamp.FromJsonString(current.flow.updated_at)
        if task.status.HasField("message"):
            task.history.append(task.status.message)
        task.status.CopyFrom(status)
        await self._store.write(
            task,
            TaskStatusUpdateEvent(task_id=task.id, context_id=task.context_id, status=status),
            TaskVersion(version_of(current)),
            ServerCallContext(state={OWNER_STATE: owner}),
        )

    def _touch(
        self, before: CurrentFlow | None, after: CurrentFlow | None, event: Mapping[str, Any]
    ) -> None:
        self._touched[event["flow_id"]] = asyncio.get_running_loop().time()


def _without_run(current: CurrentFlow) -> str | None:
    """The id of the newest message, if it is the user's and has no step."""
    task = task_of(current)
    if task is None or not task.history or task.history[-1].role != Role.ROLE_USER:
        return None
    message_id: str = task.history[-1].message_id
    return None if run_id_of(message_id) in current.steps else message_id
