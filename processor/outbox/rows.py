"""Convert rows to commands, and outcomes to columns. Pure.

**A command is applied once, however late its row is sent again.** The first sending gives the
command a bound: an `expires_at` half a dedupe window ahead, or the producer's own if that is
sooner. Every later sending repeats the command byte for byte. A copy that the broker appends before
the bound lies in the window of the first and is a `duplicate`; a later copy is `expired`. So no
second copy is applied, and one may be sent at any time to learn what became of the first. Outcomes
are in the order of decision and are read from the end that their topic had at the first sending:
**the first outcome is the row's**. Outcomes written while no relay ran are read before any sending.

If the first outcome is `expired` by the relay's own bound, no copy was in time, for instance
because Kafka was away for longer than half a window. Nothing was applied, and the row is sent again
with a new command id and a new bound. That requires all outcomes since the first sending. Retention
may have removed some of them RENEW_MAX_MS later; the row is then `unknown`.

**A row is `refused` only if Kafka certainly has no copy of its command.** The states of a row:

| state | Kafka has a copy | what follows |
|---|---|---|
| new | no | marked and sent; `refused` if no processor could read it as a command |
| sent for the first time | perhaps | sent; or `refused` if Kafka refuses this copy |
| sent, or found marked | perhaps | its outcome; sent again after half a window without one |
| copy refused by Kafka | perhaps | its outcome; tried once more after half a window |
| copy refused a second time | perhaps | `unknown`: no further copy would be applied |
| marked, and then edited beyond reading | perhaps | `unknown`: there is nothing to send again |

After `unknown` the flow's next row is sent, as after any outcome. A copy that Kafka has comes
before it; one that Kafka gets later is `expired`.
"""

from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import orjson

from processor.adapters.postgres.texts import json_text, text
from processor.contract.events import TRACEPARENT_HEADER
from processor.contract.headers import Headers
from processor.contract.outcomes import Code, Outcome, Verdict
from processor.contract.topics import OUTCOMES
from processor.contract.values import instant, parse_timestamp
from processor.domain import messages
from processor.engine.codec import Draft, Readable, Unreadable, decode
from processor.engine.encoding import encode

REFUSED: Final = "refused"
"""The verdict on a row of which Kafka has no copy: no processor could read it as a command, or
Kafka refused it."""
UNKNOWN: Final = "unknown"
"""The verdict on a row whose command may have been applied or not: there is no outcome to tell."""
RENEW_MAX_MS: Final = int(OUTCOMES.config["retention.ms"]) * 2 // 3
_IN_DOUBT: Final = "may have been applied: look at the flow before you insert a new row."
_EARLIER_COPY: Final = f"An earlier copy was sent, and {_IN_DOUBT}"


class OutboxRow(NamedTuple):
    """A row without an outcome. `sent_ms` and `expires_ms` are None before the first sending."""

    id: int
    flow_id: str
    command_id: str
    command: str
    traceparent: str | None
    sent_ms: int | None = None
    expires_ms: int | None = None
    outcomes_offset: int | None = None

    @property
    def headers(self) -> Headers:
        """The headers of the command's record."""
        if self.traceparent is None:
            return ()
        return [(TRACEPARENT_HEADER, self.traceparent.encode())]


class SentRow(NamedTuple):
    """A row with its command as it was sent."""

    row: OutboxRow
    sent: Readable

    @property
    def value(self) -> bytes:
        return self.sent.record.value or b""


class RowOutcome(NamedTuple):
    """The columns of a row's outcome; `details` is JSON."""

    id: int
    verdict: str
    code: str | None
    message: str
    revision: int | None = None
    status: str | None = None
    allowed: list[str] | None = None
    event_ids: list[int] | None = None
    details: str = "{}"


def bound_ms(row: OutboxRow, now_ms: int, window_ms: int) -> int:
    """The `expires_at` of a row's first sending, in ms: half a window ahead, as in FlowClient, or
    the producer's own if that is sooner."""
    bound = now_ms + window_ms // 2
    own = _own_bound_ms(row)
    return bound if own is None else min(own, bound)


def read_row(row: OutboxRow, expires_ms: int) -> Readable | Unreadable:
    """The command of `row` as it is sent, or why no processor could read it as one."""
    key = row.flow_id.encode()
    try:
        fields = orjson.loads(row.command)
    except orjson.JSONDecodeError:  # a number too large for orjson
        fields = None
    if not isinstance(fields, dict):
        return _unreadable(key, Code.MALFORMED, "not one JSON object within the limits")
    ids = {"flow_id": row.flow_id, "command_id": row.command_id}
    for name, column in ids.items():
        if fields.setdefault(name, column) != column:
            return _unreadable(
                key, Code.INVALID_COMMAND, f"{name} is not that of the row; leave it out"
            )
    own = fields.get("expires_at")
    if own is None or _own_bound_ms(row) is not None:
        fields["expires_at"] = instant(expires_ms)
    return decode(Draft(key, encode(fields)))


def refusal(row: OutboxRow, unreadable: Unreadable) -> RowOutcome:
    """The columns of a row that is never sent."""
    details = unreadable.details
    message = messages.refused(unreadable.code, {**details, "problem": unreadable.problem})
    return RowOutcome(
        row.id, REFUSED, unreadable.code.value, text(message), details=_details(details)
    )


def edited(row: OutboxRow, unreadable: Unreadable) -> RowOutcome:
    """The columns of a row that was sent, and now has a command that cannot be sent again."""
    problem = refusal(row, unreadable)._replace(verdict=UNKNOWN)
    return problem._replace(
        message=f"The row was edited after it was sent, and {_IN_DOUBT} {problem.message}"
    )


def refused_by_kafka(row: OutboxRow, why: str, *, certain: bool) -> RowOutcome:
    """The columns of a row that Kafka refuses; `certain`: Kafka has no earlier copy of it."""
    if certain:
        return RowOutcome(row.id, REFUSED, None, text(why))
    return RowOutcome(row.id, UNKNOWN, None, text(f"{why} {_EARLIER_COPY}"))


def is_of(sent: SentRow, outcome: Outcome, topic: str) -> bool:
    """Whether `outcome`, of the row's flow, is an outcome of the row's command on `topic`."""
    return (
        outcome.final
        and outcome.command_id == sent.row.command_id
        and outcome.source.topic == topic
        # Null where the workers could not read it.
        and outcome.command_digest in (None, sent.sent.digest.hex())
    )


def is_renewable(row: OutboxRow, outcome: Outcome, now_ms: int, window_ms: int) -> bool:
    """Whether the row reached Kafka after the relay's bound, but before the producer's own.

    False if this machine's clock is not near the bound: the broker's clock is then far ahead, and
    the next bound would also be too early.
    """
    if outcome.code is not Code.EXPIRED or row.sent_ms is None or row.expires_ms is None:
        return False
    own = _own_bound_ms(row)
    in_time = own is None or own > max(row.expires_ms, now_ms)
    clocks_agree = now_ms >= row.expires_ms - window_ms // 4
    return in_time and clocks_agree and _has_all_outcomes(row, now_ms)


def columns_of(row: OutboxRow, outcome: Outcome, now_ms: int) -> RowOutcome:
    """The columns of `outcome`; of a duplicate, the first outcome's. `expired` tells nothing of an
    earlier copy whose outcome retention may have removed."""
    verdict, message = outcome.verdict.value, outcome.message
    if outcome.verdict is Verdict.DUPLICATE and outcome.original is not None:
        verdict = outcome.original.value
    elif outcome.code is Code.EXPIRED and not _has_all_outcomes(row, now_ms):
        verdict, message = UNKNOWN, f"{message} {_EARLIER_COPY}"
    return RowOutcome(
        row.id,
        verdict,
        outcome.code and outcome.code.value,
        text(message),
        outcome.revision,
        outcome.status and outcome.status.value,
        outcome.allowed,
        outcome.event_ids,
        _details(outcome.details),
    )


def time_of(ms: int) -> datetime:
    """The time as PostgreSQL's driver takes it."""
    return datetime.fromtimestamp(ms / 1000, UTC)


def _has_all_outcomes(row: OutboxRow, now_ms: int) -> bool:
    """Whether `outcomes` still holds all since the row's first sending."""
    return row.sent_ms is not None and now_ms - row.sent_ms <= RENEW_MAX_MS


def _own_bound_ms(row: OutboxRow) -> int | None:
    """The producer's own `expires_at` in ms; None if there is none or it cannot be read."""
    try:
        own = orjson.loads(row.command)["expires_at"]
        return parse_timestamp(own) if isinstance(own, str) else None
    except (ValueError, LookupError, TypeError):
        return None


def _unreadable(key: bytes, code: Code, problem: str) -> Unreadable:
    return Unreadable(Draft(key, None), code, problem=problem)


def _details(details: dict[str, Any]) -> str:
    return json_text(orjson.dumps(details).decode())
