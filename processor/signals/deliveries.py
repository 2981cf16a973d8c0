"""Send `resume_external` for each match until it has an outcome.

The commands are derived from the matcher's state, so a restart needs no record of sent commands:
the same signal, wait and revision make the same command, which is decided once. The outcome does
not prove delivery; the matcher reads from the audit which command ended the wait.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from processor.client import FlowClient, InvalidCommand
from processor.client.signals.signal_reader import resume_command
from processor.contract.outcomes import Code, Outcome, Verdict
from processor.errors import TaskflowError
from processor.runtime import end_tasks
from processor.signals.folds import signal_of
from processor.signals.matcher import Delivery, DeliveryKey
from processor.signals.metrics import SignalMetrics

TIMEOUT_S: Final = 30.0
RETRY_PAUSE_S: Final = 1.0
FOR_GOOD: Final = frozenset({Code.STATE_TOO_LARGE, Code.IDEMPOTENCY_CONFLICT})
"""Refusals that the same signal would get again at the same wait. After any other refusal the audit
shows what ended the wait."""

log = structlog.get_logger()

Refuse = Callable[[Delivery, str], Awaitable[None]]
"""Called with a delivery that its flow refuses for good, and why."""


class Deliveries:
    """The commands of one partition's matcher that have no outcome yet."""

    def __init__(self, client: FlowClient, metrics: SignalMetrics, refuse: Refuse) -> None:
        self._client = client
        self._metrics = metrics
        self._refuse = refuse
        self._tasks: dict[DeliveryKey, asyncio.Task[None]] = {}

    def update(self, wanted: Iterable[Delivery]) -> None:
        """Send the new deliveries of `wanted`; drop those that are no longer in it."""
        by_key = {delivery.identity: delivery for delivery in wanted}
        for key in self._tasks.keys() - by_key.keys():
            # Its wait has ended, or has another revision.
            self._tasks.pop(key).cancel()
        for key, delivery in by_key.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._deliver(delivery))

    async def close(self) -> None:
        """Stop sending; the partition's next owner sends the missing commands."""
        tasks, self._tasks = list(self._tasks.values()), {}
        await end_tasks(*tasks)

    async def _deliver(self, delivery: Delivery) -> None:
        command = resume_command(
            signal_of(delivery.key, delivery.signal),
            flow_id=delivery.flow_id,
            command_id=delivery.command_id,
            revision=delivery.revision,
        )
        while True:
            try:
                outcome = await self._client.send(
                    command, timeout_s=TIMEOUT_S, traceparent=delivery.signal.traceparent
                )
            except InvalidCommand as error:
                await self._refuse(delivery, str(error))
                return
            except TaskflowError as error:  # of the brokers, or no outcome in time
                log.warning("a signal is sent again", flow_id=delivery.flow_id, error=str(error))
            else:
                await self._decided(delivery, outcome)
                return
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _decided(self, delivery: Delivery, outcome: Outcome) -> None:
        verdict = outcome.original if outcome.verdict is Verdict.DUPLICATE else outcome.verdict
        self._metrics.sent.labels(outcome.code or verdict).inc()
        if verdict is Verdict.ACCEPTED:
            since_s = time.time() - delivery.since_ms / 1000
            self._metrics.delivery_seconds.observe(max(since_s, 0))
        elif verdict is Verdict.QUARANTINED or outcome.code in FOR_GOOD:
            await self._refuse(delivery, f"Flow {delivery.flow_id}: {outcome.message}")
