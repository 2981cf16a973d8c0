"""FlowClient: send a command and await its outcome."""

import asyncio
import getpass
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import uuid4

from aiokafka.errors import ProducerClosed
from pydantic import ValidationError

from processor.adapters.kafka.errors import PositionLost
from processor.client.connection import connect
from processor.client.errors import CommandNotSent, OutcomeTimeout, SendUncertain
from processor.client.flow_handle import FlowHandle
from processor.client.pending_outcome import NoLongerRead, Pending, Registry
from processor.client.preparation import Prepared, prepare
from processor.contract import Command, Outcome, Source, Topics
from processor.contract.events import TRACEPARENT_HEADER
from processor.contract.rights import Operation
from processor.engine.codec import Record
from processor.errors import TaskflowError
from processor.runtime import end_tasks
from processor.settings import Settings, load_settings
from processor.telemetry.tracing import producer_traces

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

TIMEOUT_S: Final = 30.0
IN_FLIGHT_MAX: Final = 10_000
POLL_WAIT_S: Final = 1.0
CLOSED: Final = "The client was closed"

_log = logging.getLogger(__name__)


def default_session() -> str:
    """Return login and host as a session key; a container may know no name."""
    try:
        login = getpass.getuser()
    except (OSError, KeyError):
        login = f"uid-{os.getuid()}"
    return f"{login}@{socket.gethostname()}"[:256]


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where Kafka has put a command. `offset` is None in the rare case that it did not say:
    the record was there already when it was written again after a lost answer."""

    command: Command
    topic: str
    partition: int
    offset: int | None

    @property
    def command_id(self) -> str:
        return self.command.command_id


class FlowClient:
    """Sends commands and awaits their outcomes; an async context manager.

    `create` makes a flow and returns a FlowHandle, `flow` one of a flow that is there; `send` and
    `publish` take any command.

    `settings`: from the environment if None. `session`: the session key that the commands of
    `create` and of handles are issued by, and that owns the flows; by default this login and host.
    Many calls may be under way at once, up to `in_flight_max`; more wait for their turn. Calls do
    not keep an order among themselves: await one before the next where order matters.

    A command without `expires_at` gets one half the dedupe window from now (unless `expire` is
    false), so that it can never be applied twice, however late a copy arrives. Half, because the
    broker's clock decides and not ours: it holds as long as the two are less than half a window
    apart, 30 minutes by default. `settings.dedupe_window_ms` must be that of the workers.

    Where the program has set up OpenTelemetry (or `tracer_provider` is given), each command gets a
    span and takes its context along, unless the caller gives a `traceparent`.

    Outcomes are read from the moment of the first `send`; a client that only publishes reads
    none. Entering raises BrokerUnreachable, after some patience.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        session: str | None = None,
        expire: bool = True,
        in_flight_max: int = IN_FLIGHT_MAX,
        tracer_provider: "TracerProvider | None" = None,
    ) -> None:
        self.settings = settings = settings or load_settings()
        self.session = session or default_session()
        self._topics = Topics(settings.topic_prefix)
        self._expires_after_ms = settings.dedupe_window_ms // 2 if expire else None
        self._connection = connect(settings)
        self._producer = self._connection.producer()
        self._found: dict[str, int] = {}
        self._finding = asyncio.Lock()
        self._slots = asyncio.Semaphore(in_flight_max)
        self._pending = Registry()
        self._outcomes = self._connection.reader(self._topics.outcomes)
        self._following: asyncio.Task[None] | None = None
        self._opening = asyncio.Lock()
        self._closed = False
        self._traces = producer_traces(tracer_provider)

    async def __aenter__(self) -> Self:
        try:
            await self._producer.start()
        except BaseException:
            await self._producer.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Calls that are still under way end with OutcomeTimeout."""
        self._closed = True
        self._pending.fail(CLOSED)
        if self._following is not None:
            await end_tasks(self._following)
        await self._producer.close()

    async def create(
        self,
        goal: str,
        *,
        flow_id: str | None = None,
        state: Any = None,
        step: str | None = None,
        controller: str | None = None,
        origin: str | None = None,
        running: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> FlowHandle:
        """Create a flow that this session owns, and return its handle.

        - `goal`: what it is for, for people; up to 4,096 characters.
        - `flow_id`: a UUID, or `flow_id_for("order-17")` for a business key; random if None.
        - `controller`: the component that drives the flow, such as "triage-agent". By default the
          session.
        - `origin`: where the request came from, such as "web" or "mail:inbox". By default "api".
        - `running`: the work runs elsewhere already: `create_mirrored`.

        Raises CommandRefused, with code `already_exists` for a flow id that is taken, and what
        `send` raises.
        """
        command = {
            "kind": "create_mirrored" if running else "create_managed",
            "flow_id": flow_id or str(uuid4()),
            "issued_by": self.session,
            "controller_id": controller or self.session,
            "goal": goal,
            "requester_origin": origin or "api",
        }
        if state is not None:
            command["state_json"] = state
        if step is not None:
            command["current_step"] = step
        handle = self.flow(command["flow_id"])
        handle.seen(await self.send(command, timeout_s=timeout_s))
        return handle

    def now_ms(self) -> int:
        """Return the time of day, in ms since 1970, from which spans of time count."""
        return self._connection.now_ms()

    def flow(self, flow_id: str) -> FlowHandle:
        """Return a handle of a flow that is there; it knows neither revision nor status yet."""
        return FlowHandle(self, flow_id)

    def prepare(self, command: Command | Mapping[str, Any]) -> Command:
        """`command` with its `command_id` and `expires_at` filled in, to be sent as often as it
        takes. Raises InvalidCommand."""
        return self._prepare(command).command

    async def send(
        self,
        command: Command | Mapping[str, Any],
        *,
        control: bool = False,
        timeout_s: float = TIMEOUT_S,
        traceparent: str | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Outcome:
        """Write `command` and await its outcome: accepted, rejected, duplicate or quarantined.

        `control`: on the control topic, with an operator's authority. `timeout_s` is for all of
        it. `traceparent`: W3C trace context for everything that the command causes. `headers`:
        more of the record's, which nothing that it causes carries.

        Raises OutcomeTimeout if it may still be applied, and can be sent again; InvalidCommand,
        CommandNotSent, BrokerUnreachable and TopicsWrong if it will not be.
        """
        sending = self._sending(command, control=control, traceparent=traceparent, headers=headers)
        pending = sending.pending = Pending(
            sending.key, sending.command.command_id, sending.digest, sending.topic
        )
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                await self._follow_outcomes()
                with self._pending.holding(pending):
                    await self._produce(sending)
                    return await pending.future
        except TimeoutError:
            if (outcome := pending.at_the_deadline()) is not None:
                return outcome
            raise sending.unanswered(f"No outcome came within {timeout_s:g} s") from None
        except NoLongerRead as error:
            raise sending.unanswered(str(error)) from error
        except ProducerClosed as error:
            raise sending.unanswered(CLOSED) from error

    async def publish(
        self,
        command: Command | Mapping[str, Any],
        *,
        control: bool = False,
        timeout_s: float = TIMEOUT_S,
        traceparent: str | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> Receipt:
        """Write `command` and return once all replicas have it, without awaiting its outcome.

        Raises as `send` does; OutcomeTimeout here means that Kafka did not acknowledge it.
        """
        sending = self._sending(command, control=control, traceparent=traceparent, headers=headers)
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                return await self._produce(sending)
        except TimeoutError:
            raise sending.unanswered(f"Kafka did not acknowledge within {timeout_s:g} s") from None
        except ProducerClosed as error:
            raise sending.unanswered(CLOSED) from error

    def _prepare(self, command: Command | Mapping[str, Any]) -> Prepared:
        return prepare(
            command,
            now_ms=self.now_ms(),
            expires_after_ms=self._expires_after_ms,
        )

    def _sending(
        self,
        command: Command | Mapping[str, Any],
        *,
        control: bool,
        traceparent: str | None,
        headers: Sequence[tuple[str, bytes]],
    ) -> "_Sending":
        traced = [] if traceparent is None else [(TRACEPARENT_HEADER, traceparent.encode())]
        topic = self._topics.control if control else self._topics.commands
        return _Sending(*self._prepare(command), topic=topic, headers=[*headers, *traced])

    async def _produce(self, sending: "_Sending") -> Receipt:
        if self._closed:
            raise ProducerClosed
        await self._find(sending.topic)
        if self._traces is None:
            return await self._write(sending)
        with self._traces.sending(
            sending.topic, sending.key, sending.command, sending.headers
        ) as span:
            receipt = await self._write(sending)
            self._traces.written(span, receipt.partition, receipt.offset)
            return receipt

    async def _write(self, sending: "_Sending") -> Receipt:
        try:
            written = await self._producer.send(
                sending.topic,
                sending.key,
                sending.value,
                sending.headers,
                handed_over=sending.handed_over,
            )
        except SendUncertain as refused:
            raise sending.unanswered(str(refused)) from refused
        offset = written.offset if written.offset >= 0 else None
        receipt = Receipt(sending.command, sending.topic, written.partition, offset)
        sending.written(receipt)
        return receipt

    async def _find(self, topic: str) -> None:
        """Make sure that the topic is there; aiokafka would wait for it to appear."""
        if topic not in self._found:
            async with self._finding:
                if topic not in self._found:
                    self._found |= await self._connection.count_partitions([topic], Operation.WRITE)

    async def _follow_outcomes(self) -> None:
        """From the end as it is before the first command is sent."""
        if self._following is not None and not self._following.done():
            return
        async with self._opening:
            if self._closed:
                raise ProducerClosed
            if self._following is None or self._following.done():
                topic = self._topics.outcomes
                count = (await self._connection.count_partitions([topic]))[topic]
                await self._outcomes.open(range(count), "end")
                self._following = asyncio.create_task(self._deliver_outcomes())

    async def _deliver_outcomes(self) -> None:
        try:
            while True:
                try:
                    for record in await self._outcomes.poll(wait_s=POLL_WAIT_S):
                        self._deliver(record)
                except PositionLost as lost:
                    _log.warning("outcomes were lost or recreated: %s", lost)
                    await self._outcomes.rewind(lost.positions)
        except TaskflowError as error:
            self._pending.fail(f"The outcomes can no longer be read: {error}")
        finally:
            await self._outcomes.close()

    def _deliver(self, record: Record) -> None:
        if record.key is None or not self._pending.wants(record.key):
            return
        try:
            outcome = Outcome.model_validate_json(record.value or b"")
        except ValidationError:
            # Without its fields its call is unknown; that call runs into its timeout.
            _log.error(
                "%s/%d holds no outcome at offset %d",
                record.topic,
                record.partition,
                record.offset,
            )
            return
        self._pending.deliver(record.key, outcome)


@dataclass(slots=True)
class _Sending:
    """One call, and how far it has come."""

    command: Command
    key: bytes
    value: bytes
    digest: str
    topic: str
    headers: list[tuple[str, bytes]]
    pending: Pending | None = None
    receipt: Receipt | None = None
    times: int = 0
    """How often the record was given to a producer: from the first on it may be in Kafka."""

    def handed_over(self) -> None:
        if self.times and self.pending is not None:
            self.pending.written_twice()
        self.times += 1

    def written(self, receipt: Receipt) -> None:
        self.receipt = receipt
        if self.pending is not None:
            self.pending.written(
                None
                if receipt.offset is None
                else Source(topic=receipt.topic, partition=receipt.partition, offset=receipt.offset)
            )

    def unanswered(self, reason: str) -> TaskflowError:
        if self.times:
            return OutcomeTimeout(self.command, self.receipt, reason)
        return CommandNotSent(f"{reason}, nor was the command sent.", retriable=True)
