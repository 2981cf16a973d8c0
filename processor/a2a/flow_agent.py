"""FlowAgent: one replica of an A2A agent, with all its parts."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import httpx
from a2a.server.agent_execution import AgentExecutor
from a2a.types import AgentCard
from a2a.utils.push_url_validator import validate_push_notification_url

from processor.a2a.agent_runs import AgentRuns
from processor.a2a.event_stream import FlowEventStream
from processor.a2a.push import FlowPushConfigs, PushDeliveries, push_controller
from processor.a2a.request_handler import FlowRequestHandler, run_task
from processor.a2a.task_keeper import GRACE_S, TaskKeeper
from processor.a2a.task_store import FlowTaskStore, controller
from processor.a2a.webhook_transport import WebhookTransport
from processor.client import CurrentFlows, FlowClient, Step, StepWorker
from processor.runtime import end_tasks
from processor.settings import Settings, load_settings

CONCURRENCY: Final = 256
"""Concurrent runs and deliveries; most of them wait."""
DRAIN_TIMEOUT_S: Final = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PushOptions:
    """Options of push notifications.

    `key`: encrypts push configurations; from `Fernet.generate_key()`, the same in all replicas.
    `url_validator`: whether a webhook may be called; by default the SDK's, public addresses only.
    `client`: calls the webhooks, for instance by a proxy or with certificates; it is not closed.
    Without both, the addresses that are checked are those that are called (WebhookTransport).
    """

    key: bytes
    url_validator: Callable[[str], Awaitable[bool]] = validate_push_notification_url
    client: httpx.AsyncClient | None = None


class FlowAgent:
    """One replica of an A2A agent on taskflow; an async context manager.

    Inside of the block `handler` serves requests (`create_jsonrpc_routes(agent.handler, "/")`), and
    this process runs the agent for messages of all replicas. Start any number of replicas with the
    same `name` and the same topics; they share nothing else.

    `name`: of the agent, in its flows and its consumer group. `push`: None if the agent's card
    promises no push notifications. `grace_s`: seconds without an event after which other replicas
    complete the commands of a save. `handler_options`: of FlowRequestHandler, such as `lease_ms`,
    the time in milliseconds after which a run whose process died is repeated.

    Entering raises what FlowClient and CurrentFlows raise.
    """

    handler: FlowRequestHandler

    def __init__(
        self,
        name: str,
        agent: AgentExecutor,
        card: AgentCard,
        settings: Settings | None = None,
        *,
        push: PushOptions | None = None,
        grace_s: float = GRACE_S,
        **handler_options: Any,
    ) -> None:
        self.settings = settings = settings or load_settings()
        self._agent = agent
        self._push = push
        # No expiry by the clock: a command that another replica has sent must equal ours, and
        # revisions and names keep all of them from being applied twice.
        self._client = FlowClient(settings, session=controller(name), expire=False)
        self._flows = CurrentFlows(
            settings,
            keep=lambda flow: flow.controller_id in (controller(name), push_controller(name)),
        )
        self.store = FlowTaskStore(self._client, self._flows, name)
        self.events = FlowEventStream(self._flows)
        self._configs = FlowPushConfigs(self.store, key=push.key) if push is not None else None
        if self._configs is not None:
            handler_options["push_config_store"] = self._configs
            handler_options["push_url_validator"] = push.url_validator if push else None
        self.handler = FlowRequestHandler(agent, card, self.store, self.events, **handler_options)
        others = () if self._configs is None else (self._configs.settle,)
        self._keeper = TaskKeeper(self.store, self.handler.schedule, *others, grace_s=grace_s)
        self._stack = AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._worker: StepWorker | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._client)
            await stack.enter_async_context(self._flows)
            handlers: dict[str, Callable[[Step], Awaitable[Any]]] = {
                run_task(self.store.agent): AgentRuns(self._agent, self.store)
            }
            if self._configs is not None and self._push is not None:
                http = self._push.client
                if http is None:
                    http = await stack.enter_async_context(_client(self._push))
                handlers[push_controller(self.store.agent)] = PushDeliveries(
                    self.store,
                    self.events,
                    self._configs,
                    http,
                    url_validator=self._push.url_validator,
                )
            self._worker = await stack.enter_async_context(
                StepWorker(
                    handlers,
                    group=f"a2a.{self.store.agent}",
                    settings=self.settings,
                    concurrency=CONCURRENCY,
                    drain_timeout_s=DRAIN_TIMEOUT_S,
                    handle_signals=False,
                )
            )
            self._tasks = [
                asyncio.create_task(self._worker.run()),
                asyncio.create_task(self._keeper.run()),
            ]
            for task in self._tasks:
                task.add_done_callback(_report)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give running agents 10 s to end; other replicas repeat the runs that did not."""
        try:
            await self.handler.aclose()
            if self._worker is not None:
                self._worker.stop()
            working, _ = self._tasks
            await asyncio.wait({working})
        finally:
            try:
                await end_tasks(*self._tasks)
            finally:
                await self._stack.aclose()


def _client(push: PushOptions) -> httpx.AsyncClient:
    """A client for the webhooks that `push` allows."""
    if push.url_validator is validate_push_notification_url:
        return httpx.AsyncClient(transport=WebhookTransport())
    return httpx.AsyncClient()  # which addresses it allows is not known


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("a part of the agent has ended: %r", error, exc_info=error)
