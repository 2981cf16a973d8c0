"""FlowTaskStore: the SDK's task store, whose tasks are flows."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

from a2a.helpers import get_message_text
from a2a.server.cluster import (
    ConcurrentTaskModificationError,
    StoredTask,
    TaskVersion,
    VersionedTaskStore,
)
from a2a.server.context import ServerCallContext
from a2a.server.events import Event
from a2a.server.owner_resolver import OwnerResolver, resolve_user_scope
from a2a.types import ListTasksRequest, ListTasksResponse, Task, TaskState
from a2a.utils.errors import InvalidAgentResponseError, UnsupportedOperationError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential

from processor.a2a.documents import (
    TERMINAL,
    Save,
    flow_id_of,
    plan_save,
    state_of,
    task_of,
    version_of,
)
from processor.a2a.moves import next_move
from processor.a2a.task_pages import page_of
from processor.a2a.values import Piece
from processor.client import CurrentFlow, CurrentFlows, FlowClient
from processor.contract import Outcome
from processor.contract.outcomes import Code, Verdict
from processor.errors import TaskflowError

OUTCOME_TIMEOUT_S: Final = 60.0
LEVEL_TIMEOUT_S: Final = 30.0
GOAL_MAX: Final = 200
OWNER_MAX: Final = 200
OWNER_STATE: Final = "taskflow.owner"
"""Key of a ServerCallContext's state: the owner, for calls that no user made."""


class FlowTaskStore(VersionedTaskStore):
    """Tasks of one agent as flows: `VersionedTaskStore` of the A2A SDK.

    `client`: its session owns the flows and must be the same in all replicas; with `expire=False`,
    so that a command equals that of another replica. `flows`: must keep the flows of
    `controller(agent)`, and be entered. `agent`: names the agent in flows.

    `save` raises ConcurrentTaskModificationError if the task has a newer version, and
    InvalidAgentResponseError if the task does not fit into a flow. It raises errors of the client
    (OutcomeTimeout, BrokerUnreachable …) after trying for a minute; the save may then be applied.
    """

    def __init__(
        self,
        client: FlowClient,
        flows: CurrentFlows,
        agent: str,
        *,
        owner_resolver: OwnerResolver = resolve_user_scope,
    ) -> None:
        self.flows = flows
        self.agent = agent
        self.session = client.session
        self._client = client
        self._owner_resolver = owner_resolver

    # The SDK's interface

    async def save(
        self,
        task: Task,
        *,
        event: Event | None = None,
        prev: Task | None = None,
        prev_version: TaskVersion,
        context: ServerCallContext,
    ) -> TaskVersion:
        """Save `task` if its newest version is `prev_version`; see VersionedTaskStore.

        `prev` is not used: the SDK changes that object in place. The flow has the task as it was.
        """
        return await self.write(task, event, prev_version, context)

    async def get(self, task_id: str, context: ServerCallContext) -> StoredTask | None:
        """Return the task and its version; None if there is none or another owner has it."""
        current = await self.current(task_id, context)
        task = None if current is None else task_of(current)
        if task is None or current is None:
            return None
        return StoredTask(task, TaskVersion(version_of(current)))

    async def list(self, params: ListTasksRequest, context: ServerCallContext) -> ListTasksResponse:
        """Return a page of the owner's tasks, the last changed first."""
        origin = self.origin(context)
        mine = (c for c in self.flows if c.flow.requester_origin == origin and version_of(c))
        return page_of([c for c in mine if self._is_of_agent(c)], params)

    async def delete(self, task_id: str, context: ServerCallContext) -> None:
        """Refuse: a task can only be cancelled; retention prunes it later."""
        raise UnsupportedOperationError(
            "A task cannot be deleted. Cancel it; it is pruned after TASKFLOW_RETAIN_TERMINAL."
        )

    # For the rest of this package

    def origin(self, context: ServerCallContext) -> str:
        """Return the `requester_origin` of the caller's flows."""
        owner = context.state.get(OWNER_STATE)
        if owner is None:
            owner = self._owner_resolver(context)
        if len(owner) > OWNER_MAX:
            owner = blake2b(owner.encode(), digest_size=16).hexdigest()
        return f"a2a:{owner}"

    async def current(self, task_id: str, context: ServerCallContext) -> CurrentFlow | None:
        """Return the caller's flow of a task; None if there is none or another owner has it.

        Another replica may have just created the flow. If this replica does not know it, a dry run
        asks the processor, which decides it after all commands that were sent before.
        """
        flow_id = flow_id_of(task_id)
        current = self.flows.get(flow_id)
        if current is None:
            found = await self.send(
                {
                    "kind": "update_state",
                    "flow_id": flow_id,
                    "issued_by": self.session,
                    "patch": {},
                    "dry_run": True,
                }
            )
            if found.code in (Code.NOT_FOUND, Code.NOT_OWNER):
                return None
            with suppress(TimeoutError):  # the flow is not a task of this agent
                current = await self._until(flow_id, lambda c: c is not None)
        if current is None or current.flow.requester_origin != self.origin(context):
            return None
        return current if self._is_of_agent(current) else None

    async def write(
        self,
        task: Task,
        event: Event | None,
        prev_version: TaskVersion,
        context: ServerCallContext,
        *,
        seed: UUID | None = None,
    ) -> TaskVersion:
        """As `save`; command ids are derived from `seed`, so that the same write of two replicas is
        applied once."""
        current = await self.current(task.id, context)
        if task.status.state == TaskState.TASK_STATE_CANCELED and current is not None:
            return await self._cancel(task, current)
        if current is None:
            if not prev_version.is_missing:
                raise ConcurrentTaskModificationError(task.id)
            current = await self._create(task, event, context, seed)
            if current is not None:
                return TaskVersion(version_of(current))
            current = await self.current(task.id, context)  # a draft without its values
        while True:
            self._check(task, current, prev_version)
            assert current is not None
            save = plan_save(task, event, current)
            await self._write_pieces(current, save.pieces)
            outcome = await self._update(current, save, seed)
            if outcome.code != Code.REVISION_MISMATCH:
                break
            # Another command was decided in between; unless it was a save, this one goes on.
            current = await self._until(current.flow.id, _has_revision(outcome.details["actual"]))
        await self._check_outcome(task, current, outcome)
        current = await self._level(current.flow.id, outcome)
        version = TaskVersion(version_of(current))
        await self.settle(current.flow.id)
        return version

    async def settle(self, flow_id: str) -> CurrentFlow | None:
        """Bring the flow's status in line with its task's state, as far as possible now."""
        current = self.flows.get(flow_id)
        while current is not None and (move := next_move(current)) is not None:
            outcome = await self.send(move)
            if not _is_accepted(outcome):
                return self.flows.get(flow_id)  # another replica has moved it
            current = await self._level(flow_id, outcome)
        return current

    async def send(self, command: Mapping[str, Any]) -> Outcome:
        """Send one command, the same each time, until its outcome comes."""
        prepared = self._client.prepare(command)
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_is_retriable),
            stop=stop_after_delay(OUTCOME_TIMEOUT_S),
            wait=wait_exponential(multiplier=0.1, max=2.0),
            reraise=True,
        ):
            with attempt:
                outcome = await self._client.send(prepared)
        return outcome

    # Commands

    async def _create(
        self,
        task: Task,
        event: Event | None,
        context: ServerCallContext,
        seed: UUID | None,
    ) -> CurrentFlow | None:
        """Create the flow with the task in it; None if the flow is a draft, as the task needs
        steps first."""
        flow_id = flow_id_of(task.id)
        save = plan_save(task, event, None)
        outcome = await self.send(
            {
                "kind": "create_managed",
                "flow_id": flow_id,
                "issued_by": self.session,
                "controller_id": controller(self.agent),
                "goal": _goal(task),
                "requester_origin": self.origin(context),
                "current_step": TaskState.Name(task.status.state),
                "state_json": {"context_id": task.context_id} if save.pieces else save.patch,
                "command_id": _command_id(seed, "create_managed", 0),
            }
        )
        if not _is_accepted(outcome):
            # `already_exists`; a draft of a saver that died may be completed.
            current = await self.current(task.id, context)
            if current is None or version_of(current):
                raise ConcurrentTaskModificationError(task.id)
            return None
        current = await self._level(flow_id, outcome)
        if save.pieces:
            return None
        return await self.settle(flow_id)

    async def _write_pieces(self, current: CurrentFlow, pieces: Sequence[Piece]) -> None:
        missing = {p.run_id: p for p in pieces if p.run_id not in current.steps}
        outcomes = await asyncio.gather(
            *(
                self.send(
                    {
                        "kind": "record_step_observation",
                        "flow_id": current.flow.id,
                        "issued_by": self.session,
                        "run_id": piece.run_id,
                        "task": piece.task,
                        "status": "succeeded",
                        "result_json": piece.result_json,
                    }
                )
                for piece in missing.values()
            )
        )
        for outcome in outcomes:
            if not _is_accepted(outcome):
                raise InvalidAgentResponseError(
                    f"The task does not fit into its flow ({outcome.code}): {outcome.message}"
                )

    async def _update(self, current: CurrentFlow, save: Save, seed: UUID | None) -> Outcome:
        state = (save.patch.get("status") or current.flow.state_json["status"])["state"]
        return await self.send(
            {
                "kind": "update_state",
                "flow_id": current.flow.id,
                "issued_by": self.session,
                "patch": save.patch,
                "next_step": state,
                "expected_revision": current.flow.revision,
                # A refusal is kept for resends, so another revision needs another command id.
                "command_id": _command_id(seed, "update_state", current.flow.revision),
            }
        )

    async def _cancel(self, task: Task, current: CurrentFlow) -> TaskVersion:
        """Cancel whatever version the task has, as VersionedTaskStore asks."""
        outcome = await self.send(
            {"kind": "cancel", "flow_id": current.flow.id, "issued_by": self.session}
        )
        if not _is_accepted(outcome):
            raise ConcurrentTaskModificationError(task.id)
        return TaskVersion(version_of(await self._level(current.flow.id, outcome)))

    def _check(self, task: Task, current: CurrentFlow | None, prev_version: TaskVersion) -> None:
        if (
            current is None
            or TaskVersion(version_of(current)) != prev_version
            or state_of(current) in TERMINAL
        ):
            raise ConcurrentTaskModificationError(task.id)

    async def _check_outcome(self, task: Task, current: CurrentFlow, outcome: Outcome) -> None:
        if _is_accepted(outcome):
            return
        if outcome.code == Code.CANCEL_PENDING:
            # A cancel was requested: settling cancels the flow.
            await self.settle(current.flow.id)
        if outcome.code in (Code.STATE_TOO_LARGE, Code.TOO_MANY_STEPS) or (
            outcome.verdict is Verdict.QUARANTINED
        ):
            raise InvalidAgentResponseError(
                f"The task does not fit into its flow ({outcome.code}): {outcome.message}"
            )
        raise ConcurrentTaskModificationError(task.id)

    async def _level(self, flow_id: str, outcome: Outcome) -> CurrentFlow:
        """Return the flow once it includes the events of `outcome`."""
        newest = max(outcome.event_ids, default=0)
        current = await self._until(flow_id, lambda c: c is not None and c.last_event_id >= newest)
        assert current is not None
        return current

    async def _until(
        self, flow_id: str, wanted: Callable[[CurrentFlow | None], bool]
    ) -> CurrentFlow | None:
        async with asyncio.timeout(LEVEL_TIMEOUT_S):
            return await self.flows.until(flow_id, wanted)

    def _is_of_agent(self, current: CurrentFlow) -> bool:
        return current.flow.controller_id == controller(self.agent)


def controller(agent: str) -> str:
    """Return the `controller_id` of the flows of an agent's tasks."""
    return f"a2a/{agent}"


def _has_revision(revision: int) -> Callable[[CurrentFlow | None], bool]:
    return lambda current: current is not None and current.flow.revision >= revision


def _command_id(seed: UUID | None, kind: str, revision: int) -> str:
    return str(uuid4() if seed is None else uuid5(seed, f"{kind} {revision}"))


def _is_accepted(outcome: Outcome) -> bool:
    return Verdict.ACCEPTED in (outcome.verdict, outcome.original)


def _is_retriable(error: BaseException) -> bool:
    return isinstance(error, TaskflowError) and error.retriable


def _goal(task: Task) -> str:
    text = get_message_text(task.history[0]) if task.history else ""
    return text[:GOAL_MAX].strip() or f"A2A task {task.id}"
