"""Send rows as commands, and write outcomes back into them, while one connection lasts."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog
from pydantic import ValidationError

from processor.adapters.kafka.errors import AccessDenied, PositionLost, explain
from processor.client.errors import CommandNotSent, SendUncertain
from processor.client.ports import Connection
from processor.contract.outcomes import Outcome
from processor.contract.rights import Operation, on_topic
from processor.contract.topics import Topics
from processor.engine.codec import Readable, Record
from processor.engine.partitioner import partition_of
from processor.outbox.database import DELETED_AT_ONCE, OutboxDatabase
from processor.outbox.metrics import OutboxMetrics
from processor.outbox.rows import (
    OutboxRow,
    RowOutcome,
    SentRow,
    bound_ms,
    columns_of,
    edited,
    is_of,
    is_renewable,
    read_row,
    refusal,
    refused_by_kafka,
)
from processor.runtime import end_tasks, sleep_unless, unless_stopped
from processor.settings import Settings

IN_FLIGHT_MAX: Final = 1000
"""Limit of the rows that were sent and have no outcome; after a crash they are sent again."""
FLOWS_AT_ONCE: Final = 500
"""Flows whose first row one query reads."""
POLL_S: Final = 1.0
"""Interval in seconds at which rows without a notification are found."""
HOUSEKEEPING_S: Final = 10.0
_FIRST_FLOW: Final = UUID(int=0)
_LAST_FLOW: Final = UUID(int=2**128 - 1)

log = structlog.get_logger()


@dataclass(slots=True)
class _Flight:
    """A row that was sent. Without an outcome it is sent again at `due_ms`; the outcome of the copy
    shows what became of the first."""

    sent: SentRow
    due_ms: int
    uncertain: bool = False
    """Whether Kafka may have a copy that was sent earlier."""
    refused: bool = False
    """Whether Kafka refused the copy that was sent last."""
    sending: "asyncio.Future[None] | None" = None


class OutboxExchange:
    """Exchanges the rows of one outbox for outcomes, one row of a flow at a time.

    1. Read the first row of a flow without an outcome. A row that no processor could read as a
       command is refused in the row, and the flow's next row follows.
    2. Mark the row as sent, with its bound and the end of `outcomes`. A crash from here on leaves a
       row that the next relay sends again, byte for byte.
    3. Write the command to `commands`, acknowledged by all replicas.
    4. Read its outcome from `outcomes` and write it into the row. A crash before the commit leaves
       a row whose outcome the next relay reads again.

    `rows` explains why no command is applied twice, however often and late it is sent again.
    """

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        database: OutboxDatabase,
        metrics: OutboxMetrics,
        progressed: Callable[[], object],
    ) -> None:
        """`progressed` is called after outcomes were written into their rows."""
        topics = Topics(settings.topic_prefix)
        self._settings = settings
        self._topic = topics.commands
        self._window_ms = settings.dedupe_window_ms
        self._clock = connection
        self._producer = connection.producer()
        self._reader = connection.reader(topics.outcomes)
        self._database = database
        self._turn = asyncio.Lock()
        """The database connection serves one statement at a time."""
        self._metrics = metrics
        self._progressed = progressed
        self._partitions = 0
        self._flights: dict[bytes, _Flight] = {}
        """By flow id."""
        self._sending: set[asyncio.Future[None]] = set()
        self._next_flow = _FIRST_FLOW
        self._woken = asyncio.Event()
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def close(self) -> None:
        """Close the Kafka clients; commands that are being sent may arrive or not."""
        await end_tasks(*self._sending)
        if self._failed.done():
            self._failed.exception()
        self._failed.cancel()
        await self._producer.close()
        await self._reader.close()
        # The rows may be another relay's now.
        for gauge in (self._metrics.in_flight, self._metrics.pending, self._metrics.oldest_seconds):
            gauge.set(0)

    async def resume(self, partitions: int) -> None:
        """Read the outcomes of rows that were sent before, and send those without one again.

        `partitions`: the number of partitions of `outcomes`. Raises OutboxRefused.
        """
        self._partitions = partitions
        await self._database.listen(self._woken.set)
        await self._producer.start()
        ends = await self._reader.open(range(partitions), "end")
        start, now_ms = dict(ends), self._clock.now_ms()
        for row in await self._database.sent(self._topic):
            assert row.expires_ms is not None
            assert row.outcomes_offset is not None
            read = read_row(row, row.expires_ms)
            if isinstance(read, Readable):
                self._flights[row.flow_id.encode()] = _Flight(
                    SentRow(row, read), now_ms, uncertain=True
                )
                partition = self._partition_of(row)
                start[partition] = min(start[partition], row.outcomes_offset)
            else:
                await self._put([edited(row, read)])
        await self._reader.open(range(partitions), start)
        while any(at < ends[p] for p, at in self._reader.positions.items()):
            await self._take_outcomes()
        self._send_what_is_due()
        self._metrics.in_flight.set(len(self._flights))

    async def run(self, stop: asyncio.Event, *, once: bool) -> None:
        """Exchange rows for outcomes until `stop` is set; with `once` until all have outcomes.

        Raises DatabaseUnavailable, DatabaseRefused, BrokerUnreachable.
        """
        tasks: set[asyncio.Future[None]] = {
            asyncio.ensure_future(self._publish(once=once)),
            asyncio.ensure_future(self._follow_outcomes()),
            asyncio.ensure_future(self._keep_house()),
        }
        try:
            ending = asyncio.wait({self._failed, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            done, _ = await unless_stopped(ending, stop) or ((), ())
            for task in done:
                task.result()
        finally:
            await end_tasks(*tasks)

    # Rows to commands

    async def _publish(self, *, once: bool) -> None:
        while True:
            self._woken.clear()
            self._send_what_is_due()
            all_done = await self._publish_pending()
            if once and all_done:
                return
            await sleep_unless(self._woken, POLL_S)

    async def _publish_pending(self) -> bool:
        """Send the first row of each flow without a row in flight, up to IN_FLIGHT_MAX in all.

        Returns whether all rows have outcomes. Flows take turns in the order of their ids.
        """
        began, all_done = self._next_flow, True
        while (room := IN_FLIGHT_MAX - len(self._flights)) > 0:
            async with self._turn:
                rows = await self._database.first_of_flows(self._next_flow, FLOWS_AT_ONCE)
            all_done = all_done and not rows
            free = [row for row in rows if row.flow_id.encode() not in self._flights]
            await self._publish_rows(free[:room])
            if len(free) > room:
                self._next_flow = UUID(free[room].flow_id)
            elif len(rows) == FLOWS_AT_ONCE and (last := UUID(rows[-1].flow_id)) < _LAST_FLOW:
                self._next_flow = UUID(int=last.int + 1)
            else:
                self._next_flow = _FIRST_FLOW
                if began == _FIRST_FLOW:
                    return all_done
                began, all_done = _FIRST_FLOW, True
        return False

    async def _publish_rows(self, rows: Iterable[OutboxRow]) -> None:
        now_ms = self._clock.now_ms()
        sent: list[SentRow] = []
        refused: list[RowOutcome] = []
        for row in rows:
            expires_ms = bound_ms(row, now_ms, self._window_ms)
            read = read_row(row, expires_ms)
            if isinstance(read, Readable):
                at = self._reader.positions[self._partition_of(row)]
                marked = row._replace(sent_ms=now_ms, expires_ms=expires_ms, outcomes_offset=at)
                sent.append(SentRow(marked, read))
            else:
                refused.append(refusal(row, read))
        if sent:
            async with self._turn:
                await self._database.mark_sent(self._topic, sent)
        if refused:
            await self._put(refused)
            self._woken.set()
        for one in sent:
            flight = self._flights[one.row.flow_id.encode()] = _Flight(one, now_ms)
            self._send(flight)
        self._metrics.in_flight.set(len(self._flights))

    def _send_what_is_due(self) -> None:
        now_ms = self._clock.now_ms()
        for flight in self._flights.values():
            if flight.due_ms <= now_ms and (flight.sending is None or flight.sending.done()):
                self._send(flight)

    def _send(self, flight: _Flight) -> None:
        """Write the command in the background, and again after half a window without an outcome."""
        flight.due_ms = self._clock.now_ms() + self._window_ms // 2 + 1
        flight.sending = asyncio.ensure_future(self._write(flight))
        self._sending.add(flight.sending)
        flight.sending.add_done_callback(self._sent)

    def _sent(self, sending: "asyncio.Future[None]") -> None:
        self._sending.discard(sending)
        if sending.cancelled() or (error := sending.exception()) is None:
            return
        if not self._failed.done():
            self._failed.set_exception(error)

    async def _write(self, flight: _Flight) -> None:
        row = flight.sent.row
        try:
            await self._producer.send(
                self._topic,
                row.flow_id.encode(),
                flight.sent.value,
                row.headers,
                handed_over=lambda: None,
            )
        except (CommandNotSent, SendUncertain) as error:
            needs = on_topic(Operation.WRITE, self._topic)
            failure = explain(error.__cause__ or error, self._settings, needs=needs)
            if isinstance(failure, AccessDenied):
                raise failure from error
            await self._take_refusal(flight, error)
        else:
            flight.uncertain, flight.refused = True, False
            self._metrics.sent.inc()

    async def _take_refusal(self, flight: _Flight, error: CommandNotSent | SendUncertain) -> None:
        """End a row that Kafka refuses; first await its outcome where Kafka may have a copy."""
        row, certain = flight.sent.row, isinstance(error, CommandNotSent)
        if not certain or (flight.uncertain and not flight.refused):
            flight.uncertain, flight.refused = True, certain
            log.warning(
                "Kafka refused a command that it may have", flow_id=row.flow_id, error=str(error)
            )
            return
        key = row.flow_id.encode()
        if self._flights.get(key) is not flight:
            return  # its outcome came meanwhile
        await self._put([refused_by_kafka(row, str(error), certain=not flight.uncertain)])
        if self._flights.get(key) is flight:
            del self._flights[key]
        self._metrics.in_flight.set(len(self._flights))
        self._woken.set()

    # Outcomes to rows

    async def _follow_outcomes(self) -> None:
        while True:
            await self._take_outcomes()

    async def _take_outcomes(self) -> None:
        try:
            records = await self._reader.poll(wait_s=POLL_S)
        except PositionLost as lost:
            log.warning("outcomes were lost or recreated", error=str(lost))
            await self._reader.rewind(lost.positions)
            return
        found = self._outcomes_of_rows(records)
        if not found:
            return
        now_ms = self._clock.now_ms()
        outcomes, renewed = [], []
        for flight, outcome in found.values():
            if is_renewable(flight.sent.row, outcome, now_ms, self._window_ms):
                renewed.append(flight.sent.row.id)
            else:
                outcomes.append(columns_of(flight.sent.row, outcome, now_ms))
        await self._put(outcomes, renewed)
        self._progressed()
        for key, (flight, _) in found.items():
            if self._flights.get(key) is flight:
                del self._flights[key]
            self._metrics.outcome_seconds.observe(
                max(now_ms - (flight.sent.row.sent_ms or now_ms), 0) / 1000
            )
        self._metrics.in_flight.set(len(self._flights))
        self._woken.set()

    def _outcomes_of_rows(self, records: Sequence[Record]) -> dict[bytes, tuple[_Flight, Outcome]]:
        """The first outcome of each row in flight, by flow id."""
        found: dict[bytes, tuple[_Flight, Outcome]] = {}
        for record in records:
            key = record.key or b""
            flight = self._flights.get(key)
            if flight is None or key in found:
                continue
            try:
                outcome = Outcome.model_validate_json(record.value or b"")
            except ValidationError:
                log.error(
                    "a record is no outcome",
                    topic=record.topic,
                    partition=record.partition,
                    offset=record.offset,
                )
                continue
            if is_of(flight.sent, outcome, self._topic):
                found[key] = flight, outcome
        return found

    async def _put(self, outcomes: Sequence[RowOutcome], renewed: Sequence[int] = ()) -> None:
        async with self._turn:
            await self._database.put(outcomes, renewed)
        for outcome in outcomes:
            self._metrics.outcomes.labels(outcome.verdict).inc()
        self._metrics.renewed.inc(len(renewed))

    # Housekeeping

    async def _keep_house(self) -> None:
        """Count the rows without an outcome, and delete old ones with one."""
        while True:
            async with self._turn:
                backlog = await self._database.backlog()
            self._metrics.pending.set(backlog.rows)
            self._metrics.oldest_seconds.set(backlog.oldest_s)
            if self._settings.outbox_retain_ms is not None:
                await self._delete_older(self._settings.outbox_retain_ms)
            await asyncio.sleep(HOUSEKEEPING_S)

    async def _delete_older(self, retain_ms: int) -> None:
        while True:
            async with self._turn:
                deleted = await self._database.delete_older(retain_ms)
            self._metrics.deleted.inc(deleted)
            if deleted < DELETED_AT_ONCE:
                return

    def _partition_of(self, row: OutboxRow) -> int:
        return partition_of(row.flow_id.encode(), self._partitions)
