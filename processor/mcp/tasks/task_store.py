"""TaskStore: create, read, move on and cancel tasks, each of which is a flow."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID, uuid4

from processor.client.http.views_client import NoViews
from processor.contract import Outcome
from processor.contract.outcomes import Code, Verdict
from processor.errors import TaskflowError
from processor.mcp.flow_session import FlowSession, UnknownFlow
from processor.mcp.tasks.executor_tool import ExecutorTool
from processor.mcp.tasks.progress import (
    CONTROLLER,
    NextCommand,
    TaskFlow,
    after_refusal,
    initial_state,
    is_task,
    next_command,
    with_responses,
)
from processor.mcp.tasks.protocol import Task
from processor.mcp.tasks.task_view import task_of

OPEN: Final = "running,waiting"
MOVES_MAX: Final = 8
"""Commands that one call of `settle` sends at most."""
SETTLE_S: Final = 3.0
"""Seconds that `get` waits for the task's pending commands."""
READ_AGAIN_S: Final = 0.1
READ_AGAIN_MAX: Final = 100


class TaskRefused(TaskflowError):
    """The processor did not take a task, or a response to it."""


class TaskStore:
    """The tasks of a session. It stores nothing itself: a task is its flow.

    A task's flow has the session as its owner and CONTROLLER as its controller.
    """

    def __init__(self, session: FlowSession) -> None:
        self.session = session
        self._retain_ms = session.settings.retain_terminal_ms

    async def create(
        self, tool: ExecutorTool, arguments: dict[str, Any], key: UUID | None = None
    ) -> Task:
        """Create the flow of a call and its first step; return once both can be read.

        The same `key`, a random UUID of the client, is the same task. Raises TaskRefused, NoViews,
        OutcomeTimeout and other errors of `FlowClient.send`.
        """
        flow_id = str(uuid4()) if key is None else self.session.flow_id("task", str(key))
        state = initial_state(tool, arguments)
        created = await self.session.send(
            "create_mirrored",
            flow_id,
            controller_id=CONTROLLER,
            goal=f"Tool call: {tool.title or tool.name}"[:4096],
            requester_origin="mcp",
            current_step=tool.name,
            state_json=state,
        )
        if not _accepted(created) and created.code is not Code.ALREADY_EXISTS:
            raise TaskRefused(f"The task was refused ({created.code}): {created.message}")
        task = await self.settle(flow_id, after=created.event_ids)
        if task.flow["state_json"].get("call") != state["call"]:
            raise TaskRefused("The key was used for another call; take a new one.")
        return self._shown(task)

    async def look(self, task_id: str) -> Task:
        """Return a task as the views show it. Raises UnknownFlow, NoViews."""
        return self._shown(await self._read(task_id))

    async def get(self, task_id: str) -> Task:
        """Return a task after its pending commands. Raises UnknownFlow, NoViews."""
        task = await self._read(task_id)
        if next_command(task) is None:
            return self._shown(task)
        try:
            async with asyncio.timeout(SETTLE_S):
                task = await self.settle(task_id)
        except UnknownFlow:
            raise
        except (TimeoutError, TaskflowError):
            pass  # Kafka is away: the task is as it was
        return self._shown(task)

    async def update(self, task_id: str, responses: Mapping[str, Any]) -> None:
        """Record responses to open questions; ignore all others.

        Raises UnknownFlow, NoViews, TaskRefused and errors of `FlowClient.send`.
        """
        for _ in range(READ_AGAIN_MAX):
            task = await self._read(task_id)
            if (command := with_responses(task, responses)) is None:
                return
            outcome = await self._send(task, command)
            if outcome.code is Code.STATE_TOO_LARGE:
                raise TaskRefused(outcome.message)
            if outcome.code is not Code.REVISION_MISMATCH:
                return  # accepted, or the question is closed: another response came first
            await asyncio.sleep(READ_AGAIN_S)  # views are behind
        raise NoViews(f"The views do not show the newest state of task {task_id}; try again.")

    async def cancel(self, task_id: str) -> None:
        """Cancel a task unless it has ended. Raises as `update` does."""
        for _ in range(READ_AGAIN_MAX):
            task = await self._read(task_id)
            outcome = await self._send(task, NextCommand("cancel", {}))
            if outcome.code is not Code.REVISION_MISMATCH:
                return
            await asyncio.sleep(READ_AGAIN_S)
        raise NoViews(f"The views do not show the newest state of task {task_id}; try again.")

    async def settle(self, task_id: str, *, after: Sequence[int] = ()) -> TaskFlow:
        """Send a task's commands until an executor or the client must act; return the task then.

        Servers may do so concurrently: each command is applied once. Raises as `update` does.
        """
        task = await self._read(task_id, after=after)
        for _ in range(MOVES_MAX):
            if (command := next_command(task)) is None:
                break
            outcome = await self._send(task, command)
            if not _accepted(outcome) and (ending := after_refusal(outcome)) is not None:
                outcome = await self._send(task, ending)
            task = await self._read(task_id, after=outcome.event_ids)
            if not _accepted(outcome):
                break  # another server was faster, or views are behind
        return task

    async def unfinished(self) -> list[str]:
        """Return the ids of the tasks that have not ended. Raises NoViews."""
        query: dict[str, Any] = {"owner": self.session.owner, "controller": CONTROLLER}
        found: list[str] = []
        cursor = None
        while True:
            page = await self.session.get("flows", **query, status=OPEN, limit=200, cursor=cursor)
            found += [one["id"] for one in page["items"]]
            if (cursor := page["next_cursor"]) is None:
                return found

    async def _read(self, task_id: str, *, after: Sequence[int] = ()) -> TaskFlow:
        try:
            found = await self.session.read(task_id, after=after)
        except UnknownFlow:
            await self._doubt(task_id)
            raise
        if not is_task(found["flow"], self.session.owner):
            raise UnknownFlow(task_id)
        return TaskFlow.of(found)

    async def _doubt(self, task_id: str) -> None:
        """Ask the processor by a dry run whether a flow that the views lack exists.

        The views may be behind, and a client forgets a task that is not found. Raises NoViews if
        the flow exists.
        """
        outcome = await self.session.send("cancel", task_id, dry_run=True)
        if outcome.code not in (Code.NOT_FOUND, Code.NOT_OWNER):
            raise NoViews("The views do not show this task yet; ask again.")

    async def _send(self, task: TaskFlow, command: NextCommand) -> Outcome:
        return await self.session.send(
            command.kind,
            task.flow["id"],
            expected_revision=task.flow["revision"],
            **command.fields,
        )

    def _shown(self, task: TaskFlow) -> Task:
        return task_of(task, self._retain_ms)


def _accepted(outcome: Outcome) -> bool:
    return Verdict.ACCEPTED in (outcome.verdict, outcome.original)
