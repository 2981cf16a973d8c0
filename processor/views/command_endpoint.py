"""Publish commands that come by HTTP, for producers without a Kafka client."""

import asyncio
import hmac
import re
from typing import Any, Final

import orjson
from aiohttp import web

from processor.client import FlowClient
from processor.contract.events import TRACEPARENT_HEADER
from processor.contract.values import COMMAND_MAX_BYTES
from processor.settings import Settings
from processor.views.models import CommandQuery
from processor.views.problem_details import ProblemError

PUBLISH_TIMEOUT_S: Final = 30.0
_TRACEPARENT: Final = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


class CommandEndpoint:
    """Publishes what comes with the token; without TASKFLOW_VIEWS_TOKEN nothing does."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client: FlowClient | None = None
        self._opening = asyncio.Lock()

    async def take(self, request: web.Request, query: CommandQuery) -> tuple[int, dict[str, Any]]:
        """Status and answer. Raises Problem, and what FlowClient raises."""
        self._authorize(request)
        command = await _body(request)
        traceparent = request.headers.get(TRACEPARENT_HEADER)
        if traceparent is not None and not _TRACEPARENT.fullmatch(traceparent):
            traceparent = None
        client = await self._ready()
        if not query.wait:
            receipt = await client.publish(
                command, timeout_s=PUBLISH_TIMEOUT_S, traceparent=traceparent
            )
            sent = receipt.command
            place = {"topic": receipt.topic, "partition": receipt.partition}
            offset: int | None = receipt.offset
            return 202, _answer(sent.command_id, sent.flow_id, {**place, "offset": offset}, None)
        sent = client.prepare(command)
        outcome = await client.send(sent, timeout_s=query.wait / 1000, traceparent=traceparent)
        return 200, _answer(
            sent.command_id,
            sent.flow_id,
            outcome.source.model_dump(),
            outcome.model_dump(mode="json", exclude_none=False),
        )

    async def close(self) -> None:
        if self._client is not None:
            await self._client.__aexit__(None, None, None)

    def _authorize(self, request: web.Request) -> None:
        token = self._settings.views_token
        if token is None:
            raise ProblemError(
                "forbidden", "Commands are taken only where TASKFLOW_VIEWS_TOKEN is set."
            )
        kind, _, given = request.headers.get("Authorization", "").partition(" ")
        wanted = token.get_secret_value().encode()
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), wanted)
        if kind.lower() != "bearer" or not same:
            raise ProblemError("unauthorized", "Send it as `Authorization: Bearer …`.")

    async def _ready(self) -> FlowClient:
        async with self._opening:
            if self._client is None:
                # As it came: a body that is sent again must equal itself to be a duplicate.
                client = FlowClient(self._settings, expire=False)
                await client.__aenter__()
                self._client = client
            return self._client


async def _body(request: web.Request) -> dict[str, Any]:
    if request.content_type != "application/json":
        raise ProblemError("bad_request", "The body must be application/json.")
    if (request.content_length or 0) > COMMAND_MAX_BYTES:
        raise ProblemError("too_large", "A command has at most 512 KiB.")
    try:
        command = orjson.loads(await request.read())
    except ValueError:
        raise ProblemError("bad_request", "The body is not JSON.") from None
    if not isinstance(command, dict):
        raise ProblemError("bad_request", "The body is not a JSON object.")
    return command


def _answer(
    command_id: str, flow_id: str, place: dict[str, Any], outcome: dict[str, Any] | None
) -> dict[str, Any]:
    return {"command_id": command_id, "flow_id": flow_id, **place, "outcome": outcome}
