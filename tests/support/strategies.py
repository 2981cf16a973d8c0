"""Commands and JSON as hypothesis draws them."""

from collections.abc import Iterable
from typing import Any

from hypothesis import strategies as st

from processor.contract import (
    COMMANDS,
    CONTROL_ONLY,
    Command,
    CommandKind,
    FlowStatus,
    StepStatus,
    instant,
)
from processor.contract.values import INTEGER_MAX
from processor.domain.step import ManagedStep
from processor.domain.transitions import (
    CREATES,
    LIVE,
    STEP_COMMANDS,
    STEP_MOVES,
    Authority,
    allowed,
)
from tests.support.builders import DAY_MS, MORNING, OWNER, STRANGER, document
from tests.support.flow_history import FlowHistory

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(-1e9, 1e9, allow_nan=False)
    | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
# Few, so that they meet; some so large that they do not fit.
PATCHES = st.dictionaries(st.sampled_from("abc"), JSON, max_size=2) | JSON
TOO_LARGE = st.just("x" * 256 * 1024)
NAMES = st.sampled_from(["r", "s"])
ATTEMPTS = st.sampled_from([1, 1, 1, 2, 0])
JOIN_MODES = ["all", "all_or_failure"]
# Most commands are well meant, or no flow would get anywhere. (Drawn numbers favour the ends.)
SELDOM = st.integers(0, 20).map(lambda n: n == 13)
LATER_MS = st.sampled_from([-1, 0, 1, 2_000, 10_000, 30 * DAY_MS, 31 * DAY_MS])


def _wait(at_ms: int) -> st.SearchStrategy[dict[str, Any]]:
    time = LATER_MS.map(lambda later_ms: instant(at_ms + later_ms))
    maybe = {"timeout_at": st.none() | time}
    return st.one_of(
        st.fixed_dictionaries({"kind": st.just("timer"), "at": time}),
        st.fixed_dictionaries(
            {"kind": st.just("external_event"), "topic": NAMES, "correlation_id": NAMES},
            optional=maybe,
        ),
        st.fixed_dictionaries(
            {"kind": st.just("manual")}, optional={**maybe, "prompt": JSON | TOO_LARGE}
        ),
        st.fixed_dictionaries(
            {"kind": st.just("steps")},
            optional={**maybe, "mode": st.sampled_from([None, "all", "all_or_failure"])},
        ),
        st.fixed_dictionaries(
            {
                "kind": st.just("steps"),
                "run_ids": st.lists(NAMES, min_size=1, max_size=2, unique=True),
                "mode": st.sampled_from(["all", "all_or_failure", "any"]),
            },
            optional=maybe,
        ),
    )


def _own_fields(kind: CommandKind, at_ms: int) -> st.SearchStrategy[dict[str, Any]]:
    required: dict[str, st.SearchStrategy[Any]] = {}
    optional: dict[str, st.SearchStrategy[Any]] = {}
    match kind:
        case CommandKind.CREATE_MANAGED | CommandKind.CREATE_MIRRORED:
            required = dict.fromkeys(("controller_id", "goal", "requester_origin"), NAMES)
            optional = {
                "current_step": st.none() | NAMES,
                "state_json": JSON,
                "owner_session_key": st.sampled_from([None, OWNER, OWNER, STRANGER]),
            }
        case CommandKind.SET_WAITING:
            required = {"wait": _wait(at_ms)}
        case CommandKind.RESUME:
            optional = {"state_patch": PATCHES}
        case CommandKind.RESUME_EXTERNAL:
            required = {"topic": NAMES, "correlation_id": NAMES}
            optional = {"payload": JSON | TOO_LARGE}
        case CommandKind.FINISH:
            optional = {"final_state": PATCHES}
        case CommandKind.FAIL:
            required = {"reason": NAMES}
        case CommandKind.UPDATE_STATE:
            required = {"patch": PATCHES | TOO_LARGE}
            optional = {"next_step": st.none() | NAMES}
        case CommandKind.RECORD_STEP_OBSERVATION:
            required = {
                "run_id": NAMES,
                "task": NAMES,
                "status": st.sampled_from([str(status) for status in StepStatus]),
            }
            optional = {"child_session_key": st.none() | NAMES, "result_json": JSON | TOO_LARGE}
        case CommandKind.SCHEDULE_STEP:
            required = {"run_id": NAMES, "task": NAMES}
            time = LATER_MS.map(lambda later_ms: instant(at_ms + later_ms))
            optional = {
                "input_json": JSON | TOO_LARGE,
                "not_before": st.none() | time,
                "timeout_at": st.none() | time,
                "max_attempts": st.integers(1, 2),
                "lease_ms": st.sampled_from([1_000, 5_000]),
                "backoff_ms": st.sampled_from([0, 1, 1_000]),
            }
        case CommandKind.EXTEND_STEP:
            required = {"run_id": NAMES, "attempt": ATTEMPTS}
            optional = {"progress_json": JSON}
        case CommandKind.COMPLETE_STEP:
            required = {"run_id": NAMES, "attempt": ATTEMPTS}
            optional = {"result_json": JSON | TOO_LARGE}
        case CommandKind.FAIL_STEP:
            required = {"run_id": NAMES, "attempt": ATTEMPTS, "reason": NAMES}
            optional = {
                "retry": st.sampled_from([None, True, False]),
                "retry_after_ms": st.sampled_from([None, 0, 3_000]),
            }
        case CommandKind.RELEASE_STEP:
            required = {"run_id": NAMES, "attempt": ATTEMPTS}
        case CommandKind.RETRY_STEP:
            required = {"run_id": NAMES}
            optional = {"attempts": st.sampled_from([None, 1, 2])}
        case CommandKind.START_STEP | CommandKind.CANCEL_STEP | CommandKind.WAKE_STEP:
            required = {"run_id": NAMES}
    return st.fixed_dictionaries(required, optional=optional)


Sent = tuple[Command, int, Authority]
"""A command, when it is appended, and the topic that it comes by."""


@st.composite
def sent_commands(draw: st.DrawFn, kinds: Iterable[str] = tuple(CommandKind)) -> Sent:
    """A valid command for the one flow; most are well meant, or no flow would get anywhere."""
    at_ms = MORNING + draw(st.integers(0, 20)) * 1_000
    # The first is drawn most, and nothing that ends a flow comes first in this order.
    kind = CommandKind(draw(st.sampled_from(sorted(kinds, reverse=True))))
    fields = draw(_own_fields(kind, at_ms))
    fields["issued_by"] = STRANGER if draw(SELDOM) else OWNER
    if draw(SELDOM):
        fields["expected_revision"] = draw(st.integers(0, 4))
    if draw(SELDOM):
        fields["expires_at"] = instant(at_ms + draw(st.integers(-1, 1)))
    authority = draw(st.sampled_from(Authority))
    if kind in CONTROL_ONLY and not draw(SELDOM):
        authority = Authority.OPERATOR
    return COMMANDS.validate_python(document(str(kind), **fields)), at_ms, authority


@st.composite
def lives(draw: st.DrawFn) -> list[Sent]:
    """What is sent to one flow, in the order in which it is read: now and then anything, else
    what the flow takes as it stands."""
    history: list[Sent] = []
    life = FlowHistory()
    for _ in range(draw(st.integers(0, 20))):
        fitting: Iterable[str] = CREATES
        if life.flow is not None:
            fitting = allowed(life.flow, Authority.OPERATOR)
            if life.flow.status in LIVE and draw(st.booleans()):
                fitting = STEP_COMMANDS
        anything = draw(st.sampled_from([False, False, True]))
        sent = draw(sent_commands() if anything else sent_commands(fitting))
        command, at_ms, authority = sent
        history.append(sent)
        life.send(command, at=at_ms, authority=authority)
    return history


@st.composite
def step_lives(draw: st.DrawFn) -> list[Sent]:
    """What is sent to a running flow with managed steps: mostly what its steps take as they stand,
    from their holders; times go on."""
    life, at_ms = FlowHistory(), MORNING
    history: list[Sent] = []

    def send(kind: str, authority: Authority, **fields: Any) -> None:
        command = COMMANDS.validate_python(document(kind, **fields))
        history.append((command, at_ms, authority))
        life.send(command, at=at_ms, authority=authority)

    about = {"controller_id": "c", "goal": "g", "requester_origin": "r"}
    send("create_mirrored", Authority.OWNER, **about)
    for _ in range(draw(st.integers(2, 16))):
        at_ms += draw(st.sampled_from([0, 1_000, 1_000, 5_000]))
        managed = [step for step in life.steps.values() if isinstance(step, ManagedStep)]
        taken = {k: [s for s in managed if s.status in m.origins] for k, m in STEP_MOVES.items()}
        steps_take = [kind for kind, steps in sorted(taken.items()) if steps]
        likely = [kind for kind in ("start_step", "complete_step") if kind in steps_take]
        kinds = ["schedule_step", *likely * 3, *steps_take]
        turn = draw(st.integers(0, 9))
        if life.flow is None:
            break
        if turn == 9:
            kinds = [*allowed(life.flow, Authority.OPERATOR)]
        elif turn > 6 and life.flow.status is FlowStatus.RUNNING:
            kinds = ["set_waiting"]
        kind = draw(st.sampled_from(kinds))
        fields = draw(_own_fields(CommandKind(kind), at_ms))
        if taken.get(kind):
            step = draw(st.sampled_from(taken[kind]))
            fields["run_id"] = step.run_id
            if "attempt" in fields and not draw(SELDOM):
                fields["attempt"] = step.execution.attempt
                fields["issued_by"] = step.child_session_key or OWNER
        if kind == "set_waiting" and draw(st.booleans()):
            fields["wait"] = {"kind": "steps", "mode": draw(st.sampled_from(JOIN_MODES))}
        control = kind in CONTROL_ONLY or draw(SELDOM)
        send(kind, Authority.OPERATOR if control else Authority.OWNER, **fields)
    return history
