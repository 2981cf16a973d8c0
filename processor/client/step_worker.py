"""StepWorker: do the managed steps of some tasks."""

import asyncio
import signal
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, Self
from uuid import uuid4

from processor.adapters.kafka.errors import NotAuthorized
from processor.client.connection import connect
from processor.client.flow_client import FlowClient
from processor.client.step_attempt import (
    CANCEL_GRACE_S,
    RELEASE_TIMEOUT_S,
    Handler,
    Shared,
    StepAttempt,
)
from processor.client.step_commands import StepCommands
from processor.contract import Topics
from processor.contract.rights import Role, rights
from processor.runtime import end_tasks, unless_stopped
from processor.settings import Settings, load_settings
from processor.telemetry.tracing import producer_traces

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

CONCURRENCY: Final = 32
DRAIN_TIMEOUT_S: Final = 30.0
POLL_WAIT_S: Final = 0.5


class StepWorker:
    """Do the managed steps of the tasks in `handlers`; an async context manager.

    A handler gets a `Step` and returns the result (JSON, at most 64 KiB). What it raises is
    recorded as `fail_step`, and the step is tried again after its backoff: `GiveUp` fails it for
    good, `RetryAfter(seconds)` chooses the pause.

    `group`: the consumer group that shares the work out; all executors of the same tasks have the
    same one, and it is not the workers' own. `settings`: from the environment if None.
    `concurrency`: how many steps may run at a time; work items beyond that stay in Kafka.
    `drain_timeout_s`: how long running steps may take after SIGTERM, SIGINT or `stop()`; what is
    left is released, so that another executor starts it at once. `handle_signals`: false where
    the signals are another part's of the program, such as an HTTP server's, which calls `stop`.

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
        handle_signals: bool = True,
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
        self._signums = (signal.SIGTERM, signal.SIGINT) if handle_signals else ()
        # Attempt and holder keep a command of ours from being applied twice. An expiry by our clock
        # would cost the result where that clock is slow, or Kafka was away for long.
        self._client = FlowClient(settings, expire=False, tracer_provider=tracer_provider)
        self._connection = connect(settings)
        self._reader = self._connection.work_items(group, handlers)
        self._traces = producer_traces(tracer_provider)
        self._stopping = asyncio.Event()
        self._abandoning = asyncio.Event()
        self._attempts: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

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

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            await self._drain(0.0 if error is not None else self._drain_timeout_s)
        finally:
            await self._reader.close()
            await self._client.__aexit__(None, None, None)

    async def run(self) -> None:
        """Work until `stop()`, SIGTERM or SIGINT, then drain.

        Raises AccessDenied if a right is missing. A broker that is away is waited for.
        """
        shared = Shared(
            self._connection,
            StepCommands(self._client, self.issued_by, spans=self._traces is not None),
            Topics(self._settings.topic_prefix).audit,
            self._traces,
            self._reader.done,
            self._stopping,
            self._abandoning,
        )
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
                    handler = self._handlers[received.item.task]
                    attempt = asyncio.create_task(StepAttempt(received, handler, shared).run())
                    self._attempts.add(attempt)
                    attempt.add_done_callback(self._ended)
            await self._drain(self._drain_timeout_s)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Take no more work; `run` returns when all running steps have ended or were released."""
        self._stopping.set()

    # Running steps

    @contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        handled: list[signal.Signals] = []
        for signum in self._signums:
            # Only the main thread may; elsewhere the program calls `stop`.
            with suppress(NotImplementedError, RuntimeError, ValueError):
                loop.add_signal_handler(signum, self.stop)
                handled.append(signum)
        try:
            yield
        finally:
            for signum in handled:
                loop.remove_signal_handler(signum)

    async def _a_free_slot(self) -> None:
        """Return when fewer than `concurrency` steps run, or on `stop()`."""
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
        """Let running steps end within `timeout_s`; release the rest."""
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
