"""Step: one attempt at a managed step, as its handler sees it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any, Final

from processor.contract.steps import StepFailure, WorkItem

ATTEMPT_LOGGER: Final = logging.getLogger("processor.client.step")


class GiveUp(Exception):
    """Raised by a handler: the step fails for good, with this text as its reason."""


class RetryAfter(Exception):
    """Raised by a handler: try again after `seconds` instead of the step's backoff."""

    def __init__(self, seconds: float, reason: str = "") -> None:
        if not 0 <= seconds <= 86_400:
            raise ValueError("seconds must lie within 0 and 86,400")
        self.seconds = seconds
        super().__init__(reason or f"asked to be retried after {seconds:g} s")


class Step:
    """One attempt at a managed step; the handler's only parameter.

    - `flow_id`, `run_id`, `task`: which step of which flow, and what is to be done.
    - `input`: the step's `input_json`.
    - `attempt`, `max_attempts`: counted from 1; `is_last_attempt`.
    - `last_progress`, `last_failure`: what the attempt before this one left, or None. Read from
      `audit`, and only where there was an earlier attempt.
    - `idempotency_key`: `flow_id/run_id/attempt`. The same for everything that one attempt does;
      `flow_id/run_id` (`step_key`) is the same over all attempts.
    - `cancel_requested`: the flow's cancel was asked for. The lease still holds; stop soon.
    - `log`: a logger that adds flow, run and attempt to each line.
    """

    def __init__(
        self,
        item: WorkItem,
        *,
        attempt: int,
        lease: "Lease",
        report: Callable[[Any], Awaitable[None]],
        last_progress: Any = None,
        last_failure: StepFailure | None = None,
        traceparent: str | None = None,
    ) -> None:
        self.flow_id = item.flow_id
        self.run_id = item.run_id
        self.task = item.task
        self.input = item.input_json
        self.attempt = attempt
        self.max_attempts = item.max_attempts
        self.last_progress = last_progress
        self.last_failure = last_failure
        self.traceparent = traceparent
        self.log = _AttemptLog(
            ATTEMPT_LOGGER, {"flow_id": self.flow_id, "run_id": self.run_id, "attempt": attempt}
        )
        self._lease = lease
        self._report = report

    @property
    def step_key(self) -> str:
        return f"{self.flow_id}/{self.run_id}"

    @property
    def idempotency_key(self) -> str:
        return f"{self.flow_id}/{self.run_id}/{self.attempt}"

    @property
    def is_last_attempt(self) -> bool:
        return self.attempt >= self.max_attempts

    @property
    def deadline(self) -> datetime:
        """When the lease ends unless it is extended, by the broker's clock."""
        return datetime.fromtimestamp(self._lease.due_ms / 1000, UTC)

    @property
    def time_left_s(self) -> float:
        """How long the lease holds by this process's own clock; it is extended meanwhile."""
        return self._lease.time_left_s

    @property
    def cancel_requested(self) -> bool:
        return self._lease.cancel_requested.is_set()

    async def wait_for_cancel(self) -> None:
        """Return once the flow's cancel is asked for."""
        await self._lease.cancel_requested.wait()

    async def progress(self, value: Any) -> None:
        """Record `value` (JSON, at most 4 KiB) as the step's progress, and extend the lease.

        The next attempt gets it as `last_progress`. Raises InvalidCommand if it is no JSON.
        """
        await self._report(value)


class Lease:
    """How long the step is ours, by a clock that never overestimates it.

    The broker counts a lease from the append time of the command that gave it; this one counts
    from before that command was sent.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ends_s = 0.0
        self.due_ms = 0
        """By the broker's clock, ms since 1970."""
        self.cancel_requested = asyncio.Event()
        self.lost: str | None = None
        """Why the step is no longer ours; None while it is."""

    def granted(self, sent_s: float, appended_ms: int, due_ms: int) -> None:
        """A command that was sent at `sent_s` (monotonic) has the lease end at `due_ms`."""
        self._ends_s = sent_s + (due_ms - appended_ms) / 1000
        self.due_ms = due_ms

    @property
    def time_left_s(self) -> float:
        return self._ends_s - self._monotonic()


class _AttemptLog(logging.LoggerAdapter[logging.Logger]):
    """Adds the attempt's names to the line and to the record's attributes."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        assert self.extra is not None
        names = dict(self.extra)
        kwargs["extra"] = {**names, **kwargs.get("extra", {})}
        where = "[flow {flow_id} run {run_id} attempt {attempt}]".format_map(names)
        return f"{msg} {where}", kwargs
