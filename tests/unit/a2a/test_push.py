"""Push notifications go on from where they were, in order, and end with their task."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from a2a.types import (
    AuthenticationInfo,
    DeleteTaskPushNotificationConfigRequest,
    GetTaskPushNotificationConfigRequest,
    ListTaskPushNotificationConfigsRequest,
    Task,
    TaskPushNotificationConfig,
)
from a2a.utils.errors import InvalidParamsError
from cryptography.fernet import Fernet

from processor.a2a import FlowAgent, PushOptions, flow_agent
from processor.a2a.push import TIMEOUT_S
from processor.contract import Flow, Outcome
from processor.contract.events import StepFailedPayload, StepRetriedPayload
from processor.testing.fake.taskflow import TaskflowFake
from tests.support.a2a_agent import CARD, WordsAgent, caller, request
from tests.support.machine import patience

ALICE = caller()
KEY = Fernet.generate_key()
URL = "https://hooks.example/a2a"


class Body(httpx.AsyncByteStream):
    """What a webhook says beyond its status."""

    chunks_read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.chunks_read += 1
        yield b"thanks"


class Webhook(httpx.AsyncBaseTransport):
    """Takes notifications; `statuses`: of the next responses, 204 after them."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.headers: httpx.Headers = httpx.Headers()
        self.statuses: list[int] = []
        self.open = asyncio.Event()
        """Cleared while it keeps its callers waiting."""
        self.open.set()
        self.body = Body()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.open.wait()
        status = self.statuses.pop(0) if self.statuses else 204
        if status == 204:
            self.taken.append(what(json.loads(request.content)))
            self.headers = request.headers
        return httpx.Response(status, request=request, stream=self.body)


def what(body: dict[str, Any]) -> str:
    if "artifactUpdate" in body:
        text: str = body["artifactUpdate"]["artifact"]["parts"][0]["text"]
        return text
    state: str = body["statusUpdate"]["status"]["state"]
    return state.removeprefix("TASK_STATE_")


async def any_url(url: str) -> bool:
    return "evil" not in url


@asynccontextmanager
async def replica(
    fake: TaskflowFake, webhook: Webhook, agent: WordsAgent | None = None
) -> AsyncIterator[FlowAgent]:
    async with httpx.AsyncClient(transport=webhook) as client:
        push = PushOptions(KEY, any_url, client)
        async with FlowAgent(
            "words", agent or WordsAgent(), CARD, fake.settings, push=push, lease_ms=5_000
        ) as running:
            yield running


async def asked(agent: FlowAgent, config: TaskPushNotificationConfig) -> Task:
    params = request("a ask")
    params.configuration.task_push_notification_config.CopyFrom(config)
    task = await agent.handler.on_message_send(params, ALICE)
    assert isinstance(task, Task)
    return task


CONFIG = TaskPushNotificationConfig(
    url=URL,
    token="secret token",
    authentication=AuthenticationInfo(scheme="Bearer", credentials="secret credentials"),
)


async def test_each_event_is_posted_once_and_in_order(taskflow_fake: TaskflowFake) -> None:
    webhook = Webhook()
    async with replica(taskflow_fake, webhook) as agent:
        task = await asked(agent, CONFIG)
        await agent.handler.on_message_send(request("b done", task_id=task.id), ALICE)
        await taskflow_fake.advance(timedelta(seconds=5))
        configs = await agent.handler.on_list_task_push_notification_configs(
            ListTaskPushNotificationConfigsRequest(task_id=task.id), ALICE
        )
    assert webhook.taken == ["WORKING", "a", "INPUT_REQUIRED", "WORKING", "b", "COMPLETED"]
    assert webhook.headers["authorization"] == "Bearer secret credentials"
    assert webhook.headers["x-a2a-notification-token"] == "secret token"
    assert not configs.configs  # it has ended with its task
    assert {flow.status.value for flow in push_flows(taskflow_fake)} == {"finished"}


async def test_notifying_goes_on_behind_the_last_event_taken(taskflow_fake: TaskflowFake) -> None:
    webhook = Webhook()
    async with replica(taskflow_fake, webhook) as agent:
        task = await asked(agent, CONFIG)
        await taskflow_fake.settle()
        webhook.statuses = [500] * 50
        await agent.handler.on_message_send(request("b done", task_id=task.id), ALICE)
        await taskflow_fake.settle()
        taken = list(webhook.taken)
    await taskflow_fake.advance(timedelta(hours=3))
    webhook.statuses = [503, 503]
    async with replica(taskflow_fake, webhook):
        await taskflow_fake.advance(timedelta(hours=3))
    assert taken == ["WORKING", "a", "INPUT_REQUIRED"]
    assert webhook.taken == [*taken, "WORKING", "b", "COMPLETED"]


async def test_a_webhook_that_is_slower_than_the_agent_misses_no_event(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processor.a2a.event_stream.SUBSCRIBER_EVENTS_MAX", 1)
    webhook = Webhook()
    webhook.open.clear()
    async with replica(taskflow_fake, webhook) as agent:
        task = await asked(agent, CONFIG)
        await agent.handler.on_message_send(request("b c d done", task_id=task.id), ALICE)
        webhook.open.set()
        await taskflow_fake.advance(timedelta(seconds=5))
    words = ["WORKING", "a", "INPUT_REQUIRED", "WORKING", "b", "c", "d", "COMPLETED"]
    assert webhook.taken == words
    payloads = (event.payload_json for event in taskflow_fake.events())
    assert not any(isinstance(one, StepRetriedPayload) for one in payloads)


async def test_of_a_response_only_the_status_is_read(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A webhook may be anybody's, and its body without end."""
    monkeypatch.setattr(flow_agent, "DRAIN_TIMEOUT_S", 0.0)  # the webhook's run does not end
    webhook = Webhook()
    async with replica(taskflow_fake, webhook) as agent:
        await asked(agent, CONFIG)
        await taskflow_fake.advance(timedelta(seconds=5))
    assert webhook.taken == ["WORKING", "a", "INPUT_REQUIRED"]
    assert webhook.body.chunks_read == 0


async def test_a_webhook_that_does_not_respond_is_called_again(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However it spends the time: httpx bounds each read, and not all of them."""
    monkeypatch.setattr(flow_agent, "DRAIN_TIMEOUT_S", 0.0)  # the webhook's run does not end
    webhook = Webhook()
    webhook.open.clear()
    async with replica(taskflow_fake, webhook) as agent:
        await asked(agent, CONFIG)
        await taskflow_fake.advance(timedelta(seconds=TIMEOUT_S + 1))
        webhook.open.set()
        await taskflow_fake.advance(timedelta(minutes=1))
    assert webhook.taken == ["WORKING", "a", "INPUT_REQUIRED"]
    payloads = (event.payload_json for event in taskflow_fake.events())
    reasons = [one.reason for one in payloads if isinstance(one, StepRetriedPayload)]
    assert reasons == ["WebhookFailed: hooks.example: TimeoutError"]


async def test_configurations_are_their_owners_and_can_be_taken_back(
    taskflow_fake: TaskflowFake,
) -> None:
    webhook = Webhook()
    async with replica(taskflow_fake, webhook) as agent, replica(taskflow_fake, webhook) as other:
        task = await asked(agent, CONFIG)
        await taskflow_fake.settle()
        webhook.taken.clear()
        listing = ListTaskPushNotificationConfigsRequest(task_id=task.id)
        found = await other.handler.on_list_task_push_notification_configs(listing, ALICE)
        changed = TaskPushNotificationConfig(task_id=task.id, id=found.configs[0].id, url=URL)
        await other.handler.on_create_task_push_notification_config(changed, ALICE)
        one = GetTaskPushNotificationConfigRequest(task_id=task.id, id=changed.id)
        await taskflow_fake.settle()
        assert await agent.handler.on_get_task_push_notification_config(one, ALICE) == changed
        configs = agent.handler._push_config_store
        assert configs is not None
        assert await configs.get_info(task.id, caller("bob")) == []
        assert await configs.get_info_for_dispatch(task.id) == [changed]
        delete = DeleteTaskPushNotificationConfigRequest(task_id=task.id, id=changed.id)
        await agent.handler.on_delete_task_push_notification_config(delete, ALICE)
        await agent.handler.on_message_send(request("done", task_id=task.id), ALICE)
        await taskflow_fake.advance(timedelta(minutes=2))
    assert webhook.taken == []
    assert {flow.status.value for flow in push_flows(taskflow_fake)} == {"cancelled"}


async def test_a_configuration_that_is_taken_back_before_its_step_is_not_waited_for(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with replica(taskflow_fake, Webhook()) as agent:
        task = await agent.handler.on_message_send(request("ask"), ALICE)
        assert isinstance(task, Task)
        send = agent.store.send

        async def cancel_before_its_step(command: Mapping[str, Any]) -> Outcome:
            if command["kind"] == "schedule_step":
                flow = {name: command[name] for name in ("flow_id", "issued_by")}
                await send({"kind": "cancel", **flow})
            return await send(command)

        monkeypatch.setattr(agent.store, "send", cancel_before_its_step)
        config = TaskPushNotificationConfig(task_id=task.id, url=URL)
        async with asyncio.timeout(patience(10)):
            await agent.handler.on_create_task_push_notification_config(config, ALICE)

    assert {flow.status.value for flow in push_flows(taskflow_fake)} == {"cancelled"}


async def test_no_topic_has_the_secrets(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow_agent, "DRAIN_TIMEOUT_S", 0.0)  # the webhook's run does not end
    async with replica(taskflow_fake, Webhook()) as agent:
        await asked(agent, CONFIG)
        await taskflow_fake.settle()
    kafka = taskflow_fake.kafka
    values = [
        record.value or b""
        for topic, _ in kafka.topics
        for record in kafka.log(topic, 0).committed(0, kafka.log(topic, 0).end)
    ]
    assert any(b"hooks.example" in value for value in values)  # the goal, for people
    assert not any(b"secret" in value for value in values)


async def test_what_a_webhook_refuses_with_names_no_more_than_its_host(
    taskflow_fake: TaskflowFake,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The reason of a step that failed is written to topics, and logged."""
    monkeypatch.setattr(flow_agent, "DRAIN_TIMEOUT_S", 0.0)  # the webhook's run does not end
    webhook = Webhook()
    webhook.statuses = [403]
    async with replica(taskflow_fake, webhook) as agent:
        await asked(agent, TaskPushNotificationConfig(url=f"{URL}/secret?key=secret"))
        await taskflow_fake.advance(timedelta(minutes=1))
    payloads = (event.payload_json for event in taskflow_fake.events())
    assert [one.reason for one in payloads if isinstance(one, StepRetriedPayload)] == [
        "WebhookFailed: hooks.example responded 403"
    ]
    assert webhook.taken[0] == "WORKING"
    # httpx logs each URL at INFO, where an application has chosen that.
    ours = [record for record in caplog.records if record.name.startswith("processor")]
    assert ours
    assert "secret" not in "".join(map(caplog.handler.format, ours))


async def test_a_webhook_that_may_not_be_called_is_refused(taskflow_fake: TaskflowFake) -> None:
    async with replica(taskflow_fake, Webhook()) as agent:
        with pytest.raises(InvalidParamsError):
            await asked(agent, TaskPushNotificationConfig(url="https://evil.example"))
        await taskflow_fake.advance(timedelta(seconds=5))
    assert taskflow_fake.events() == []  # nor is the message worked on


async def test_a_name_that_resolves_to_a_private_address_once_it_is_called_is_given_up(
    taskflow_fake: TaskflowFake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: each check of the URL finds a public address, the call a private one."""
    checks = 0

    async def getaddrinfo(self: Any, host: str, port: int, **_: Any) -> list[Any]:
        nonlocal checks
        address = host
        if host == "hooks.example":
            checks += 1
            address = "93.184.216.34" if checks <= 2 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    agent = FlowAgent("words", WordsAgent(), CARD, taskflow_fake.settings, push=PushOptions(KEY))
    async with agent:
        await asked(agent, CONFIG)
        await taskflow_fake.advance(timedelta(seconds=5))
    payloads = (event.payload_json for event in taskflow_fake.events())
    failed = [one.reason for one in payloads if isinstance(one, StepFailedPayload)]
    assert failed == ["the URL is not one that this server may call"]
    assert checks == 3


def push_flows(fake: TaskflowFake) -> list[Flow]:
    ids = {event.flow_id for event in fake.events()}
    flows = (fake.flow(flow_id) for flow_id in ids)
    return [f for f in flows if f is not None and f.controller_id == "a2a/words/push"]
