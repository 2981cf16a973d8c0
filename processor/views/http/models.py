"""Requests and responses of the views: the models behind the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
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
    Timestamp,
    Uuid,
)
from processor.settings import parse_duration

LIMIT_MAX = 200
"""Items of one page."""
EVENTS_BYTES = 1024 * 1024
"""Of one page of events; at least one is always given."""
STEPS_BYTES = 4 * 1024 * 1024
"""Of the steps of one flow, which have no second page."""
WAIT_MAX_MS = 30_000
AFTER_MAX = 64


def _split(value: object) -> object:
    """`a,b` in a query is a list."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _as_ms(value: object) -> object:
    """A duration such as `5s`; a number alone is milliseconds."""
    if not isinstance(value, str) or value.isdecimal():
        return value
    return parse_duration(value)


_DURATION: dict[str, Any] = {"type": "string", "pattern": "^[0-9]{1,12}(ms|s|m|h|d)?$"}
Wait = Annotated[
    int,
    BeforeValidator(_as_ms),
    Field(ge=0, le=WAIT_MAX_MS),
    WithJsonSchema({**_DURATION, "examples": ["250ms", "5s"]}),
]
"""Up to 30 seconds."""


class ResponseModel(BaseModel):
    """What all answers share."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )


class Query(BaseModel):
    """What all sets of parameters share: texts are read, and nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


# Parameters


class ReadQuery(Query):
    after: Annotated[
        list[EventId],
        BeforeValidator(_split),
        Field(max_length=AFTER_MAX),
    ] = []
    """Read your writes: the answer includes these events (`event_ids` of an outcome, separated by
    commas), or is 503 `not_yet` when `wait` is over."""
    wait: Annotated[Wait, Field(json_schema_extra={"default": "2s"})] = 2_000
    """For how long to wait for `after`: a duration of at most 30s, such as `250ms` or `5s`; a
    number alone is milliseconds."""
    scope: Literal["all", "local"] = "all"
    """`local`: only what this worker has, which is what the workers ask each other."""


class PageQuery(ReadQuery):
    cursor: Annotated[str, StringConstraints(min_length=1, max_length=8192)] | None = None
    """`next_cursor` of the page before."""
    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX)] = 50


class FlowsQuery(PageQuery):
    owner: Text | None = None
    """`owner_session_key`, exactly."""
    status: Annotated[list[FlowStatus], BeforeValidator(_split), Field(max_length=6)] = []
    """One or more, separated by commas."""
    controller: Text | None = None
    """`controller_id`, exactly."""
    waiting: Literal["timer", "external_event", "manual", "steps", "any"] | None = None
    """Flows that wait, and for what."""
    wait_ends_before: Timestamp | None = None
    """Flows whose wait ends by itself before then."""
    cancel_requested: bool | None = None
    created_after: Timestamp | None = None
    created_before: Timestamp | None = None
    updated_after: Timestamp | None = None
    updated_before: Timestamp | None = None
    """How old: nothing has changed since then."""
    q: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    """Words of the goal, all of them, the last one as a beginning; case and accents don't count.
    Or an owner, exactly; or an id, or its first 8 characters or more. Of those that match, the
    20,000 newest are looked at."""
    sort: Literal["updated", "created", "wait"] = "updated"
    """`updated` and `created`: newest first; `wait`: only what waits with an end, soonest first."""


class StepsQuery(PageQuery):
    """Managed steps of all flows, the newest change first."""

    flow: Uuid | None = None
    task: Text | None = None
    status: Annotated[list[StepStatus], BeforeValidator(_split), Field(max_length=5)] = []
    """One or more, separated by commas."""
    holder: Text | None = None
    """The executor that started it last, exactly."""
    updated_after: Timestamp | None = None
    updated_before: Timestamp | None = None
    """How old: nothing has changed since then."""


class FlowQuery(ReadQuery):
    revision: Revision | None = None
    """The flow and its steps as they stood when it had this revision."""


class HistoryQuery(PageQuery):
    order: Literal["asc", "desc"] = "asc"
    """`asc`: from the first event on."""


class EventsQuery(PageQuery):
    """With a filter a page may have fewer items than `limit`, or none, and yet a `next_cursor`:
    no more than 20,000 events of a partition are looked at for one page."""

    owner: Text | None = None
    kind: Annotated[list[EventKind], BeforeValidator(_split), Field(max_length=11)] = []


class StreamQuery(Query):
    flow: Uuid | None = None
    owner: Text | None = None
    since: Literal["now", "beginning"] = "now"
    """Where to begin if there is no `Last-Event-ID`."""
    last_event_id: Annotated[str, StringConstraints(min_length=1, max_length=65536)] | None = None
    """As the header `Last-Event-ID`, for clients that cannot set it; the header goes first."""
    scope: Literal["all", "local"] = "all"


class StatisticsQuery(ReadQuery):
    minutes: Annotated[int, Field(ge=1, le=1440)] = 60
    """How far back `series`, `rates`, `failure_ratio` and `durations` look."""


class DeadLettersQuery(PageQuery):
    code: Code | None = None


class CommandQuery(Query):
    wait: Annotated[Wait, Field(json_schema_extra={"default": "0s"})] = 0
    """For how long to await the outcome: a duration of at most 30s, such as `5s`; a number alone is
    milliseconds. Without it the command is only published."""


# What stands beside every answer


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
    """Per second, over the last whole minutes: at most five of those looked at."""

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
    """Live flows that somebody asked to cancel."""
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
    """The worker that decides it: its client id and host; null: nobody."""
    commands: TopicLag | None
    control: TopicLag | None
    view: str | None
    """Address of the view worker that projects it; null: nobody."""
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


class CommandBody(BaseModel):
    """Any command, see the JSON Schema `command`; `command_id` is made up where it is missing. With
    one of your own, the same body sent again within the dedupe window is answered `duplicate`; an
    `expires_at` within that window keeps it from being applied twice however late a copy comes."""

    model_config = ConfigDict(extra="allow")

    kind: str
    flow_id: Uuid
    issued_by: Text


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
