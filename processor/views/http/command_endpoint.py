"""Publish commands that come by HTTP, for producers without a Kafka client."""

import asyncio
import re
from typing import Any, Final

import orjson
from aiohttp import web

from processor.client import FlowClient
from processor.contract.events import TRACEPARENT_HEADER
from processor.runtime import end_tasks
from processor.settings import Settings
from processor.telemetry.http.limits import HttpLimits
from processor.telemetry.http.problem import ProblemError
from processor.telemetry.http.server import read_body
from processor.telemetry.http.tokens import carries
from processor.views.http.parameters import CommandQuery

PUBLISH_TIMEOUT_S: Final = 30.0
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class CommandEndpoint:
    """Publishes what comes with the token; without TASKFLOW_VIEWS_TOKEN nothing does."""

    def __init__(self, settings: Settings, limits: HttpLimits) -> None:
        self._settings = settings
        self._limits = limits
        self._client: FlowClient | None = None
        self._opening = asyncio.Lock()
        self._publishing: set[asyncio.Task[tuple[int, dict[str, Any]]]] = set()

    async def take(self, request: web.Request, query: CommandQuery) -> tuple[int, dict[str, Any]]:
        """Status and answer. Raises ProblemError, and what FlowClient raises."""
        self._authorize(request)
        command = await self._body(request)
        traceparent = request.headers.get(TRACEPARENT_HEADER)
        if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
            traceparent = None
        # A command that is on its way is not held back because its sender has left.
        task = asyncio.ensure_future(self._publish(command, query.wait / 1000, traceparent))
        self._publishing.add(task)
        task.add_done_callback(self._published)
        return await asyncio.shield(task)

    async def close(self) -> None:
        await end_tasks(*self._publishing)
        if self._client is not None:
            await self._client.__aexit__(None, None, None)

    async def _publish(
        self, command: dict[str, Any], wait_s: float, traceparent: str | None
    ) -> tuple[int, dict[str, Any]]:
        client = await self._ready()
        if not wait_s:
            receipt = await client.publish(
                command, timeout_s=PUBLISH_TIMEOUT_S, traceparent=traceparent
            )
            sent = receipt.command
            place = {"topic": receipt.topic, "partition": receipt.partition}
            offset: int | None = receipt.offset
            return 202, _accepted(sent.command_id, sent.flow_id, {**place, "offset": offset}, None)
        sent = client.prepare(command)
        outcome = await client.send(sent, timeout_s=wait_s, traceparent=traceparent)
        return 200, _accepted(
            sent.command_id,
            sent.flow_id,
            outcome.source.model_dump(),
            outcome.model_dump(mode="json", exclude_none=False),
        )

    def _published(self, task: asyncio.Task[tuple[int, dict[str, Any]]]) -> None:
        self._publishing.discard(task)
        if not task.cancelled():
            task.exception()  # raised by `take`, if its client is still there

    def _authorize(self, request: web.Request) -> None:
        token = self._settings.views_token
        if token is None:
            raise ProblemError(
                "forbidden", "Commands are taken only where TASKFLOW_VIEWS_TOKEN is set."
            )
        if not carries(request, token.get_secret_value()):
            raise ProblemError("unauthorized", "Send the write token as `Authorization: Bearer …`.")

    async def _ready(self) -> FlowClient:
        async with self._opening:
            if self._client is None:
                # As it came: a body that is sent again must equal itself to be a duplicate.
                client = FlowClient(self._settings, expire=False)
                await client.__aenter__()
                self._client = client
            return self._client

    async def _body(self, request: web.Request) -> dict[str, Any]:
        if request.content_type != "application/json":
            raise ProblemError("bad_request", "The body must be application/json.")
        try:
            command = orjson.loads(await read_body(request, self._limits))
        except ValueError:
            raise ProblemError("bad_request", "The body is not JSON.") from None
        if not isinstance(command, dict):
            raise ProblemError("bad_request", "The body is not a JSON object.")
        return command


def _accepted(
    command_id: str, flow_id: str, place: dict[str, Any], outcome: dict[str, Any] | None
) -> dict[str, Any]:
    return {"command_id": command_id, "flow_id": flow_id, **place, "outcome": outcome}
