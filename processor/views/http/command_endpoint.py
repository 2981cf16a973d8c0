"""Publish commands that come by HTTP: of producers without a Kafka client, and of operators."""

import asyncio
import logging
import re
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

import orjson
from aiohttp import web
from pydantic import SecretStr

from processor.client import FlowClient
from processor.client.signals.signal_client import SignalClient, SignalReceipt
from processor.contract.events import TRACEPARENT_HEADER
from processor.contract.headers import REASON
from processor.runtime import end_tasks
from processor.settings import Settings
from processor.telemetry.http.limits import HttpLimits
from processor.telemetry.http.problem import ProblemError
from processor.telemetry.http.server import read_body
from processor.telemetry.http.tokens import carries
from processor.telemetry.terminal import visible
from processor.views.http.parameters import CommandQuery, ControlBody, SignalBody

PUBLISH_TIMEOUT_S: Final = 30.0
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

_log = logging.getLogger(__name__)

Json = dict[str, Any]
T = TypeVar("T")


class CommandEndpoint:
    """Publishes commands: to `commands` with TASKFLOW_VIEWS_TOKEN, and to `control` with
    TASKFLOW_VIEWS_OPERATOR_TOKEN. Without the token of its kind, none."""

    def __init__(self, settings: Settings, limits: HttpLimits) -> None:
        self._settings = settings
        self._limits = limits
        self._client: FlowClient | None = None
        self._signals: SignalClient | None = None
        self._opening = asyncio.Lock()
        self._publishing: set[asyncio.Task[Any]] = set()

    async def take(self, request: web.Request, query: CommandQuery) -> tuple[int, Json]:
        """Status and response. Raises ProblemError, and what FlowClient raises."""
        _authorize(request, self._settings.views_token, "Commands", "write")
        command = await self.body(request)
        return await self.finish(self._publish(command, query.wait / 1000, _traceparent(request)))

    async def signal(self, request: web.Request) -> tuple[int, Json]:
        """Publish an event for the flow that waits for it. Raises ProblemError and errors of
        SignalClient."""
        _authorize(request, self._settings.views_token, "Signals", "write")
        body = SignalBody.model_validate(await self.body(request))
        receipt = await self.finish(self._send(body, _traceparent(request)))
        return 202, receipt._asdict()

    async def act(self, request: web.Request, query: CommandQuery) -> tuple[int, Json]:
        """An operator's command goes to `control`; as `take`."""
        self.authorize_operator(request)
        order = ControlBody.model_validate(await self.body(request), strict=False)
        _log.info(
            "%s by HTTP: %s of flow %s%s, because %s",
            *(visible(order.issued_by), order.kind, order.flow_id),
            *(" (dry run)" if order.dry_run else "", visible(order.reason)),
        )
        headers = [(REASON, order.reason.encode())]
        return await self.finish(
            self._publish(
                order.command(),
                query.wait / 1000,
                _traceparent(request),
                control=True,
                headers=headers,
            )
        )

    def authorize_operator(self, request: web.Request) -> None:
        """Raises ProblemError unless the request has the operator token."""
        _authorize(request, self._settings.views_operator_token, "Actions", "operator")

    async def body(self, request: web.Request) -> Json:
        """The JSON object of a request. Raises ProblemError."""
        if request.content_type != "application/json":
            raise ProblemError("bad_request", "The body must be application/json.")
        try:
            command = orjson.loads(await read_body(request, self._limits))
        except ValueError:
            raise ProblemError("bad_request", "The body is not JSON.") from None
        if not isinstance(command, dict):
            raise ProblemError("bad_request", "The body is not a JSON object.")
        return command

    async def finish(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, which goes on where its sender has left: a command that is on its way is
        not held back."""
        task = asyncio.ensure_future(work)
        self._publishing.add(task)
        task.add_done_callback(self._published)
        return await asyncio.shield(task)

    async def close(self) -> None:
        await end_tasks(*self._publishing)
        for client in (self._client, self._signals):
            if client is not None:
                await client.__aexit__(None, None, None)

    async def _publish(
        self,
        command: Json,
        wait_s: float,
        traceparent: str | None,
        *,
        control: bool = False,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> tuple[int, Json]:
        client = await self._ready()
        if not wait_s:
            receipt = await client.publish(
                command,
                control=control,
                timeout_s=PUBLISH_TIMEOUT_S,
                traceparent=traceparent,
                headers=headers,
            )
            sent = receipt.command
            place = {"topic": receipt.topic, "partition": receipt.partition}
            offset: int | None = receipt.offset
            return 202, _accepted(sent.command_id, sent.flow_id, {**place, "offset": offset}, None)
        sent = client.prepare(command)
        outcome = await client.send(
            sent, control=control, timeout_s=wait_s, traceparent=traceparent, headers=headers
        )
        return 200, _accepted(
            sent.command_id,
            sent.flow_id,
            outcome.source.model_dump(),
            outcome.model_dump(mode="json", exclude_none=False),
        )

    async def _send(self, signal: SignalBody, traceparent: str | None) -> SignalReceipt:
        async with self._opening:
            if self._signals is None:
                client = SignalClient(self._settings)
                await client.__aenter__()
                self._signals = client
        return await self._signals.send(
            signal.topic,
            signal.correlation_id,
            signal.payload,
            id=signal.id,
            timeout_s=PUBLISH_TIMEOUT_S,
            traceparent=traceparent,
        )

    def _published(self, task: asyncio.Task[Any]) -> None:
        self._publishing.discard(task)
        if not task.cancelled():
            task.exception()  # raised by `finish`, if its client is still there

    async def _ready(self) -> FlowClient:
        async with self._opening:
            if self._client is None:
                # As it came: a body that is sent again must equal itself to be a duplicate.
                client = FlowClient(self._settings, expire=False)
                await client.__aenter__()
                self._client = client
            return self._client


def _authorize(request: web.Request, token: SecretStr | None, what: str, kind: str) -> None:
    """Raises ProblemError unless the request has `token`, the `kind` token, which `what` needs."""
    if token is None:
        name = {"write": "TASKFLOW_VIEWS_TOKEN", "operator": "TASKFLOW_VIEWS_OPERATOR_TOKEN"}[kind]
        raise ProblemError("forbidden", f"{what} are taken only where {name} is set.")
    if not carries(request, token.get_secret_value()):
        raise ProblemError("unauthorized", f"Send the {kind} token as `Authorization: Bearer …`.")


def _traceparent(request: web.Request) -> str | None:
    given = request.headers.get(TRACEPARENT_HEADER)
    return given if given is not None and _TRACEPARENT.fullmatch(given) else None


def _accepted(
    command_id: str, flow_id: str, place: dict[str, Any], outcome: dict[str, Any] | None
) -> dict[str, Any]:
    return {"command_id": command_id, "flow_id": flow_id, **place, "outcome": outcome}
