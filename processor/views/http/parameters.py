"""Parameters and bodies of the views' HTTP requests: the models behind the OpenAPI document."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.outcomes import Code
from processor.contract.steps import StepStatus
from processor.contract.values import (
    COMMAND_MAX_BYTES,
    EventId,
    Json,
    LongText,
    Revision,
    Text,
    Timestamp,
    Uuid,
    WaitText,
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


class Query(BaseModel):
    """What all sets of parameters share: texts are read, and nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


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
    status: Annotated[
        list[FlowStatus], BeforeValidator(_split), Field(max_length=len(FlowStatus))
    ] = []
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
    """Words of the goal, all of them, the last one as a beginning; case and accents don't count,
    and Chinese, Japanese and Korean words are found wherever they stand. Or an owner, exactly; or
    an id, or its first 8 characters or more. Of those that match, the 20,000 newest are looked at.
    Behind that, or alone, conditions as of `flow list --where`, such as `state.priority = high` or
    `revision > 3`: all must hold, and the first 20,000 flows in the order of `sort` are looked at.
    """
    sort: Literal["updated", "created", "wait"] = "updated"
    """`updated` and `created`: newest first; `wait`: only what waits with an end, soonest first."""


class StepsQuery(PageQuery):
    """Managed steps of all flows, the newest change first."""

    flow: Uuid | None = None
    task: Text | None = None
    status: Annotated[
        list[StepStatus], BeforeValidator(_split), Field(max_length=len(StepStatus))
    ] = []
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
    kind: Annotated[list[EventKind], BeforeValidator(_split), Field(max_length=len(EventKind))] = []


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


# Bodies


class CommandBody(BaseModel):
    """Any command, see the JSON Schema `command`; `command_id` is made up where it is missing. With
    one of your own, the same body sent again within the dedupe window is answered `duplicate`; an
    `expires_at` within that window keeps it from being applied twice however late a copy comes."""

    model_config = ConfigDict(extra="allow")

    kind: str
    flow_id: Uuid
    issued_by: Text


class SignalBody(BaseModel):
    """An event for the flow that waits, or will wait, for its topic and correlation id."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """The event's id; a signal sent again with it is delivered once. Random if it is missing."""
    topic: WaitText
    correlation_id: WaitText
    payload: Json = None
    """Becomes `resume_event` of the flow's state."""


class RequestBody(BaseModel):
    """What bodies of operators share: nothing unknown is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    issued_by: Text
    """The person who acts, such as `operator:kate`: claimed, and not proven. The audit has it as
    the event's `actor`."""
    reason: LongText
    """Why. It stands in the header `taskflow-reason` of the record that is written, whose place the
    events' `source` has, and in the log of the view worker."""
    dry_run: bool = False
    """Decide, and change nothing: a preview."""


class ControlBody(RequestBody):
    """An operator's command, which goes to `control`: the flow's owner is not asked."""

    kind: Literal["cancel", "request_cancel", "resume", "fail", "retry_step", "cancel_step"]
    flow_id: Uuid
    command_id: Uuid | None = None
    """Made up where it is missing."""
    expected_revision: Revision | None = None
    """Refused unless the flow is still at this revision."""
    state_patch: Json = None
    """Of `resume`: merged into the state."""
    run_id: Text | None = None
    """Of `retry_step` and `cancel_step`."""
    attempts: Annotated[int, Field(ge=1, le=100)] | None = None
    """Of `retry_step`."""

    def command(self) -> dict[str, Any]:
        """As it is published; `reason` is a field of `fail` alone."""
        given = self.model_dump(exclude_unset=True)
        if self.kind != "fail":
            del given["reason"]
        return given


class RedriveBody(RequestBody):
    """A dead letter goes back to the topic that it came from."""

    value: Annotated[str, StringConstraints(max_length=COMMAND_MAX_BYTES)] | None = None
    """Instead of its own value; its key is then the `flow_id` in it."""
