"""Project events into rows: what a batch of the audit changes in a view. Pure."""

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import orjson

from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.values import EVENTS_PER_PARTITION, parse_timestamp
from processor.domain.evolve import CREATED, PRUNED, STEP_KINDS, evolve
from processor.domain.facts import Fact, new_fact
from processor.domain.flow import Flow
from processor.errors import TaskflowError
from processor.views.model.aggregates import MinuteCounts, Totals

_KINDS: Final = {kind.value: kind for kind in EventKind}
_STATUSES: Final = {status.value: status for status in FlowStatus}
MINUTE_MS: Final = 60_000

at_ms: Final = lru_cache(maxsize=8192)(parse_timestamp)
"""Of an event's `at`, which all commands of one append share."""


class ProjectionFailed(TaskflowError):
    """The audit holds what cannot follow what the view has: an event is missing or unreadable.

    The partition is not projected any further; the rest goes on.
    """


class CannotFollow(ProjectionFailed):
    """An event of `partition` contradicts what the view has; reading it again would not help."""

    def __init__(self, message: str, partition: int) -> None:
        super().__init__(message)
        self.partition = partition


class ViewMessage(Protocol):
    """What is read of a record, as aiokafka gives it; `timestamp` in milliseconds."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Any


class AuditEvent(NamedTuple):
    """An event as it was read: its record's value, and that parsed."""

    doc: bytes
    event: dict[str, Any]


@dataclass(slots=True)
class Viewed:
    """A flow as the view has it. `number` is the id of the event that created it."""

    row_number: int
    flow: Flow
    since_ms: int
    """When it came to its status."""
    events: int
    last_event_id: int
    state_bytes: int = 0
    """As it was last written."""


class ViewedStep(NamedTuple):
    """A step as the view has it. `number` is the id of the event that made it, `flow` the number of
    its flow, `step` its JSON."""

    row_number: int
    flow: int
    step: dict[str, Any]


Steps = MutableMapping[tuple[int, str], ViewedStep]
"""By the flow's number and the run id."""


@dataclass(slots=True)
class ProjectionChanges:
    """What a batch does to the view, in rows."""

    flows: dict[int, Viewed] = field(default_factory=dict)
    """Of flows that are there after the batch."""
    created: set[int] = field(default_factory=set)
    """The numbers of those that were not there before it; pruned ones too."""
    pruned: dict[int, Viewed] = field(default_factory=dict)
    """As they were when they went."""
    steps: dict[tuple[int, str], ViewedStep] = field(default_factory=dict)
    events: list[tuple[int, int, int, int, str, bytes]] = field(default_factory=list)
    minutes: dict[tuple[int, int], MinuteCounts] = field(default_factory=dict)
    """(partition, the minute's beginning in ms) → what is to be added."""
    totals: dict[int, Totals] = field(default_factory=dict)
    """Partition → what is to be added."""


def read(doc: bytes) -> AuditEvent:
    """Raises ProjectionFailed if it is no event."""
    try:
        event = orjson.loads(doc)
        event["id"], event["flow_id"], _KINDS[event["kind"]]
    except (ValueError, TypeError, LookupError):
        raise ProjectionFailed(f"The audit holds what is no FlowEvent: {doc[:80]!r}.") from None
    return AuditEvent(doc, event)


def changed_steps(batch: list[AuditEvent], known: Mapping[str, Viewed]) -> set[tuple[int, str]]:
    """The managed steps that `batch` changes and the view has to know before."""
    return {
        (known[event["flow_id"]].row_number, event["payload_json"]["run_id"])
        for _, event in batch
        if event["flow_id"] in known and "changes" in event["payload_json"]
    }


def project(
    batch: list[AuditEvent], known: MutableMapping[str, Viewed], steps: Steps
) -> ProjectionChanges:
    """What `batch`, in the order of the audit, does to the flows in `known` (by their ids, all
    that the batch touches and the view has) and to `steps` (all of `changed_steps`).

    Both are brought up to date. Raises CannotFollow; both are then to be forgotten.
    """
    changes = ProjectionChanges()
    for one in batch:
        try:
            _project(one, known, steps, changes)
        except (LookupError, TypeError, ValueError) as error:
            raise CannotFollow(
                f"Event {one.event['id']} does not follow what the view has: {error!r}.",
                one.event["id"] // EVENTS_PER_PARTITION,
            ) from error
    return changes


def _project(
    one: AuditEvent,
    known: MutableMapping[str, Viewed],
    steps: Steps,
    changes: ProjectionChanges,
) -> None:
    event = one.event
    event_id: int = event["id"]
    fact = new_fact(
        (
            _KINDS[event["kind"]],
            event["flow_id"],
            event["at"],
            event["revision"],
            _STATUSES[event["status"]],
            event["payload_json"],
        )
    )
    viewed = known.get(fact.flow_id)
    partition, now_ms = event_id // EVENTS_PER_PARTITION, at_ms(fact.at)
    start_ms = now_ms - now_ms % MINUTE_MS
    minute = changes.minutes.get((partition, start_ms))
    if minute is None:
        minute = changes.minutes[partition, start_ms] = MinuteCounts()
    totals = changes.totals.get(partition)
    if totals is None:
        totals = changes.totals[partition] = Totals()

    if fact.kind is CREATED:
        if viewed is not None:
            raise ValueError(f"{fact.flow_id} is created though it is there")
        flow = evolve(None, fact)
        assert flow is not None
        viewed = Viewed(event_id, flow, now_ms, 0, event_id)
        known[fact.flow_id] = viewed
        changes.created.add(event_id)
        totals.enters(flow.status)
        minute.moves(None, flow.status, 0)
    elif viewed is None:
        raise ValueError(f"{fact.kind} of {fact.flow_id}, which is not there")
    else:
        _evolve(viewed, fact, now_ms, minute, totals)
    viewed.events += 1
    viewed.last_event_id = event_id
    row_number = viewed.row_number
    if fact.kind is PRUNED:
        del known[fact.flow_id]
        changes.flows.pop(row_number, None)
        changes.pruned[row_number] = viewed
    else:
        changes.flows[row_number] = viewed
        if fact.kind in STEP_KINDS:
            step = _step_after(steps, event_id, row_number, fact.payload)
            key = row_number, step.step["run_id"]
            steps[key] = changes.steps[key] = step
    minute.events += 1
    totals.happened(event["kind"])
    changes.events.append((event_id, row_number, now_ms, fact.revision, event["kind"], one.doc))


def _evolve(viewed: Viewed, fact: Fact, now_ms: int, minute: MinuteCounts, totals: Totals) -> None:
    before = viewed.flow
    after = evolve(before, fact)
    if after is None:
        totals.leaves(before.status)
        return
    viewed.flow = after
    if after.status is not before.status:
        totals.leaves(before.status)
        totals.enters(after.status)
        minute.moves(before.status, after.status, now_ms - viewed.since_ms)
        viewed.since_ms = now_ms
    totals.asks(_asked(after) - _asked(before))


def _step_after(steps: Steps, event_id: int, flow: int, payload: Mapping[str, Any]) -> ViewedStep:
    if "changes" in payload:
        before = steps[flow, payload["run_id"]]
        return before._replace(step={**before.step, **payload["changes"]})
    step = payload["step"]
    before_it = steps.get((flow, step["run_id"]))
    return ViewedStep(event_id if before_it is None else before_it.row_number, flow, step)


def _asked(flow: Flow) -> int:
    return int(flow.cancel_requested and flow.status.value in ("created", "running", "waiting"))


def wait_ends_ms(wait: Any) -> int | None:
    """When a wait ends by itself."""
    ends = wait.get("at") or wait.get("timeout_at") if isinstance(wait, Mapping) else None
    return None if ends is None else parse_timestamp(ends)
