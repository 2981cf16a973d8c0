"""FlowHandle: the commands about one flow, as methods."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from uuid import UUID, uuid5

from processor.client.audit_stream import AuditStream
from processor.client.errors import CommandRefused
from processor.contract import FlowEvent, Outcome, instant, parse_timestamp
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Verdict
from processor.settings import Settings

if TYPE_CHECKING:
    from processor.contract import Command

Time = datetime | timedelta
"""A point in time (aware), or a span from now by this machine's clock."""

FLOW_NAMESPACE: Final = UUID("8f0c0f4e-6a53-5c6f-9d0e-3c1b2f7a9e41")


def flow_id_for(key: str) -> str:
    """Return the flow id of a business key such as "order-17": a UUIDv5, the same each time.

    `create` with it twice makes one flow; the second is refused with `already_exists`.
    """
    return str(uuid5(FLOW_NAMESPACE, key))


class Sender(Protocol):
    """What a handle needs of its FlowClient."""

    settings: Settings
    session: str

    def now_ms(self) -> int: ...

    async def send(
        self,
        command: "Command | Mapping[str, Any]",
        *,
        control: bool = False,
        timeout_s: float = 30.0,
        traceparent: str | None = None,
    ) -> Outcome: ...


class FlowHandle:
    """One flow, and the commands of its owner as methods.

    Each method sends one command, awaits its outcome and returns it. Raises CommandRefused if the
    processor refuses, with the outcome, its code and what is allowed; and what `FlowClient.send`
    raises if no outcome came. `revision` and `status` are those of the last outcome or event seen.

    `expected`: the revision that the flow must have; another one is refused, so that of two that
    read the same flow only one changes it.
    """

    def __init__(self, client: Sender, flow_id: str, *, since_ms: int | None = None) -> None:
        self.id = flow_id
        self.revision: int | None = None
        self.status: FlowStatus | None = None
        self._client = client
        self._since_ms = since_ms

    # The flow

    async def start(self, *, expected: int | None = None) -> Outcome:
        """created → running."""
        return await self._send("start_running", expected)

    async def update(
        self, patch: Any, *, next_step: str | None = None, expected: int | None = None
    ) -> Outcome:
        """Merge `patch` into the state, key by key at the top level, and set the current step."""
        return await self._send("update_state", expected, patch=patch, next_step=next_step)

    async def finish(self, final_state: Any = None, *, expected: int | None = None) -> Outcome:
        """running → finished; `final_state` is merged into the state."""
        return await self._send("finish", expected, final_state=final_state)

    async def fail(self, reason: str, *, expected: int | None = None) -> Outcome:
        """running or waiting → failed."""
        return await self._send("fail", expected, reason=reason)

    async def request_cancel(self) -> Outcome:
        """Ask for the end: the flow goes on, and takes only what leads there."""
        return await self._send("request_cancel")

    async def cancel(self, *, expected: int | None = None) -> Outcome:
        """Any status that is not terminal → cancelled."""
        return await self._send("cancel", expected)

    # Waits

    async def wait_until(self, at: Time, *, expected: int | None = None) -> Outcome:
        """running → waiting; the flow is resumed at that time."""
        return await self._wait({"kind": "timer", "at": self._written(at)}, expected)

    async def wait_for(
        self,
        topic: str,
        correlation_id: str,
        *,
        prompt: Any = None,
        timeout: Time | None = None,
        expected: int | None = None,
    ) -> Outcome:
        """running → waiting, until a `resume_external` with this topic and correlation id.

        `prompt`: what the person who answers needs to know; readers of the views see it.
        `timeout`: the flow is resumed then all the same.
        """
        wait = {"kind": "external_event", "topic": topic, "correlation_id": correlation_id}
        return await self._wait(wait, expected, prompt=prompt, timeout=timeout)

    async def wait_for_resume(
        self,
        *,
        prompt: Any = None,
        timeout: Time | None = None,
        expected: int | None = None,
    ) -> Outcome:
        """running → waiting, until the owner or an operator resumes it."""
        return await self._wait({"kind": "manual"}, expected, prompt=prompt, timeout=timeout)

    async def join(
        self,
        run_ids: Sequence[str] | None = None,
        *,
        mode: Literal["all", "all_or_failure", "any"] | None = None,
        timeout: Time | None = None,
        expected: int | None = None,
    ) -> Outcome:
        """running → waiting, until the managed steps `run_ids` (None: all) have ended.

        `mode`: `all` (default), `all_or_failure`, `any`. Where that holds already the flow is
        resumed at once, and `status` is `running`.
        """
        wait: dict[str, Any] = {"kind": "steps"}
        if run_ids is not None:
            wait["run_ids"] = list(run_ids)
        if mode is not None:
            wait["mode"] = mode
        return await self._wait(wait, expected, timeout=timeout)

    async def resume(self, patch: Any = None, *, expected: int | None = None) -> Outcome:
        """waiting → running; `patch` is merged into the state."""
        return await self._send("resume", expected, state_patch=patch)

    # Managed steps

    async def schedule(
        self,
        run_id: str,
        task: str,
        input: Any = None,
        *,
        not_before: Time | None = None,
        timeout: Time | None = None,
        max_attempts: int | None = None,
        lease: timedelta | None = None,
        backoff: timedelta | None = None,
    ) -> Outcome:
        """Have `task` done by an executor, as the step `run_id` of this flow."""
        return await self._send(
            "schedule_step",
            run_id=run_id,
            task=task,
            input_json=input,
            not_before=None if not_before is None else self._written(not_before),
            timeout_at=None if timeout is None else self._written(timeout),
            max_attempts=max_attempts,
            lease_ms=_milliseconds(lease),
            backoff_ms=_milliseconds(backoff),
        )

    async def cancel_step(self, run_id: str) -> Outcome:
        return await self._send("cancel_step", run_id=run_id)

    async def retry_step(self, run_id: str, *, attempts: int = 1) -> Outcome:
        """Offer a step again that is pending, failed or cancelled."""
        return await self._send("retry_step", run_id=run_id, attempts=attempts)

    # What happens to it

    async def events(self, *, follow: bool = False) -> AsyncIterator[FlowEvent]:
        """The flow's events, from its creation by this client or the beginning of the topic on.

        With `follow` it goes on with what comes.
        """
        start: datetime | Literal["beginning"] = "beginning"
        if self._since_ms is not None:
            start = datetime.fromtimestamp(self._since_ms / 1000, UTC)
        async with AuditStream(
            self._client.settings, start=start, follow=follow, flow_id=self.id
        ) as stream:
            async for event in stream:
                yield event

    async def until(self, *statuses: FlowStatus | str) -> FlowStatus:
        """Return once the flow is in one of `statuses`; that status.

        Bound it with `asyncio.timeout`. Raises what AuditStream raises.
        """
        wanted = {FlowStatus(status) for status in statuses}
        if self.status in wanted:
            assert self.status is not None
            return self.status
        seen = -1 if self.revision is None else self.revision
        async with aclosing(self.events(follow=True)) as events:  # type: ignore[type-var]
            async for event in events:
                if event.revision > seen:
                    self.revision, self.status = event.revision, event.status
                    if event.status in wanted:
                        return event.status
        raise AssertionError("a followed topic has no end")

    async def results(self) -> dict[str, Any]:
        """The results of the managed steps that have succeeded so far, by run id."""
        found: dict[str, Any] = {}
        async for event in self.events():
            payload = event.model_dump(mode="json")["payload_json"]
            if event.kind == "step_succeeded":
                found[payload["run_id"]] = payload["changes"]["result_json"]
            elif event.kind == "step_retried":
                found.pop(payload["run_id"], None)
        return found

    async def _wait(
        self,
        wait: dict[str, Any],
        expected: int | None,
        *,
        prompt: Any = None,
        timeout: Time | None = None,
    ) -> Outcome:
        if prompt is not None:
            wait["prompt"] = prompt
        if timeout is not None:
            wait["timeout_at"] = self._written(timeout)
        return await self._send("set_waiting", expected, wait=wait)

    def _written(self, at: Time) -> str:
        if isinstance(at, timedelta):
            return instant(self._client.now_ms() + round(at.total_seconds() * 1000))
        if at.tzinfo is None:
            raise ValueError("the time has no time zone, so it is no point in time")
        return instant(round(at.timestamp() * 1000))

    async def _send(self, kind: str, expected: int | None = None, **fields: Any) -> Outcome:
        given = {name: value for name, value in fields.items() if value is not None}
        if kind == "update_state":
            given["patch"] = fields["patch"]  # required, and may be null
        if expected is not None:
            given["expected_revision"] = expected
        outcome = await self._client.send(
            {"kind": kind, "flow_id": self.id, "issued_by": self._client.session, **given}
        )
        return self.seen(outcome)

    def seen(self, outcome: Outcome) -> Outcome:
        """Take over revision and status of `outcome`. Raises CommandRefused if it is a refusal."""
        if Verdict.ACCEPTED not in (outcome.verdict, outcome.original):
            raise CommandRefused(outcome)
        self.revision, self.status = outcome.revision, outcome.status
        if self._since_ms is None and (outcome.kind or "").startswith("create"):
            self._since_ms = parse_timestamp(outcome.at)
        return outcome


def _milliseconds(span: timedelta | None) -> int | None:
    return None if span is None else round(span.total_seconds() * 1000)
