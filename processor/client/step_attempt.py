"""Make one attempt at a managed step: start it, run its handler under the lease, record the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from processor.adapters.kafka.errors import PositionLost
from processor.client.errors import InvalidCommand
from processor.client.ports import Connection, Place, ReceivedItem
from processor.client.step import GiveUp, Lease, RetryAfter, Step
from processor.client.step_commands import (
    RETRY_PAUSE_MAX_S,
    RETRY_PAUSE_MIN_S,
    StepCommands,
    is_accepted,
)
from processor.contract import Outcome, instant, parse_timestamp
from processor.contract.outcomes import Code, Verdict
from processor.contract.steps import StepFailure
from processor.contract.values import EVENTS_PER_PARTITION
from processor.errors import TaskflowError
from processor.runtime import backoff_s, end_tasks
from processor.telemetry.tracing import ProducerTraces

Handler = Callable[[Step], Awaitable[Any]]

START_EXPIRES_MS: Final = 60_000
"""A start that Kafka appends later than this is refused: the executor may be gone."""
CANCEL_GRACE_S: Final = 10.0
"""How long a handler may take to end after it was cancelled."""
RELEASE_TIMEOUT_S: Final = 5.0
POLL_WAIT_S: Final = 0.5
AUDIT_TIMEOUT_S: Final = 10.0
REASON_MAX: Final = 4096

NOT_TO_BE_STARTED: Final = frozenset(
    {
        Code.NOT_FOUND,
        Code.ALREADY_TERMINAL,
        Code.CANCEL_PENDING,
        Code.STEP_NOT_FOUND,
        Code.ILLEGAL_TRANSITION,
        Code.NOT_DUE,
    }
)
"""Refusals of a start after which its work item is done with (contract, Managed steps)."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all attempts of an executor share.

    `audit`: the topic's full name. `done` is called once the work item at that place is done
    with. `stopping`: start no more steps. `abandoning`: release those that run.
    """

    connection: Connection
    commands: StepCommands
    audit: str
    traces: ProducerTraces | None
    done: Callable[[Place], None]
    stopping: asyncio.Event
    abandoning: asyncio.Event


class StepAttempt:
    """One attempt at the step that a work item offers, by `handler`."""

    def __init__(self, received: ReceivedItem, handler: Handler, shared: Shared) -> None:
        self._received = received
        self._handler = handler
        self._shared = shared
        self._lease = Lease(shared.connection.monotonic)
        self._lost = asyncio.Event()
        self._attempt = 0
        """Counted from 1; 0 until the step is started."""

    async def run(self) -> None:
        """Start the step, do it, and record how it ended."""
        try:
            started = await self._start()
        except InvalidCommand as error:
            # No command can name the step of this item: it is skipped.
            _log.error("a work item cannot be started: %s", error)
            started = None
        self._shared.done(self._received.place)
        if started is None:
            return
        self._attempt, event_id = started
        if self._shared.stopping.is_set():
            await self._release()
            return
        await self._execute(event_id)

    async def _start(self) -> tuple[int, int] | None:
        """Start the step; return its attempt and the event's id, or None if it is not ours.

        One command is sent again until it is answered: if it was appended in time it counts,
        however late it is decided.
        """
        received, commands = self._received, self._shared.commands
        refusals = 0
        while True:
            now_ms = max(self._shared.connection.now_ms(), received.appended_ms, commands.broker_ms)
            command = commands.prepare(
                received, "start_step", expires_at=instant(now_ms + START_EXPIRES_MS)
            )
            sent_s = self._shared.connection.monotonic()
            outcome = await commands.outcome(command, received)
            if outcome.verdict is Verdict.QUARANTINED:
                _log.error("a start was not understood (%s): %s", outcome.code, outcome.message)
                return None
            if is_accepted(outcome):
                self._granted(sent_s, outcome)
                return int(outcome.details["attempt"]), outcome.event_ids[0]
            if outcome.code in NOT_TO_BE_STARTED:
                return None
            _log.warning("a start was refused (%s); starting again", outcome.code)
            await asyncio.sleep(backoff_s(refusals, RETRY_PAUSE_MIN_S, RETRY_PAUSE_MAX_S))
            refusals += 1

    async def _execute(self, event_id: int) -> None:
        """Run the handler under the lease, and record what it ends with."""
        received, lease, lost = self._received, self._lease, self._lost

        async def report(progress: Any) -> None:
            await self._extend(progress_json=progress)

        if lease.time_left_s < received.item.lease_ms / 2000:  # the start was answered late
            with suppress(TimeoutError):
                async with asyncio.timeout(received.item.lease_ms / 1000):
                    await self._extend()
            if lost.is_set() or lease.time_left_s <= 0:
                return
        progress, failure = await self._previous(event_id)
        step = Step(
            received.item,
            attempt=self._attempt,
            lease=lease,
            report=report,
            last_progress=progress,
            last_failure=failure,
            traceparent=received.traceparent,
        )
        span = (
            nullcontext()
            if self._shared.traces is None
            else self._shared.traces.working(
                step.task,
                {
                    "flow.id": step.flow_id,
                    "step.run_id": step.run_id,
                    "step.attempt": self._attempt,
                },
                step.traceparent,
            )
        )
        with span:
            keeping = asyncio.create_task(self._keep())
            handling = asyncio.create_task(_handle(self._handler, step))
            losing = asyncio.create_task(lost.wait())
            abandoning = asyncio.create_task(self._shared.abandoning.wait())
            try:
                await asyncio.wait(
                    {handling, losing, abandoning}, return_when=asyncio.FIRST_COMPLETED
                )
                if not handling.done() or lost.is_set():
                    await _cancelled(handling, step)
                keeping.cancel()
                if lost.is_set():
                    step.log.warning("the step was lost (%s); nothing is recorded", lease.lost)
                elif handling.done() and not handling.cancelled():
                    await self._record(handling, step)
                else:
                    await self._release()
            finally:
                handling.cancel()
                await end_tasks(keeping, losing, abandoning)

    async def _record(self, handling: "asyncio.Task[Any]", step: Step) -> None:
        """Send the result, or the failure, until it is answered."""
        error = handling.exception()
        if error is None:
            try:
                outcome = await self._outcome_of("complete_step", result_json=handling.result())
            except InvalidCommand as refused:
                error = GiveUp(f"the result is not JSON that can be recorded: {refused}")
            else:
                if outcome.code is Code.STATE_TOO_LARGE:
                    error = GiveUp("the result takes more than 64 KiB")
                else:
                    _say(step, outcome)
                    return
        fields: dict[str, Any] = {"reason": _reason(error)}
        if isinstance(error, GiveUp):
            fields["retry"] = False
        elif isinstance(error, RetryAfter):
            fields["retry_after_ms"] = round(error.seconds * 1000)
        else:
            step.log.error("the handler failed", exc_info=error)
        _say(step, await self._outcome_of("fail_step", **fields))

    async def _release(self) -> None:
        """Give the step back unharmed; if that fails, its lease runs out."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._outcome_of("release_step")

    # The lease

    async def _keep(self) -> None:
        """Extend the lease at each third of it, until it is lost."""
        lease, lost = self._lease, self._lost
        third_s = self._received.item.lease_ms / 3000
        while not lost.is_set():
            if lease.time_left_s > 0:
                await asyncio.sleep(min(third_s, lease.time_left_s))
            left_s = lease.time_left_s
            if left_s <= 0:
                lease.lost = "the lease is over"
                lost.set()
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._extend()

    async def _extend(self, **progress: Any) -> None:
        sent_s = self._shared.connection.monotonic()
        outcome = await self._outcome_of("extend_step", **progress)
        if is_accepted(outcome):
            self._granted(sent_s, outcome)
            if outcome.details.get("cancel_requested"):
                self._lease.cancel_requested.set()
        elif outcome.code is Code.STATE_TOO_LARGE:
            raise InvalidCommand("The progress takes more than 4 KiB.")
        else:
            self._lease.lost = f"an extension was refused: {outcome.code}"
            self._lost.set()

    def _granted(self, sent_s: float, outcome: Outcome) -> None:
        due_ms = parse_timestamp(outcome.details["due_at"])
        self._lease.granted(sent_s, parse_timestamp(outcome.at), due_ms)

    async def _outcome_of(self, kind: str, **fields: Any) -> Outcome:
        return await self._shared.commands.done(
            self._received, kind, attempt=self._attempt, **fields
        )

    # What the attempt before left

    async def _previous(self, event_id: int) -> tuple[Any, StepFailure | None]:
        """What the attempt before left: the `step_started` event has the step's execution."""
        if self._attempt == 1:
            return None, None
        try:
            async with asyncio.timeout(AUDIT_TIMEOUT_S):
                execution = await self._execution(event_id)
        except (TaskflowError, PositionLost, TimeoutError) as error:
            _log.warning("the last attempt's progress cannot be read: %r", error)
            return None, None
        failure = execution["last_failure"]
        return (
            execution["progress"],
            None if failure is None else StepFailure.model_validate(failure),
        )

    async def _execution(self, event_id: int) -> dict[str, Any]:
        partition = event_id // EVENTS_PER_PARTITION
        since_ms = self._shared.commands.broker_ms - START_EXPIRES_MS
        reader = self._shared.connection.reader(self._shared.audit)
        try:
            await reader.open([partition], datetime.fromtimestamp(since_ms / 1000, UTC))
            while True:
                for record in await reader.poll(wait_s=POLL_WAIT_S):
                    event = orjson.loads(record.value or b"{}")
                    if event.get("id") == event_id:
                        execution: dict[str, Any] = event["payload_json"]["changes"]["execution"]
                        return execution
        finally:
            await reader.close()


async def _handle(handler: Handler, step: Step) -> Any:
    return await handler(step)


async def _cancelled(handling: "asyncio.Task[Any]", step: Step) -> None:
    """Cancel the handler and wait for its end, CANCEL_GRACE_S at most."""
    handling.cancel()
    _, late = await asyncio.wait({handling}, timeout=CANCEL_GRACE_S)
    if late:
        step.log.error("the handler goes on %g s after it was cancelled", CANCEL_GRACE_S)
    elif not handling.cancelled():
        handling.exception()  # retrieved, so that asyncio does not log it


def _reason(error: BaseException) -> str:
    meant = isinstance(error, GiveUp | RetryAfter)
    text = str(error) if meant else f"{type(error).__name__}: {error}"
    written = text.encode(errors="backslashreplace").decode()  # JSON has no lone surrogates
    return (written.strip() or type(error).__name__)[:REASON_MAX]


def _say(step: Step, outcome: Outcome) -> None:
    if not is_accepted(outcome):
        step.log.warning("the end of the attempt was not recorded (%s)", outcome.code)
