"""FlowSession: the flows of one session, to read and to change."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, Self
from uuid import UUID, uuid5

import orjson

from processor.client import FlowClient, InvalidCommand, OutcomeTimeout, flow_id_for
from processor.client.http.views_client import Document, ViewsClient
from processor.contract import Outcome
from processor.contract.headers import REASON
from processor.contract.outcomes import Code, Verdict
from processor.contract.values import EVENTS_PER_PARTITION
from processor.errors import TaskflowError
from processor.settings import Settings

ATTEMPT_S: Final = 10.0
"""Seconds that one sending awaits its outcome; then the same command is sent again."""
DEADLINE_S: Final = 30.0
AGAIN: Final = "again"
"""The name from which the id of a command that is made again follows."""
AFTER_MAX: Final = 64
"""Events that a request to the views may name."""
VIEW_WAIT: Final = "10s"
"""How long the views may take to show earlier writes."""


class UnknownFlow(TaskflowError):
    """The session has no flow of this id: there is none, or another session owns it."""

    def __init__(self, flow_id: str) -> None:
        super().__init__(f"This session has no flow {flow_id}; list_mine shows its flows.")


class FlowSession:
    """The flows of the session `owner`: read by the views, changed by commands.

    Every command is issued by `owner`. Its id is derived from its content, so the same call on any
    connection is one command. Commands that take a revision carry the expected one, and commands
    about steps their attempt, so that a later call with the same content differs. A call that was
    refused is decided anew when it is made again.

    A read includes all earlier writes. The first command opens the connection to Kafka. An async
    context manager.
    """

    def __init__(
        self, settings: Settings, views: ViewsClient, *, owner: str, operator: bool = False
    ) -> None:
        """`operator`: whether flows of others are shown, too."""
        self.settings = settings
        self.owner = owner
        self.views = views
        self._operator = operator
        self._client: FlowClient | None = None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._written: dict[int, int] = {}
        """By partition: the newest event that a command of this session caused."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def flow_id(self, kind: str, key: str) -> str:
        """Return the id of this session's flow for a key: the same each time."""
        return str(uuid5(UUID(flow_id_for(self.owner)), f"{kind}/{key}"))

    # Reading

    async def read(self, flow_id: str, *, after: Sequence[int] = ()) -> Document:
        """Return `GET /v1/flows/{flow_id}`, at least up to the events `after`.

        Raises UnknownFlow, NoViews.
        """
        found = await self.get(f"flows/{flow_id}", after=after)
        if not found or not self._may_read(found["flow"]):
            raise UnknownFlow(flow_id)
        return found

    async def get(
        self, path: str, *, after: Sequence[int] = (), **query: str | int | None
    ) -> Document:
        """Return the views' document at `path`, at least up to the events `after` and all writes.

        Raises NoViews, also if they do not show these events within VIEW_WAIT.
        """
        events = [*self._written.values(), *after][-AFTER_MAX:]
        if events:
            query |= {"after": ",".join(map(str, events)), "wait": VIEW_WAIT}
        return await self.views.get(path, **query)

    def _may_read(self, flow: Mapping[str, Any]) -> bool:
        return self._operator or flow["owner_session_key"] == self.owner

    # Writing

    async def send(
        self,
        kind: str,
        flow_id: str,
        *,
        identity: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Outcome:
        """Send a command of the owner until its outcome comes.

        `fields` that are None are left out. `identity` distinguishes it from another command with
        the same fields. Raises InvalidCommand, OutcomeTimeout, BrokerUnreachable and other errors
        of `FlowClient.send`.
        """
        command = self._command(kind, flow_id, self.owner, fields)
        return await self._decided(_with_id(command, identity or {}))

    async def act(self, kind: str, flow_id: str, *, reason: str, **fields: Any) -> Outcome:
        """Send a command with an operator's authority. Raises as `send` does."""
        command = self._command(kind, flow_id, f"operator:{self.owner}"[:256], fields)
        return await self._decided(_with_id(command, {}), reason=reason)

    async def now_ms(self) -> int:
        """Return the present time in ms, from which durations count."""
        return (await self._ready()).now_ms()

    @staticmethod
    def _command(kind: str, flow_id: str, issued_by: str, fields: Mapping[str, Any]) -> Document:
        given = {name: value for name, value in fields.items() if value is not None}
        return {"kind": kind, "flow_id": flow_id, "issued_by": issued_by, **given}

    async def _decided(self, command: Document, *, reason: str | None = None) -> Outcome:
        """Send a command until its outcome comes, and another one if that repeats a refusal.

        The processor keeps refusals for resends, but what it refused may be possible now: a step
        that was not due, a revision that lay ahead. Each id follows from the one before, so that
        any connection finds the command that was accepted.
        """
        while True:
            outcome = await self._until_decided(command, reason)
            if outcome.original is not Verdict.REJECTED or _holds_for_good(outcome):
                return outcome
            command = {**command, "command_id": str(uuid5(UUID(command["command_id"]), AGAIN))}

    async def _until_decided(self, command: Document, reason: str | None) -> Outcome:
        client = await self._ready()
        headers = [] if reason is None else [(REASON, reason.encode())]
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while True:
            left = deadline - asyncio.get_running_loop().time()
            try:
                outcome = await client.send(
                    command,
                    control=reason is not None,
                    timeout_s=min(ATTEMPT_S, left),
                    headers=headers,
                )
            except OutcomeTimeout:
                if left <= ATTEMPT_S:
                    raise
            else:
                self._note(outcome)
                return outcome

    def _note(self, outcome: Outcome) -> None:
        for event_id in outcome.event_ids:
            partition = event_id // EVENTS_PER_PARTITION
            self._written[partition] = max(event_id, self._written.get(partition, 0))

    async def _ready(self) -> FlowClient:
        async with self._opening:
            if self._client is None:
                # No expiry by the clock: the same command must be the same bytes each time.
                client = FlowClient(self.settings, session=self.owner, expire=False)
                self._client = await self._stack.enter_async_context(client)
            return self._client


def _holds_for_good(refused: Outcome) -> bool:
    """Whether the same command would be refused at any later time, too."""
    if refused.code is Code.REVISION_MISMATCH:
        actual = refused.details["actual"]
        return actual is not None and refused.details["expected"] < actual
    return refused.code is Code.ALREADY_TERMINAL


def _with_id(command: Document, identity: Mapping[str, Any]) -> Document:
    try:
        said = orjson.dumps({**command, **identity}, option=orjson.OPT_SORT_KEYS).decode()
    except TypeError as error:  # a lone surrogate, which the SDK takes
        raise InvalidCommand(f"The command is not JSON: {error}.") from None
    return {**command, "command_id": str(uuid5(UUID(command["flow_id"]), said))}
