"""A batch: what it needs loaded, its configuration, and the write set that it makes."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, Protocol, TypeVar

from processor.contract.commands import MODELS
from processor.contract.events import EventKind
from processor.contract.headers import Headers
from processor.contract.outcomes import Verdict
from processor.contract.state import CURSOR_PREFIX
from processor.contract.steps import TASK_HEADER
from processor.contract.topics import Topics
from processor.contract.values import EVENTS_PER_PARTITION, SCHEMA_VERSION, parse_timestamp
from processor.domain.decide_steps import LEASE_EXPIRED, TIMEOUT
from processor.domain.decision import Limits
from processor.domain.evolve import STEP_KINDS
from processor.domain.executions import offered_for_ms
from processor.domain.facts import Fact
from processor.domain.step import ManagedStep, Step
from processor.domain.steps import StepTimer
from processor.engine.codec import Readable, Record, Unreadable
from processor.engine.encoding import encode, encode_to_keep
from processor.engine.rows import Changes, FlowRow, LedgerEntry, Position, StepRow

Decoded = Readable | Unreadable
T = TypeVar("T")

AT_ONCE: Final = 50
"""Records handled without giving way to the event loop: a millisecond. What they make is still in
the CPU's caches when it is packed."""


# Python 3.11 runs a function whenever an enum is asked for a member.
STEP_STARTED, STEP_DISPATCHED = EventKind.STEP_STARTED, EventKind.STEP_DISPATCHED
STEP_FAILED: Final = EventKind.STEP_FAILED
_STEP_EVENTS: Final = {kind: kind.value.removeprefix("step_") for kind in STEP_KINDS}


def sliced(items: Sequence[T]) -> Iterator[Sequence[T]]:
    """`items`, AT_ONCE at a time: between two slices the event loop serves the other partitions,
    whose transactions would otherwise wait for a whole batch of ours at each of their steps."""
    for start in range(0, len(items), AT_ONCE):
        yield items[start : start + AT_ONCE]


class Outgoing(NamedTuple):
    """A record to write to this partition's number of a topic."""

    key: bytes | None
    value: bytes | None
    headers: Headers


# As rows.new_flow_row.
new_outgoing: Final[Callable[[tuple[bytes | None, bytes | None, Headers]], Outgoing]] = partial(
    tuple.__new__, Outgoing
)


class Pack(Protocol):
    """Records that go out together, to one topic, in the order in which they are added."""

    def add(self, key: bytes | None, value: bytes | None, headers: Headers, /) -> None: ...
    def __len__(self) -> int: ...


class Records(list[Outgoing]):
    """A pack that keeps its records as they are."""

    def add(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        self.append(new_outgoing((key, value, headers)))


class ChangePack(Protocol):
    """What one batch writes to the table, in the order that Changes documents."""

    forget_before_ms: int | None

    def delete(self, row: FlowRow, /) -> None: ...
    def update(self, was: FlowRow, row: FlowRow, /) -> None: ...
    def insert(self, row: FlowRow, /) -> None: ...
    def put_step(self, row: StepRow, /) -> None: ...
    def put_ledger_entry(self, entry: LedgerEntry, /) -> None: ...


class Outbound(Protocol):
    """Where what a batch writes is put as soon as it is made."""

    @property
    def audit(self) -> Pack: ...
    @property
    def outcomes(self) -> Pack: ...
    @property
    def state(self) -> Pack: ...
    @property
    def dead_letters(self) -> Pack: ...
    @property
    def changes(self) -> ChangePack: ...


class WorkRecord(NamedTuple):
    """A work item to write to `steps` once its event is committed."""

    event_id: int
    record: Outgoing


class StepTally:
    """What happened to managed steps, counted by task as it happens: when a batch is written, its
    steps have left the CPU's caches."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], int] = {}
        """How many by task and name; an offer that is not the first is `reoffered`."""
        self.leases_expired: Counter[str] = Counter()
        self.used_up: Counter[str] = Counter()
        """Steps that failed with their last attempt."""
        self.start_ms: dict[str, list[int]] = {}
        """From the first offer of an attempt to its start."""
        self.end_ms: dict[str, list[int]] = {}
        """From the scheduling of a step to its end."""

    def add(self, fact: Fact, was: Step | None, step: ManagedStep) -> None:
        """Count the `fact` that made `step` of what was there before (None: nothing)."""
        kind, task, execution = fact.kind, step.task, step.execution
        name = _STEP_EVENTS[kind]
        if kind is STEP_DISPATCHED and execution.offers > 1:
            name = "reoffered"
        event = task, name
        self.events[event] = self.events.get(event, 0) + 1
        if kind is STEP_STARTED and was is not None and was.runtime == "managed":
            waited_ms = offered_for_ms(was, parse_timestamp(step.updated_at))
            self.start_ms.setdefault(task, []).append(waited_ms)
        elif execution.due_at is None:
            lived_ms = parse_timestamp(step.updated_at) - parse_timestamp(step.created_at)
            self.end_ms.setdefault(task, []).append(max(0, lived_ms))
        if (reason := fact.payload.get("reason")) is None:
            return
        if reason == LEASE_EXPIRED:
            self.leases_expired[task] += 1
        if (
            kind is STEP_FAILED
            and reason != TIMEOUT
            and execution.attempt >= execution.max_attempts
        ):
            self.used_up[task] += 1


class SettledStep(NamedTuple):
    """A step that a batch touched: its rows before and after (None: not there), and its timers."""

    before: StepRow | None
    row: StepRow | None
    timer_before: StepTimer | None
    timer: StepTimer | None


# As rows.new_flow_row.
new_settled_step: Final[
    Callable[
        [tuple[StepRow | None, StepRow | None, StepTimer | None, StepTimer | None]], SettledStep
    ]
] = partial(tuple.__new__, SettledStep)


class Forward(NamedTuple):
    """A record to send again, to the partition that its key belongs to."""

    topic: str
    partition: int
    record: Outgoing
    source: tuple[str, int]
    """Topic and offset of the record that it is a copy of."""


@dataclass(frozen=True, slots=True)
class PartitionConfig:
    """Which partition is handled, among how many, and under which rules."""

    partition: int
    partitions: int
    topics: Topics
    dedupe_window_ms: int
    limits: Limits = field(default_factory=Limits)
    retain_terminal_ms: int | None = None
    """How long a flow is kept after its end; None: for ever."""
    output_max_bytes: int = 8 * 1024 * 1024
    """A batch ends early once it would write more than this."""


@dataclass(slots=True)
class LoadedState:
    """What must be known of a batch's flows, before it is handled.

    `flows` holds every flow id of the batch, None where there is no such flow; `steps` those steps
    that commands name or joins list, as far as there are such; `live` all managed steps that have
    not ended of each flow that has some and may be ended; `run_ids` every step of the flows that
    the batch would prune.
    """

    flows: dict[str, FlowRow | None] = field(default_factory=dict)
    steps: dict[tuple[str, str], StepRow] = field(default_factory=dict)
    live: dict[str, list[StepRow]] = field(default_factory=dict)
    run_ids: dict[str, list[str]] = field(default_factory=dict)
    ledger: dict[bytes, LedgerEntry] = field(default_factory=dict)


@dataclass(slots=True)
class WriteSet:
    """Everything that one batch writes, all of it or nothing, and what is to be known of it.

    `handled` counts the records from the front that it covers; `faults` are exceptions that
    quarantined a record as `internal_error`, for the log. Records and changes are here unless
    another Outbound takes them.
    """

    position: Position
    handled: int = 0
    audit: Records = field(default_factory=Records)
    outcomes: Records = field(default_factory=Records)
    state: Records = field(default_factory=Records)
    dead_letters: Records = field(default_factory=Records)
    forwards: list[Forward] = field(default_factory=list)
    wakes: list[tuple[str, Headers]] = field(default_factory=list)
    """Ids of waiting flows that the batch asked to cancel, each to be woken in its transaction,
    with the headers that the request leaves behind."""
    first_unwritten: int = 0
    """The event from which on work items may not be written, as the batch's cursor says."""
    work: list[WorkRecord] = field(default_factory=list)
    """In the order of their events."""
    changes: Changes = field(default_factory=Changes)
    created: int = 0
    """How many flows are new to the table."""
    flows: dict[str, FlowRow | None] = field(default_factory=dict)
    """The flows that were touched, as they are now."""
    waits: list[tuple[FlowRow | None, FlowRow | None]] = field(default_factory=list)
    """The flows that waited before the batch or wait after it, as they were and are; None: not."""
    steps: dict[tuple[str, str], SettledStep] = field(default_factory=dict)
    """The steps that were touched, by flow and run id."""
    step_tally: StepTally = field(default_factory=StepTally)
    control_verdicts: list[tuple[Decoded, Verdict]] = field(default_factory=list)
    """The records of `control`, with what became of them."""
    traced: list[tuple[Decoded, bytes]] = field(default_factory=list)
    """The records that belong to a trace, with their outcomes."""
    tally: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """How many outcomes by kind, verdict and code."""
    newest: dict[str, int] = field(default_factory=dict)
    """The newest append time among the handled records of each topic."""
    faults: list[tuple[Record, Exception]] = field(default_factory=list)

    @property
    def newest_ms(self) -> int:
        return max(self.newest.values(), default=0)


class Needs(NamedTuple):
    """What `LoadedState` must hold for some records; flows in the order in which they are met."""

    flows: dict[str, None]
    steps: dict[tuple[str, str], None]
    ending: set[str]
    """Flows that may be ended: their live steps are needed, if they have some."""
    pruned: set[str]
    ledger: list[bytes]


_MAY_END: Final = frozenset({"finish", "fail", "cancel", "wake"})
_NAME_A_STEP: Final = frozenset(
    kind for kind, model in MODELS.items() if "run_id" in model.model_fields
)
NEED_STEPS: Final = _MAY_END | _NAME_A_STEP | {"set_waiting"}
"""Kinds of command for which something must be known of the flow's steps."""


def needs(items: Iterable[Decoded]) -> Needs:
    needed = Needs({}, {}, set(), set(), [])
    flows, ledger = needed.flows, needed.ledger
    for item in items:
        if isinstance(item, Readable):
            _, command, _, ledger_key = item
            flow_id, kind = command.flow_id, command.kind
            flows[flow_id] = None
            ledger.append(ledger_key)
            if kind not in NEED_STEPS and kind != "prune":
                continue
            if kind in _NAME_A_STEP:
                needed.steps[flow_id, command.__dict__["run_id"]] = None
            elif kind in _MAY_END:
                needed.ending.add(flow_id)
            elif kind == "prune":
                needed.pruned.add(flow_id)
            elif command.kind == "set_waiting" and command.wait.kind == "steps":
                for run_id in command.wait.run_ids or ():
                    needed.steps[flow_id, run_id] = None
    return needed


def cursor_record(
    partition: int, position: Position, oldest_unwritten: int | None = None
) -> Outgoing:
    """The `state` record that says how far the partition is decided.

    `oldest_unwritten` is the id of the first event whose work item may not be written yet.
    """
    next_unwritten = position.next_event_id if oldest_unwritten is None else oldest_unwritten
    offered = 0 if next_unwritten == first_event_id(partition) else next_unwritten - 1
    cursor = {**position._asdict(), "offered": offered, "schema_version": SCHEMA_VERSION}
    return Outgoing(f"{CURSOR_PREFIX}{partition}".encode(), encode(cursor), ())


def step_needs(
    needed: Needs, flows: Mapping[str, FlowRow | None]
) -> tuple[list[tuple[str, str]], list[str]]:
    """What is needed of steps once the `flows` are known: those named by commands or listed by a
    join, by flow and run id, in the order of the commands; and the flows whose live steps are
    needed, all of them."""
    steps: dict[tuple[str, str], None] = {}
    seen: set[str] = set()
    for at in needed.steps:
        flow_id = at[0]
        if flow_id not in seen:
            seen.add(flow_id)
            row = flows.get(flow_id)
            wait = row and row.flow.wait_json
            if wait and wait["kind"] == "steps":
                steps.update(((flow_id, run_id), None) for run_id in wait.get("run_ids", ()))
        steps[at] = None
    live = [
        flow_id
        for flow_id in needed.flows
        if flow_id in needed.ending and (row := flows.get(flow_id)) and row.totals.live
    ]
    return list(steps), live


def work_record(event_id: int, step: ManagedStep, headers: Headers) -> WorkRecord:
    """The work item of the offering that made `step` what it is; `headers` are its command's."""
    execution = step.execution
    item = {
        "flow_id": step.flow_id,
        "run_id": step.run_id,
        "task": step.task,
        "attempt": execution.attempt + 1,
        "max_attempts": execution.max_attempts,
        "input_json": step.input_json,
        "lease_ms": execution.lease_ms,
        "event_id": event_id,
        "at": step.updated_at,
    }
    key = f"{step.flow_id}/{step.run_id}".encode()
    record = new_outgoing(
        (key, encode_to_keep(item), [(TASK_HEADER, step.task.encode()), *headers])
    )
    return WorkRecord(event_id, record)


def first_event_id(partition: int) -> int:
    """The id of the first FlowEvent of a partition."""
    return partition * EVENTS_PER_PARTITION + 1


def snapshot_of(row: FlowRow) -> bytes:
    """A flow's value on `state`; its `doc` goes in as it is."""
    _, doc, last_event_id, chain, _, _ = row
    rest = f',"last_event_id":{last_event_id},"chain":"{chain.hex()}"}}'
    return b'{"flow":' + doc + rest.encode()
