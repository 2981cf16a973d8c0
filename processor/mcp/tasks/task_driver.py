"""TaskDriver: moves tasks on when their events arrive, and notifies subscribers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from typing import Final

from processor.client.http.views_client import NoViews
from processor.errors import TaskflowError
from processor.mcp.flow_session import UnknownFlow
from processor.mcp.tasks.task_store import TaskStore
from processor.runtime import end_tasks

AT_ONCE: Final = 8
"""Tasks that are moved on at the same time."""
PAUSE_MIN_S: Final = 0.2
PAUSE_MAX_S: Final = 5.0
"""Between two attempts to follow the views."""
REPEAT_S: Final = 5.0
"""Seconds after which a task that could not be moved on is tried again."""

_log = logging.getLogger(__name__)


class ListenedTasks:
    """The changed tasks of one subscriber."""

    def __init__(self, task_ids: frozenset[str]) -> None:
        self.task_ids = task_ids
        self._changed: dict[str, None] = dict.fromkeys(task_ids)
        self._some = asyncio.Event()
        self._some.set()

    def add(self, task_id: str) -> None:
        if task_id in self.task_ids:
            self._changed[task_id] = None
            self._some.set()

    def add_all(self) -> None:
        for task_id in self.task_ids:
            self.add(task_id)

    async def take(self) -> list[str]:
        """Return the tasks that have changed since the last call, at first all; wait for one."""
        await self._some.wait()
        self._some.clear()
        taken, self._changed = list(self._changed), {}
        return taken


class TaskDriver:
    """Follows the events of the session's flows.

    At its start, and when the views are back, it checks all tasks that have not ended, so that
    tasks of a server that was killed go on.
    """

    def __init__(self, store: TaskStore) -> None:
        self._store = store
        self._listeners: set[ListenedTasks] = set()
        self._again: dict[str, bool] = {}
        """Tasks that are being moved on, and whether they have changed meanwhile."""
        self._moves: set[asyncio.Task[None]] = set()
        self._turns = asyncio.Semaphore(AT_ONCE)
        self._position: str | None = None

    @contextmanager
    def listening(self, task_ids: frozenset[str]) -> Iterator[ListenedTasks]:
        """Note changes of these tasks inside the block."""
        changes = ListenedTasks(task_ids)
        self._listeners.add(changes)
        try:
            yield changes
        finally:
            self._listeners.discard(changes)

    async def run(self) -> None:
        """Follow until cancelled."""
        pause_s = PAUSE_MIN_S
        try:
            while True:
                try:
                    async for _ in self._followed():
                        pause_s = PAUSE_MIN_S
                except NoViews as error:
                    _log.info("tasks are not followed: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
        finally:
            await end_tasks(*self._moves)

    async def _followed(self) -> AsyncIterator[None]:
        """Yield after each event. Raises NoViews."""
        session = self._store.session
        stream = session.views.stream(owner=session.owner, last_event_id=self._position)
        async with aclosing(stream) as events:
            async for event in events:
                if event.name == "lost":
                    self._position = None
                    return
                self._position = event.id
                if event.name == "ready":
                    await self._look_at_all()
                else:
                    self._changed(event.data["event"]["flow_id"])
                yield None

    async def _look_at_all(self) -> None:
        for task_id in await self._store.unfinished():
            self._changed(task_id)
        for changes in self._listeners:
            changes.add_all()

    def _changed(self, task_id: str) -> None:
        if task_id in self._again:
            self._again[task_id] = True
            return
        self._again[task_id] = False
        move = asyncio.create_task(self._move(task_id))
        self._moves.add(move)
        move.add_done_callback(self._moves.discard)

    async def _move(self, task_id: str) -> None:
        try:
            while True:
                self._again[task_id] = False
                try:
                    async with self._turns:
                        await self._store.settle(task_id)
                except UnknownFlow:
                    return  # the flow is not a task
                except TaskflowError as error:
                    _log.warning("task %s is looked at again: %s", task_id, error)
                    await asyncio.sleep(REPEAT_S)
                    continue
                for changes in self._listeners:
                    changes.add(task_id)
                if not self._again[task_id]:
                    return
        finally:
            del self._again[task_id]
