"""What tests start from: commands as their senders would write them, and flows with a past.

`given(create(), start())` is the flow after those commands, all sent in the MORNING; what a test
then decides happens at NOON.
"""

from itertools import count
from typing import Any
from uuid import UUID, uuid5

from processor.contract.commands import COMMANDS, CONTROL_ONLY, Command
from processor.contract.outcomes import Code
from processor.contract.values import instant
from processor.domain.decide import decide
from processor.domain.decision import Decision
from processor.domain.evolve import evolve_step, fold
from processor.domain.flow import Flow
from processor.domain.step import Step
from processor.domain.steps import NO_STEPS, FlowSteps
from processor.domain.transitions import Authority

FLOW_ID = "2fce7035-2e57-5ac8-98cf-336ebef3eea6"
OWNER = "agent:kate:session:abc"
STRANGER = "agent:eve:session:zzz"
OPERATOR = "operator:ana"
TIMER = "taskflow:timer"
EXECUTOR = "executor:1f0c"

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1_000, 60_000, 3_600_000, 86_400_000
MORNING = 1_780_000_000_000
"""When the past of a given flow happened."""
NOON = MORNING + 3 * HOUR_MS
"""When a test's own command is appended."""

_numbers = count(1)


def document(kind: str, **fields: Any) -> dict[str, Any]:
    """A command as JSON: the fields that all have, a fresh id, and `fields` over them."""
    return {
        "kind": kind,
        "command_id": str(uuid5(UUID(FLOW_ID), f"command {next(_numbers)}")),
        "flow_id": FLOW_ID,
        "issued_by": OWNER,
        **fields,
    }


def command(kind: str, **fields: Any) -> Command:
    """`document(…)`, read as a producer's bytes are."""
    return COMMANDS.validate_python(document(kind, **fields))


def create(kind: str = "create_managed", **fields: Any) -> Command:
    about = {"controller_id": "kate/inbox", "goal": "triage inbox", "requester_origin": "user-1"}
    return command(kind, **{**about, **fields})


def create_mirrored(**fields: Any) -> Command:
    return create("create_mirrored", **fields)


def start(**fields: Any) -> Command:
    return command("start_running", **fields)


def set_waiting(wait: dict[str, Any] | None = None, **fields: Any) -> Command:
    return command("set_waiting", wait=wait or manual(), **fields)


def resume(**fields: Any) -> Command:
    return command("resume", **fields)


def resume_external(
    topic: str = "agent.delegate.reply", correlation_id: str = "corr-42", **fields: Any
) -> Command:
    return command("resume_external", topic=topic, correlation_id=correlation_id, **fields)


def finish(**fields: Any) -> Command:
    return command("finish", **fields)


def fail(reason: str = "downstream 503", **fields: Any) -> Command:
    return command("fail", reason=reason, **fields)


def request_cancel(**fields: Any) -> Command:
    return command("request_cancel", **fields)


def cancel(**fields: Any) -> Command:
    return command("cancel", **fields)


def update(patch: Any, **fields: Any) -> Command:
    return command("update_state", patch=patch, **fields)


def observe(
    run_id: str = "run-1", task: str = "classify", status: str = "running", **fields: Any
) -> Command:
    return command("record_step_observation", run_id=run_id, task=task, status=status, **fields)


def schedule_step(run_id: str = "r1", task: str = "classify", **fields: Any) -> Command:
    return command("schedule_step", run_id=run_id, task=task, **fields)


def start_step(run_id: str = "r1", **fields: Any) -> Command:
    return command("start_step", run_id=run_id, **{"issued_by": EXECUTOR, **fields})


def held(kind: str, run_id: str = "r1", attempt: int = 1, **fields: Any) -> Command:
    """A command of a step's holder."""
    return command(kind, run_id=run_id, attempt=attempt, **{"issued_by": EXECUTOR, **fields})


def extend_step(run_id: str = "r1", attempt: int = 1, **fields: Any) -> Command:
    return held("extend_step", run_id, attempt, **fields)


def complete_step(run_id: str = "r1", attempt: int = 1, **fields: Any) -> Command:
    return held("complete_step", run_id, attempt, **fields)


def fail_step(
    run_id: str = "r1", attempt: int = 1, reason: str = "downstream 503", **fields: Any
) -> Command:
    return held("fail_step", run_id, attempt, reason=reason, **fields)


def release_step(run_id: str = "r1", attempt: int = 1, **fields: Any) -> Command:
    return held("release_step", run_id, attempt, **fields)


def cancel_step(run_id: str = "r1", **fields: Any) -> Command:
    return command("cancel_step", run_id=run_id, **fields)


def retry_step(run_id: str = "r1", **fields: Any) -> Command:
    return command("retry_step", run_id=run_id, **fields)


def wake_step(run_id: str = "r1", **fields: Any) -> Command:
    return command("wake_step", run_id=run_id, **{"issued_by": TIMER, **fields})


def wake(**fields: Any) -> Command:
    return command("wake", **{"issued_by": TIMER, **fields})


def prune(**fields: Any) -> Command:
    return command("prune", **{"issued_by": TIMER, **fields})


def timer(at_ms: int = NOON) -> dict[str, Any]:
    return {"kind": "timer", "at": instant(at_ms)}


def external_event(
    topic: str = "agent.delegate.reply",
    correlation_id: str = "corr-42",
    timeout_at_ms: int | None = None,
) -> dict[str, Any]:
    wait = {"kind": "external_event", "topic": topic, "correlation_id": correlation_id}
    return wait if timeout_at_ms is None else {**wait, "timeout_at": instant(timeout_at_ms)}


def manual(timeout_at_ms: int | None = None) -> dict[str, Any]:
    wait = {"kind": "manual"}
    return wait if timeout_at_ms is None else {**wait, "timeout_at": instant(timeout_at_ms)}


def steps(*run_ids: str, **fields: Any) -> dict[str, Any]:
    """A join of the steps `run_ids`, or of all."""
    listed = {"run_ids": list(run_ids)} if run_ids else {}
    return {"kind": "steps", **listed, **fields}


def authority_for(command: Command) -> Authority:
    """The topic on which a command is at home."""
    return Authority.OPERATOR if command.kind in CONTROL_ONLY else Authority.OWNER


def accepted(
    command: Command,
    flow: Flow | None,
    *,
    at: int = NOON,
    authority: Authority | None = None,
    steps: FlowSteps = NO_STEPS,
) -> Flow:
    """The flow after `command`, which must not be refused, and not end in a pruned flow."""
    decision = decided(command, flow, at=at, authority=authority, steps=steps)
    assert decision.accepted, f"{command.kind}: {decision}"
    after = fold(flow, decision.facts)
    assert after is not None, f"{command.kind} left no flow"
    return after


def decided(
    command: Command,
    flow: Flow | None,
    *,
    at: int = NOON,
    authority: Authority | None = None,
    steps: FlowSteps = NO_STEPS,
) -> Decision:
    """What is decided about `command`, by default on the topic where it is at home."""
    return decide(command, flow, at, authority=authority or authority_for(command), steps=steps)


def refusal_of(command: Command, flow: Flow | None, **how: Any) -> Code | None:
    """The code of the refusal; None where there is none."""
    return decided(command, flow, **how).code


def given(*commands: Command, at: int = MORNING) -> Flow:
    """The flow after `commands`, every one of which must be accepted."""
    flow: Flow | None = None
    for one in commands:
        flow = accepted(one, flow, at=at)
    assert flow is not None, "no commands are given"
    return flow


def given_step(command: Command, flow: Flow, *, at: int = MORNING) -> Step:
    """The step that an observation leaves behind."""
    (fact,) = decided(command, flow, at=at).facts
    return evolve_step(None, fact)
