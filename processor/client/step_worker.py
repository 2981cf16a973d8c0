"""StepWorker: do the managed steps of some tasks."""

import asyncio
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

import orjson
from aiokafka.errors import ProducerClosed

from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable, NotAuthorized
from processor.client.connection import connect
from processor.client.errors import CommandNotSent, InvalidCommand, OutcomeTimeout
from processor.client.flow_client import FlowClient
from processor.client.ports import PositionLost, ReceivedItem
from processor.client.step import GiveUp, Lease, RetryAfter, Step
from processor.contract import Command, Outcome, Topics, instant, parse_timestamp
from processor.contract.outcomes import Code, Verdict
from processor.contract.rights import Role, rights
from processor.contract.steps import StepFailure
from processor.contract.values import EVENTS_PER_PARTITION
from processor.errors import TaskflowError
from processor.runtime import end_tasks, unless_stopped
from processor.settings import Settings, load_settings
from processor.telemetry.tracing import producer_traces

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

Handler = Callable[[Step], Awaitable[Any]]

CONCURRENCY: Final = 32
DRAIN_TIMEOUT_S: Final = 30.0
POLL_WAIT_S: Final = 0.5
SEND_TIMEOUT_S: Final = 10.0
START_EXPIRES_MS: Final = 60_000
"""A start that Kafka appends later than this is refused: the executor may be gone."""
RETRY_PAUSE_MIN_S: Final = 0.1
RETRY_PAUSE_MAX_S: Final = 5.0
CANCEL_GRACE_S: Final = 10.0
"""How long a handler may take to end after it was cancelled."""
RELEASE_TIMEOUT_S: Final = 5.0
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


class StepWorker:
    """Do the managed steps of the tasks in `handlers`; an async context manager.

    A handler gets a `Step` and returns the result (JSON, at most 64 KiB). What it raises is
    recorded as `fail_step`, and the step is tried again after its backoff: `GiveUp` fails it for
    good, `RetryAfter(seconds)` chooses the pause.

    `group`: the consumer group that shares the work out; all executors of the same tasks have the
    same one, and it is not the workers' own. `settings`: from the environment if None.
    `concurrency`: how many steps may be in hand at a time; work items beyond that stay in Kafka.
    `drain_timeout_s`: how long running steps may take after SIGTERM, SIGINT or `stop()`; what is
    left is released, so that another executor starts it at once.

    What is promised: **at least once for effects, exactly once for the record.** A handler may run
    again after a crash, or after its lease was lost, so an effect outside needs `step_key` or
    `idempotency_key` as its idempotency key. Of all attempts that believe to hold a step only one
    can record a result. The lease is extended while the handler runs. The handler is cancelled
    when an extension is refused, or when the lease is over by this process's own clock, which
    counts from before the start was sent; then nothing is recorded.
    """

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        *,
        group: str,
        settings: Settings | None = None,
        concurrency: int = CONCURRENCY,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        if not handlers:
            raise ValueError("handlers is empty: name at least one task")
        if concurrency < 1:
            raise ValueError("concurrency must be at least 1")
        self._settings = settings = settings or load_settings()
        if group == settings.group_id:
            raise ValueError(
                f"group {group!r} is the consumer group of the workers (TASKFLOW_GROUP_ID): "
                "executors need one of their own"
            )
        self.issued_by = f"{group}:{socket.gethostname()}:{uuid4().hex[:12]}"[-256:]
        """The holder of the steps that this worker starts: unique for each start of a process."""
        self._group = group
        self._handlers = dict(handlers)
        self._concurrency = concurrency
        self._drain_timeout_s = drain_timeout_s
        self._client = FlowClient(settings, tracer_provider=tracer_provider)
        self._connection = connect(settings)
        self._reader = self._connection.work_items(group, handlers)
        self._traces = producer_traces(tracer_provider)
        self._stopping = asyncio.Event()
        self._abandoning = asyncio.Event()
        self._attempts: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._broker_ms = 0

    async def __aenter__(self) -> Self:
        wanted = rights(
            Role.EXECUTOR,
            Topics(self._settings.topic_prefix),
            self._settings.group_id,
            executors=self._group,
        )
        if missing := await self._connection.missing_rights(wanted):
            raise NotAuthorized.by(self._settings, missing, Role.EXECUTOR)
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await self._drain(0.0 if error is not None else self._drain_timeout_s)
        finally:
            await self._reader.close()
            await self._client.__aexit__(kind, error, trace)

    async def run(self) -> None:
        """Work until `stop()`, SIGTERM or SIGINT, then drain.

        Raises AccessDenied if a right is missing. A broker that is away is waited for.
        """
        with self._signals():
            while not self._stopping.is_set():
                await self._a_free_slot()
                if self._stopping.is_set():
                    break
                items = await unless_stopped(
                    self._reader.poll(
                        max_records=self._concurrency - len(self._attempts), wait_s=POLL_WAIT_S
                    ),
                    self._stopping,
                )
                for received in items or ():
                    attempt = asyncio.create_task(self._attempt(received))
                    self._attempts.add(attempt)
                    attempt.add_done_callback(self._ended)
            await self._drain(self._drain_timeout_s)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no more work; `run` returns when what is in hand has ended or was released."""
        self._stopping.set()

    # The work in hand

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled: list[signal.Signals] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            # Only the main thread may; elsewhere the program calls `stop`.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(number, self.stop)
                handled.append(number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    async def _a_free_slot(self) -> None:
        """Return when fewer than `concurrency` steps are in hand, or on `stop()`."""
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            while len(self._attempts) >= self._concurrency and not stopping.done():
                await asyncio.wait({stopping, *self._attempts}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(stopping)

    def _ended(self, attempt: asyncio.Task[None]) -> None:
        self._attempts.discard(attempt)
        if not attempt.cancelled() and (error := attempt.exception()) is not None:
            self._failure = self._failure or error
            self.stop()

    async def _drain(self, timeout_s: float) -> None:
        """Let what is in hand end within `timeout_s`; release the rest."""
        self._stopping.set()
        if self._attempts and timeout_s > 0 and self._failure is None:
            await asyncio.wait(self._attempts, timeout=timeout_s)
        self._abandoning.set()
        if self._attempts:
            await asyncio.wait(self._attempts, timeout=CANCEL_GRACE_S + RELEASE_TIMEOUT_S)
        for attempt in list(self._attempts):
            attempt.cancel()
        if self._attempts:
            await asyncio.wait(self._attempts)

    # One attempt

    async def _attempt(self, received: ReceivedItem) -> None:
        lease = Lease(self._connection.monotonic)
        try:
            started = await self._start(received, lease)
        except InvalidCommand as error:
            # An item that no command can name is nobody's work.
            _log.error("a work item cannot be started: %s", error)
            started = None
        self._reader.answered(received.place)
        if started is None:
            return
        attempt, event_id = started
        if self._stopping.is_set():
            await self._release(received, attempt)
            return
        await self._execute(received, attempt, event_id, lease)

    async def _start(self, received: ReceivedItem, lease: Lease) -> tuple[int, int] | None:
        """Start the step; return its attempt and the event's id, or None if it is not ours.

        One command is sent again until it is answered: if it was appended in time it counts,
        however late it is decided.
        """
        pause_s = RETRY_PAUSE_MIN_S
        while True:
            now_ms = max(self._connection.now_ms(), received.appended_ms, self._broker_ms)
            command = self._client.prepare(
                self._command(received, "start_step", expires_at=instant(now_ms + START_EXPIRES_MS))
            )
            sent_s = self._connection.monotonic()
            outcome = await self._outcome(command, received.traceparent)
            self._broker_ms = max(self._broker_ms, parse_timestamp(outcome.at))
            if outcome.verdict is Verdict.QUARANTINED:
                _log.error("a start was not understood (%s): %s", outcome.code, outcome.message)
                return None
            if _accepted(outcome):
                self._granted(lease, sent_s, outcome)
                return int(outcome.details["attempt"]), outcome.event_ids[0]
            if outcome.code in NOT_TO_BE_STARTED:
                return None
            _log.warning("a start was refused (%s); starting again", outcome.code)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_PAUSE_MAX_S)

    async def _execute(
        self, received: ReceivedItem, attempt: int, event_id: int, lease: Lease
    ) -> None:
        """Run the handler under the lease, and record what it ends with."""
        lost = asyncio.Event()

        async def report(progress: Any) -> None:
            await self._extend(received, attempt, lease, lost, progress_json=progress)

        if lease.time_left_s < received.item.lease_ms / 2000:  # the start was answered late
            with suppress(TimeoutError):
                async with asyncio.timeout(received.item.lease_ms / 1000):
                    await self._extend(received, attempt, lease, lost)
            if lost.is_set() or lease.time_left_s <= 0:
                return
        progress, failure = await self._previous(attempt, event_id)
        step = Step(
            received.item,
            attempt=attempt,
            lease=lease,
            report=report,
            last_progress=progress,
            last_failure=failure,
            traceparent=received.traceparent,
        )
        span = (
            nullcontext()
            if self._traces is None
            else self._traces.working(
                step.task,
                {"flow.id": step.flow_id, "step.run_id": step.run_id, "step.attempt": attempt},
                step.traceparent,
            )
        )
        with span:
            keeping = asyncio.create_task(self._keep(received, attempt, lease, lost))
            handling = asyncio.create_task(_handle(self._handlers[received.item.task], step))
            losing = asyncio.create_task(lost.wait())
            abandoning = asyncio.create_task(self._abandoning.wait())
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
                    await self._record(received, attempt, handling, step)
                else:
                    await self._release(received, attempt)
            finally:
                handling.cancel()
                await end_tasks(keeping, losing, abandoning)

    async def _record(
        self, received: ReceivedItem, attempt: int, handling: "asyncio.Task[Any]", step: Step
    ) -> None:
        """Send the result, or the failure, until it is answered."""
        error = handling.exception()
        if error is None:
            try:
                outcome = await self._answered(
                    received, "complete_step", attempt=attempt, result_json=handling.result()
                )
            except InvalidCommand as refused:
                error = GiveUp(f"the result is not JSON that can be recorded: {refused}")
            else:
                if outcome.code is Code.STATE_TOO_LARGE:
                    error = GiveUp("the result takes more than 64 KiB")
                else:
                    _say(step, outcome)
                    return
        fields: dict[str, Any] = {"attempt": attempt, "reason": _reason(error)}
        if isinstance(error, GiveUp):
            fields["retry"] = False
        elif isinstance(error, RetryAfter):
            fields["retry_after_ms"] = round(error.seconds * 1000)
        else:
            step.log.error("the handler failed", exc_info=error)
        _say(step, await self._answered(received, "fail_step", **fields))

    async def _release(self, received: ReceivedItem, attempt: int) -> None:
        """Give the step back unharmed; if that fails, its lease runs out."""
        with suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await self._answered(received, "release_step", attempt=attempt)

    # The lease

    async def _keep(
        self, received: ReceivedItem, attempt: int, lease: Lease, lost: asyncio.Event
    ) -> None:
        """Extend the lease at each third of it, until it is lost."""
        third_s = received.item.lease_ms / 3000
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
                    await self._extend(received, attempt, lease, lost)

    async def _extend(
        self,
        received: ReceivedItem,
        attempt: int,
        lease: Lease,
        lost: asyncio.Event,
        **progress: Any,
    ) -> None:
        sent_s = self._connection.monotonic()
        outcome = await self._answered(received, "extend_step", attempt=attempt, **progress)
        if _accepted(outcome):
            self._granted(lease, sent_s, outcome)
            if outcome.details.get("cancel_requested"):
                lease.cancel_requested.set()
        elif outcome.code is Code.STATE_TOO_LARGE:
            raise InvalidCommand("The progress takes more than 4 KiB.")
        else:
            lease.lost = f"an extension was refused: {outcome.code}"
            lost.set()

    @staticmethod
    def _granted(lease: Lease, sent_s: float, outcome: Outcome) -> None:
        lease.granted(
            sent_s, parse_timestamp(outcome.at), parse_timestamp(outcome.details["due_at"])
        )

    # Commands

    def _command(self, received: ReceivedItem, kind: str, **fields: Any) -> dict[str, Any]:
        return {
            "kind": kind,
            "flow_id": received.item.flow_id,
            "issued_by": self.issued_by,
            "run_id": received.item.run_id,
            **fields,
        }

    async def _answered(self, received: ReceivedItem, kind: str, **fields: Any) -> Outcome:
        """Send one command until its outcome comes. Raises InvalidCommand, AccessDenied."""
        command = self._client.prepare(self._command(received, kind, **fields))
        return await self._outcome(command, received.traceparent)

    async def _outcome(self, command: Command, traceparent: str | None) -> Outcome:
        pause_s = RETRY_PAUSE_MIN_S
        while True:
            try:
                return await self._client.send(
                    command,
                    timeout_s=SEND_TIMEOUT_S,
                    # Within a span of our own the client passes that one on.
                    traceparent=traceparent if self._traces is None else None,
                )
            except (InvalidCommand, AccessDenied, ProducerClosed):
                raise
            except (OutcomeTimeout, CommandNotSent, BrokerUnreachable) as error:
                _log.warning("%s; sending it again", error)
            except TaskflowError as error:
                if not error.retriable:
                    raise
                _log.warning("%s; sending it again", error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RETRY_PAUSE_MAX_S)

    async def _previous(self, attempt: int, event_id: int) -> tuple[Any, StepFailure | None]:
        """What the attempt before left: the `step_started` event has the step's execution."""
        if attempt == 1:
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
        audit = Topics(self._settings.topic_prefix).audit
        partition = event_id // EVENTS_PER_PARTITION
        since_ms = self._broker_ms - START_EXPIRES_MS
        reader = self._connection.reader(audit)
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


def _accepted(outcome: Outcome) -> bool:
    return Verdict.ACCEPTED in (outcome.verdict, outcome.original)


def _reason(error: BaseException) -> str:
    meant = isinstance(error, GiveUp | RetryAfter)
    text = str(error) if meant else f"{type(error).__name__}: {error}"
    return (text.strip() or type(error).__name__)[:REASON_MAX]


def _say(step: Step, outcome: Outcome) -> None:
    if not _accepted(outcome):
        step.log.warning("the end of the attempt was not recorded (%s)", outcome.code)
