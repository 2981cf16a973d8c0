"""Push notifications: each configuration is a flow, its delivery a managed step."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, Final

import httpx
from a2a.server.context import ServerCallContext
from a2a.server.tasks import PushNotificationConfigStore
from a2a.server.tasks.push_notification_config_store import normalize_push_notification_config
from a2a.types import TaskPushNotificationConfig
from a2a.utils.errors import InternalError, TaskNotFoundError
from a2a.utils.proto_utils import to_stream_response
from a2a.utils.push_url_validator import validate_push_notification_url
from cryptography.fernet import Fernet
from google.protobuf.json_format import MessageToDict

from processor.a2a.documents import TERMINAL, flow_id_of, state_of, version_of
from processor.a2a.event_stream import FlowEventStream, SubscriberBehind
from processor.a2a.task_store import FlowTaskStore
from processor.a2a.webhook_transport import AddressRefused
from processor.client import CurrentFlow, GiveUp, Step, flow_id_for
from processor.contract import FlowStatus
from processor.contract.outcomes import Code, Verdict
from processor.contract.steps import LIVE

DELIVERY: Final = "deliver"
LEASE_MS: Final = 60_000
ATTEMPTS_MAX: Final = 100
TIMEOUT_S: Final = 20.0
"""Of one call, from the look-up of its host to the status of its response."""
_REFUSED: Final = "the URL is not one that this server may call"
_LIVE_FLOWS: Final = frozenset({FlowStatus.CREATED, FlowStatus.RUNNING, FlowStatus.WAITING})


def push_controller(agent: str) -> str:
    """Return the `controller_id` of the flows of an agent's push configurations, and the task of
    their steps."""
    return f"a2a/{agent}/push"


class FlowPushConfigs(PushNotificationConfigStore):
    """Push configurations as flows, which end with their task.

    A configuration holds secrets (`token`, `authentication`), and topics keep what was written to
    them. It is therefore encrypted with `key` (from `Fernet.generate_key()`), which must be the
    same in all replicas.
    """

    def __init__(self, store: FlowTaskStore, *, key: bytes) -> None:
        self._store = store
        self._fernet = Fernet(key)

    async def set_info(
        self,
        task_id: str,
        notification_config: TaskPushNotificationConfig,
        context: ServerCallContext,
    ) -> TaskPushNotificationConfig:
        """Notify of the task's events from now on, by `notification_config`."""
        config = normalize_push_notification_config(task_id, notification_config)
        sealed = self._fernet.encrypt(config.SerializeToString()).decode()
        for current in self._configs(task_id, context):
            if current.flow.state_json["config_id"] == config.id:
                await self._send(current.flow.id, "update_state", patch={"sealed": sealed})
                return config
        task = await self._store.current(task_id, context)
        if task is None:
            raise TaskNotFoundError
        ended = sum(1 for c in self._all(task_id) if c.flow.state_json["config_id"] == config.id)
        origin = self._store.origin(context)
        flow_id = flow_id_for(f"a2a push {origin} {task_id} {config.id} {ended}")
        await self._send(
            flow_id,
            "create_mirrored",
            controller_id=push_controller(self._store.agent),
            goal=f"Notify {httpx.URL(config.url).host} of task {task_id}",
            requester_origin=origin,
            state_json={"task_id": task_id, "config_id": config.id, "sealed": sealed},
        )
        await self._send(
            flow_id,
            "schedule_step",
            run_id=DELIVERY,
            task=push_controller(self._store.agent),
            input_json={"after": version_of(task)},
            lease_ms=LEASE_MS,
            max_attempts=ATTEMPTS_MAX,
        )
        await self._store.flows.until(flow_id, _is_delivered_or_over)
        return config

    async def get_info(
        self, task_id: str, context: ServerCallContext
    ) -> list[TaskPushNotificationConfig]:
        """Return the caller's configurations for a task that has not ended."""
        return [self.open(current) for current in self._configs(task_id, context)]

    async def get_info_for_dispatch(self, task_id: str) -> list[TaskPushNotificationConfig]:
        """Return the configurations of all owners for a task that has not ended."""
        return [self.open(c) for c in self._all(task_id) if c.flow.status in _LIVE_FLOWS]

    async def delete_info(
        self, task_id: str, context: ServerCallContext, config_id: str | None = None
    ) -> None:
        """End the caller's configurations for the task, or only `config_id`."""
        for current in list(self._configs(task_id, context)):
            if config_id in (None, current.flow.state_json["config_id"]):
                await self._send(current.flow.id, "cancel")

    def open(self, current: CurrentFlow) -> TaskPushNotificationConfig:
        """Decrypt the configuration of a flow."""
        sealed = current.flow.state_json["sealed"].encode()
        config = TaskPushNotificationConfig()
        config.ParseFromString(self._fernet.decrypt(sealed))
        return config

    async def settle(self, current: CurrentFlow) -> None:
        """End the flow of a configuration whose delivery has ended."""
        step = current.steps.get(DELIVERY)
        if (
            current.flow.controller_id != push_controller(self._store.agent)
            or current.flow.status not in _LIVE_FLOWS
            or step is None
            or step.status in LIVE
        ):
            return
        if step.status == "succeeded":
            await self._send(current.flow.id, "finish")
        else:
            reason = (step.result_json or {}).get("failure", {}).get("reason", step.status.value)
            await self._send(current.flow.id, "fail", reason=reason)

    def _configs(self, task_id: str, context: ServerCallContext) -> Iterator[CurrentFlow]:
        origin = self._store.origin(context)
        for current in self._all(task_id):
            if current.flow.requester_origin == origin and current.flow.status in _LIVE_FLOWS:
                yield current

    def _all(self, task_id: str) -> Iterator[CurrentFlow]:
        for current in self._store.flows:
            state = current.flow.state_json
            if (
                current.flow.controller_id == push_controller(self._store.agent)
                and isinstance(state, Mapping)  # any producer may write another
                and state.get("task_id") == task_id
            ):
                yield current

    async def _send(self, flow_id: str, kind: str, **fields: Any) -> None:
        session = self._store.session
        outcome = await self._store.send(
            {"kind": kind, "flow_id": flow_id, "issued_by": session, **fields}
        )
        known = (Code.ALREADY_EXISTS, Code.STEP_EXISTS, Code.ALREADY_TERMINAL)
        if (
            Verdict.ACCEPTED not in (outcome.verdict, outcome.original)
            and outcome.code not in known
        ):
            raise InternalError(f"{kind} was refused ({outcome.code}): {outcome.message}")


def _is_delivered_or_over(current: CurrentFlow | None) -> bool:
    """Whether the delivery is scheduled, or the configuration ended before that."""
    return current is not None and (
        DELIVERY in current.steps or current.flow.status not in _LIVE_FLOWS
    )


class WebhookFailed(Exception):
    """A webhook was not reached, or did not take an event. It names the host and nothing else of
    the request: the text is written to topics, and a URL or a header may hold a secret."""


class PushDeliveries:
    """The handler of StepWorker that posts a task's events to a webhook, one after another.

    The step's progress is the version of the last event that the webhook took; the next holder of
    the step begins after it. Each event is posted at least once, in order, and twice only if the
    process ended between the webhook's response and the progress. A failed webhook is tried again
    by the step's backoff, from 1 s to an hour, up to ATTEMPTS_MAX times.
    """

    def __init__(
        self,
        store: FlowTaskStore,
        events: FlowEventStream,
        configs: FlowPushConfigs,
        client: httpx.AsyncClient,
        *,
        url_validator: Callable[[str], Awaitable[bool]] = validate_push_notification_url,
    ) -> None:
        self._store = store
        self._events = events
        self._configs = configs
        self._client = client
        self._url_validator = url_validator

    async def __call__(self, step: Step) -> None:
        """Post the task's events until it has ended."""
        current = await self._store.flows.until(step.flow_id, lambda c: c is not None)
        assert current is not None
        task_id = current.flow.state_json["task_id"]
        after = (step.last_progress or step.input)["after"]
        async for nth, body in self._bodies(task_id, after):
            newest = self._store.flows.get(step.flow_id)
            if newest is None or newest.flow.status not in _LIVE_FLOWS:
                raise GiveUp("the configuration is gone")
            await self._post(self._configs.open(newest), body)
            await step.progress({"after": nth})

    async def _bodies(self, task_id: str, after: int) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        flow_id = flow_id_of(task_id)
        await self._store.flows.until(flow_id, lambda c: c is None or version_of(c) >= after)
        while True:
            events = self._events.follow(task_id, after, until=lambda c: state_of(c) in TERMINAL)
            try:
                async for event in events:
                    after = event.nth
                    yield after, MessageToDict(to_stream_response(event.event))
                return
            except SubscriberBehind:
                continue  # the audit has what comes after

    async def _post(self, config: TaskPushNotificationConfig, body: dict[str, Any]) -> None:
        if not await self._url_validator(config.url):
            raise GiveUp(_REFUSED)
        headers: dict[str, str] = {}
        if config.token:
            headers["X-A2A-Notification-Token"] = config.token
        if config.authentication.scheme and config.authentication.credentials:
            scheme, credentials = config.authentication.scheme, config.authentication.credentials
            headers["Authorization"] = f"{scheme} {credentials}"
        host = httpx.URL(config.url).host
        try:
            # httpx bounds each read, and not all of them; and a body may have no end.
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._client.stream(
                    "POST", config.url, json=body, headers=headers, timeout=TIMEOUT_S
                ) as response,
            ):
                pass
        except AddressRefused:
            raise GiveUp(_REFUSED) from None
        except (httpx.HTTPError, TimeoutError, ValueError) as error:
            raise WebhookFailed(f"{host}: {type(error).__name__}") from None
        if not response.is_success:
            raise WebhookFailed(f"{host} responded {response.status_code}")
