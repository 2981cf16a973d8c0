"""Responses of the views' HTTP API: the models behind the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    model_validator,
)

from processor.contract.events import AnyEvent, EventKind
from processor.contract.flow import Flow, FlowStatus
from processor.contract.outcomes import Code, Outcome
from processor.contract.steps import AnyStep, Execution, StepStatus
from processor.contract.values import (
    EventId,
    Instant,
    Json,
    LongText,
    Revision,
    Source,
    Text,
    Uuid,
)


class ResponseModel(BaseModel):
    """What all answers share."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class PartitionView(ResponseModel):
    """How far one partition of `audit` is projected."""

    partition: Annotated[int, Field(ge=0)]
    event_id: Annotated[int, Field(ge=0)]
    """The newest event that the answer includes; partition * 2^40 if there is none."""
    behind: Annotated[int, Field(ge=0)] | None
    """Offsets of `audit` that are committed and not projected yet; null if not known yet."""


class View(ResponseModel):
    """How fresh and how whole an answer is."""

    complete: bool
    """Whether all partitions are in it."""
    missing: list[int]
    """Partitions that no worker answered for."""
    behind: Annotated[int, Field(ge=0)] | None
    """Offsets of `audit` that are committed and not projected yet, in all; null: not known yet."""
    lag_ms: Annotated[int, Field(ge=0)] | None
    """For how long the most delayed partition has been behind; 0 if none is; null: not known."""
    partitions: list[PartitionView]


# Flows


class FlowSummary(ResponseModel):
    """A flow without its state."""

    id: Uuid
    controller_id: Text
    goal: LongText
    owner_session_key: Text
    requester_origin: Text
    current_step: Text
    wait_json: Json
    """What the flow waits for. All readers see it: `correlation_id` is the authority to resume the
    flow from outside (`resume_external`), and `prompt` is what its owner asks."""
    wait_ends_at: Instant | None
    """When the wait ends by itself."""
    status: FlowStatus
    cancel_requested: bool
    revision: Revision
    created_at: Instant
    updated_at: Instant
    partition: Annotated[int, Field(ge=0)]
    first_event_id: EventId
    """Of the event that created it; a flow that was pruned and created again has another one."""
    state_bytes: Annotated[int, Field(ge=0)]


class FlowPage(ResponseModel):
    items: list[FlowSummary]
    next_cursor: str | None
    """null: there is no more."""
    searched_all: bool
    """false: a view worker has looked for the conditions of `q` in 20,000 flows and has more, which
    may meet them too; only where the page is not full. Narrow the search by another parameter."""
    view: View


class StepSummary(ResponseModel):
    """A managed step without its input and result."""

    id: Uuid
    flow_id: Uuid
    runtime: Literal["managed"]
    child_session_key: Text | None
    run_id: Text
    task: Text
    status: StepStatus
    created_at: Instant
    updated_at: Instant
    execution: Execution
    first_event_id: EventId


class StepPage(ResponseModel):
    items: list[StepSummary]
    next_cursor: str | None
    """null: there is no more."""
    view: View


class FlowAnswer(ResponseModel):
    flow: Flow
    """Whole, with `state_json` and `wait_json`: all readers see its prompt and correlation id."""
    steps: list[AnyStep]
    """The oldest first, at most 1000 and 4 MiB."""
    steps_total: Annotated[int, Field(ge=0)]
    allowed: list[str]
    """The kinds of command that the state machine would take now from the flow's owner."""
    partition: Annotated[int, Field(ge=0)]
    events: Annotated[int, Field(ge=1)]
    """How many this flow has had."""
    last_event_id: EventId
    """The newest event that is in here."""
    view: View


class EventPage(ResponseModel):
    items: list[AnyEvent]
    """Up to `limit`, and up to 1 MiB; at least one where there is one."""
    next_cursor: str | None
    view: View


# Statistics


class Minute(ResponseModel):
    """What happened within one minute by the broker's clock."""

    at: Instant
    """Its beginning."""
    created: int
    finished: int
    failed: int
    cancelled: int
    events: int


class Duration(ResponseModel):
    """How long flows stayed in a status that they left within the time looked at."""

    status: FlowStatus
    count: int
    mean_ms: float
    p50_ms: float
    p90_ms: float
    p99_ms: float
    """Percentiles are upper bounds of the bucket that they fall into: up to a quarter too high."""
    max_ms: int


class Rates(ResponseModel):
    """Per second, over the last five minutes of those looked at; the last one is under way."""

    created: float
    finished: float
    failed: float
    cancelled: float
    events: float


class Statistics(ResponseModel):
    flows: dict[FlowStatus, int]
    """How many flows have each status now."""
    flows_total: int
    cancel_requested: int
    """Live flows with a pending cancel request."""
    events_total: int
    events_by_kind: dict[EventKind, int]
    """Of all time."""
    minutes: int
    series: list[Minute]
    """One for each minute, oldest first; the last one is under way."""
    rates: Rates
    failure_ratio: float | None
    """failed / (finished + failed + cancelled) within the time; null if nothing ended."""
    durations: list[Duration]
    view: View


# Dead letters, partitions


class DeadLetter(ResponseModel):
    partition: Annotated[int, Field(ge=0)]
    offset: Annotated[int, Field(ge=0)]
    at: Instant
    """When it was quarantined."""
    code: str
    message: str
    source: Source
    source_at: Instant | None
    key: str | None
    value: str
    """Its beginning, up to 2 KiB, with U+FFFD where it is not UTF-8."""
    size: Annotated[int, Field(ge=0)]
    """Bytes of the original value."""


class DeadLetterPage(ResponseModel):
    items: list[DeadLetter]
    """Newest first."""
    next_cursor: str | None
    view: View


class TopicLag(ResponseModel):
    """How far the workers have decided a topic, by the offsets of their consumer group."""

    end: Annotated[int, Field(ge=0)]
    committed: Annotated[int, Field(ge=0)] | None
    behind: Annotated[int, Field(ge=0)] | None


class Partition(ResponseModel):
    partition: Annotated[int, Field(ge=0)]
    worker: str | None
    """The worker that decides it: its client id and host; null: none."""
    commands: TopicLag | None
    control: TopicLag | None
    view: str | None
    """Address of the view worker that projects it; null: none."""
    projected: PartitionView | None
    audit_end: Annotated[int, Field(ge=0)] | None


class Partitions(ResponseModel):
    items: list[Partition]
    group_state: str | None
    """Of the workers' consumer group, such as `Stable`, as Kafka says it."""
    unassigned: list[int] | None
    """Partitions that no worker decides, so that their commands wait; null: Kafka does not say."""
    undecided: Annotated[int, Field(ge=0)] | None
    """Offsets of commands and control that no worker has decided yet, in all; null: not known."""
    actions: bool
    """Whether this worker takes actions: TASKFLOW_VIEWS_OPERATOR_TOKEN is set."""
    view: View


# Commands


class Published(ResponseModel):
    """Where Kafka has put a command, and its outcome if that was awaited.

    With 202 nothing is decided yet: Kafka has acknowledged the command, `outcome` is null, and it
    may still be rejected. Its outcome comes on the topic `outcomes`, under this `command_id`.
    """

    command_id: Uuid
    flow_id: Uuid
    topic: str
    partition: Annotated[int, Field(ge=0)] | None
    offset: Annotated[int, Field(ge=0)] | None
    outcome: Outcome | None


class SignalPublished(ResponseModel):
    """Where Kafka has put a signal."""

    id: str
    topic: str
    partition: Annotated[int, Field(ge=0)]
    offset: Annotated[int, Field(ge=0)] | None


class ValueFault(ResponseModel):
    """What is wrong with a value."""

    at: Annotated[int, Field(ge=0)] | None
    """Bytes from its beginning; null: nowhere in particular."""
    problem: str
    path: str | None


class Redrive(ResponseModel):
    """A dead letter as it goes back, or as it went."""

    partition: Annotated[int, Field(ge=0)]
    offset: Annotated[int, Field(ge=0)]
    topic: str | None
    """Where it goes back to; null: it does not say where it came from."""
    value: str | None
    """What goes back, whole; null where it is empty, or not UTF-8."""
    code: Code | None
    """What the processor would say of it today; null: it would be read."""
    faults: list[ValueFault]
    stays: str | None
    """Why it cannot go back, or should not."""
    outcome: Outcome | None
    """Of the command that went back; null in a preview."""


# The stream


class StreamEvent(ResponseModel):
    """`data` of an SSE event named `event`; its `id` is for `Last-Event-ID`.

    Other names: `ready` once what was there already has been sent, `lost` (data: a sentence)
    before the stream ends because it cannot go on. Comments keep the connection alive.
    """

    event: AnyEvent
    owner: Text | None
    """The flow's owner; null if the worker no longer knows."""


class Problem(ResponseModel):
    """RFC 9457, `application/problem+json`."""

    type: str
    """`urn:taskflow:problem:{code}`"""
    title: str
    status: int
    code: Literal[
        "bad_request",
        "unauthorized",
        "forbidden",
        "misdirected",
        "not_found",
        "revision_unknown",
        "method_not_allowed",
        "request_timeout",
        "too_large",
        "uri_too_long",
        "headers_too_large",
        "unsupported_media_type",
        "expectation_failed",
        "invalid_command",
        "not_sent",
        "no_outcome",
        "not_yet",
        "too_expensive",
        "busy",
        "unavailable",
        "internal_error",
    ]
    detail: str
    errors: list[dict[str, str]] = []
    """`{"field", "problem"}`, without values."""
    command: dict[str, Any] | None = None
    """Of `no_outcome`: the command as it was sent. Sending this very one again is safe."""

    @model_validator(mode="after")
    def _type_is_the_code(self) -> "Problem":
        if self.type != f"urn:taskflow:problem:{self.code}":
            raise ValueError("type and code differ")
        return self
