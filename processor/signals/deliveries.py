"""Send `resume_external` for each match until it has an outcome.

The commands are derived from the matcher's state, so a restart needs no record of sent commands:
the same signal, wait and revision make the same command, which is decided once. The outcome does
not prove delivery; the matcher reads from the audit which command ended the wait.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import structlog
from tenacity import AsyncRetrying, RetryCallState, wait_exponential

from processor.client import FlowClient, InvalidCommand
from processor.client.signals.signal_reader import resume_command
from processor.contract.outcomes import Code, Outcome, Verdict
from processor.errors import TaskflowError
from processor.runtime import end_tasks
from processor.signals.folds import signal_of
from processor.signals.matcher import Delivery, DeliveryKey
from processor.signals.metrics import SignalMetrics

TIMEOUT_S: Final = 30.0
RETRY_PAUSE_MIN_S: Final = 1.0
RETRY_PAUSE_MAX_S: Final = 10.0
IN_FLIGHT_MAX: Final = 1000
"""Commands of one partition that are sent and have no outcome; further matches wait."""
FOR_GOOD: Final = frozenset({Code.STATE_TOO_LARGE, Code.IDEMPOTENCY_CONFLICT})
"""Refusals that the same signal would get again at the same wait. After any other refusal the audit
shows what ended the wait."""

log = structlog.get_logger()

Refuse = Callable[[Delivery, str], Awaitable[None]]
"""Called with a delivery that its flow refuses for good, and why."""


class Deliveries:
    """The commands of one partition's matcher that have no outcome yet: up to IN_FLIGHT_MAX are in
    flight, in the order of their matches.

    Matches beyond that wait in the matcher, whose state is in memory in any case. Reading goes on:
    it shows what ended a wait, and lets signals expire. A flow has one wait, and a wait one signal,
    so commands of one flow do not overtake each other.
    """

    def __init__(self, client: FlowClient, metrics: SignalMetrics, refuse: Refuse) -> None:
        self._client = client
        self._metrics = metrics
        self._refuse = refuse
        self._tasks: dict[DeliveryKey, asyncio.Task[None]] = {}
        self._waiting: dict[DeliveryKey, Delivery] = {}
        self._done: set[DeliveryKey] = set()
        """Deliveries with an outcome that the matcher still has."""

    @property
    def pending(self) -> int:
        """The number of matches without an outcome."""
        return len(self._tasks) + len(self._waiting)

    def update(self, wanted: Iterable[Delivery]) -> None:
        """Send the new deliveries of `wanted` in their order; drop those that are not in it."""
        by_key = {delivery.identity: delivery for delivery in wanted}
        for key in self._tasks.keys() - by_key.keys():
            # Its wait has ended, or has another revision.
            self._tasks.pop(key).cancel()
        self._done &= by_key.keys()
        self._waiting = {
            key: delivery
            for key, delivery in by_key.items()
            if key not in self._tasks and key not in self._done
        }
        self._send_waiting()

    async def close(self) -> None:
        """Stop sending; the partition's next owner sends the missing commands."""
        tasks, self._tasks, self._waiting = list(self._tasks.values()), {}, {}
        await end_tasks(*tasks)

    def _send_waiting(self) -> None:
        while self._waiting and len(self._tasks) < IN_FLIGHT_MAX:
            key = next(iter(self._waiting))
            task = asyncio.create_task(self._deliver(self._waiting.pop(key)))
            self._tasks[key] = task
            task.add_done_callback(partial(self._ended, key))

    def _ended(self, key: DeliveryKey, task: asyncio.Task[None]) -> None:
        if self._tasks.get(key) is task:  # otherwise it was dropped
            del self._tasks[key]
            self._done.add(key)
            self._send_waiting()

    async def _deliver(self, delivery: Delivery) -> None:
        """Send the command until there is an outcome, whatever fails."""
        async for attempt in AsyncRetrying(
            wait=wait_exponential(multiplier=RETRY_PAUSE_MIN_S, max=RETRY_PAUSE_MAX_S),
            before_sleep=partial(_note_failure, delivery),
        ):
            with attempt:
                await self._send(delivery)

    async def _send(self, delivery: Delivery) -> None:
        command = resume_command(
            signal_of(delivery.key, delivery.signal),
            flow_id=delivery.flow_id,
            command_id=delivery.command_id,
            revision=delivery.revision,
        )
        try:
            outcome = await self._client.send(
                command, timeout_s=TIMEOUT_S, traceparent=delivery.signal.traceparent
            )
        except InvalidCommand as error:
            await self._refuse(delivery, str(error))
        else:
            await self._decided(delivery, outcome)

    async def _decided(self, delivery: Delivery, outcome: Outcome) -> None:
        verdict = outcome.original if outcome.verdict is Verdict.DUPLICATE else outcome.verdict
        self._metrics.sent.labels(outcome.code or verdict).inc()
        if verdict is Verdict.ACCEPTED:
            since_s = time.time() - delivery.since_ms / 1000
            self._metrics.delivery_seconds.observe(max(since_s, 0))
        elif verdict is Verdict.QUARANTINED or outcome.code in FOR_GOOD:
            await self._refuse(delivery, f"Flow {delivery.flow_id}: {outcome.message}")


def _note_failure(delivery: Delivery, attempt: RetryCallState) -> None:
    error = attempt.outcome.exception() if attempt.outcome is not None else None
    # A TaskflowError is the brokers', or no outcome in time; a developer needs the others' traces.
    unforeseen = None if isinstance(error, TaskflowError) else error
    log.warning(
        "a signal is sent again", flow_id=delivery.flow_id, error=str(error), exc_info=unforeseen
    )
