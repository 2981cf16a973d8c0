"""Send the commands of an executor until they are answered."""

import logging
from typing import Any, Final

from aiokafka.errors import ProducerClosed
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential

from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable
from processor.client.errors import CommandNotSent, InvalidCommand, OutcomeTimeout
from processor.client.flow_client import FlowClient
from processor.client.ports import ReceivedItem
from processor.contract import Command, Outcome, parse_timestamp
from processor.contract.outcomes import Verdict
from processor.errors import TaskflowError

SEND_TIMEOUT_S: Final = 10.0
RETRY_PAUSE_MIN_S: Final = 0.1
RETRY_PAUSE_MAX_S: Final = 5.0

_log = logging.getLogger(__name__)


class StepCommands:
    """Commands about the steps that one executor, `issued_by`, works on.

    `spans`: whether the executor has spans of its own, which the client passes on.
    """

    def __init__(self, client: FlowClient, issued_by: str, *, spans: bool) -> None:
        self.broker_ms = 0
        """The newest append time that an outcome has named."""
        self._client = client
        self._issued_by = issued_by
        self._spans = spans

    def prepare(self, received: ReceivedItem, kind: str, **fields: Any) -> Command:
        """Raises InvalidCommand."""
        return self._client.prepare(
            {
                "kind": kind,
                "flow_id": received.item.flow_id,
                "issued_by": self._issued_by,
                "run_id": received.item.run_id,
                **fields,
            }
        )

    async def done(self, received: ReceivedItem, kind: str, **fields: Any) -> Outcome:
        """Send one command until its outcome comes. Raises InvalidCommand, AccessDenied."""
        return await self.outcome(self.prepare(received, kind, **fields), received)

    async def outcome(self, command: Command, received: ReceivedItem) -> Outcome:
        """Send this command, the same each time, until its outcome comes. Raises as `done`."""
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_may_get_outcome),
            wait=wait_exponential(multiplier=RETRY_PAUSE_MIN_S, max=RETRY_PAUSE_MAX_S),
            before_sleep=_say_again,
            reraise=True,
        ):
            with attempt:
                outcome = await self._client.send(
                    command,
                    timeout_s=SEND_TIMEOUT_S,
                    # Within a span of our own the client passes that one on.
                    traceparent=None if self._spans else received.traceparent,
                )
        self.broker_ms = max(self.broker_ms, parse_timestamp(outcome.at))
        return outcome


def _may_get_outcome(error: BaseException) -> bool:
    if isinstance(error, InvalidCommand | AccessDenied | ProducerClosed):
        return False
    if isinstance(error, OutcomeTimeout | CommandNotSent | BrokerUnreachable):
        return True
    return isinstance(error, TaskflowError) and error.retriable


def _say_again(state: RetryCallState) -> None:
    assert state.outcome is not None
    _log.warning("%s; sending it again", state.outcome.exception())


def is_accepted(outcome: Outcome) -> bool:
    return Verdict.ACCEPTED in (outcome.verdict, outcome.original)
