"""Decide the next command of a task's flow. Pure: the flow and its steps in, a command out.

A task's flow is running while an executor works, and its steps are `call-1`, `call-2` …: one more
after each question. The decision depends on the flow alone, so any server decides the same, also
after a crash.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid5

import orjson
from pydantic import ValidationError

from processor.contract import Outcome
from processor.contract.outcomes import Code
from processor.mcp.tasks.executor_tool import ExecutorTool
from processor.mcp.tasks.protocol import check_question

CONTROLLER: Final = "taskflow-mcp"
"""`controller_id` of the flows of tasks."""
INPUT_TOPIC: Final = "mcp.input"
"""The topic of waits for a task's input."""
PROMPT_MAX_BYTES: Final = 16 * 1024
CALLS_MAX: Final = 24
"""Limit of a task's calls: with inputs and results of 64 KiB they fit into one response of the
views."""
REASON_MAX: Final = 4096
_CALL: Final = "call-"
_CALL_ID: Final = re.compile(r"call-[1-9][0-9]{0,5}")

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NextCommand:
    """A command for the flow of a task, without the fields that every command has."""

    kind: str
    fields: Document


@dataclass(frozen=True, slots=True)
class TaskFlow:
    """The flow of a task with its calls, the oldest first."""

    flow: Document
    calls: Sequence[Document]

    @classmethod
    def of(cls, found: Document) -> "TaskFlow":
        """From the response of `GET /v1/flows/{flow_id}`."""
        managed = [step for step in found["steps"] if step["runtime"] == "managed"]
        calls = [step for step in managed if _CALL_ID.fullmatch(step["run_id"])]
        return cls(found["flow"], sorted(calls, key=lambda step: int(step["run_id"][len(_CALL) :])))

    @property
    def last(self) -> Document | None:
        return self.calls[-1] if self.calls else None

    @property
    def questions(self) -> dict[str, Any]:
        """The input requests of the flow's wait by key, including those with a response."""
        wait = self.flow["wait_json"]
        if wait is None or wait["kind"] != "external_event":
            return {}
        prompt = wait.get("prompt")
        if wait["topic"] == INPUT_TOPIC and isinstance(prompt, Mapping):
            return dict(prompt.get("inputRequests", {}))
        return {key_of(wait["correlation_id"]): _form(prompt)}

    @property
    def responses(self) -> dict[str, Any]:
        """The responses so far to the questions of the flow's wait, by key."""
        state = self.flow["state_json"]
        return {key: state[_noted(key)] for key in self.questions if _noted(key) in state}


def is_task(flow: Document, owner: str) -> bool:
    """Whether a flow is a task of this session."""
    ours = flow["controller_id"] == CONTROLLER and flow["owner_session_key"] == owner
    return ours and isinstance(flow["state_json"], Mapping) and "call" in flow["state_json"]


def initial_state(tool: ExecutorTool, arguments: Document) -> dict[str, Any]:
    """Return the state of a new task's flow, from which its steps are made."""
    step = {
        "task": tool.step_task,
        "max_attempts": tool.max_attempts,
        "lease_ms": tool.lease_ms,
        "backoff_ms": tool.backoff_ms,
    }
    return {"call": {"tool": tool.name, "arguments": arguments, "step": step}}


def next_command(task: TaskFlow) -> NextCommand | None:
    """Return the next command; None while an executor or the client must act, and after the end."""
    flow = task.flow
    if flow["status"] not in ("running", "waiting"):
        return None
    if flow["cancel_requested"]:
        return NextCommand("cancel", {})
    if flow["status"] == "waiting":
        questions, responses = task.questions, task.responses
        if questions and questions.keys() == responses.keys():
            return _resumption(flow, responses)
        return None
    if (last := task.last) is None:
        return _call(flow, 1, {})
    match last["status"]:
        case "failed":
            return NextCommand("fail", {"reason": failure_of(last)})
        case "cancelled":
            return NextCommand("cancel", {})
        case "succeeded":
            return _after(task, last)
        case _:
            return None


def after_refusal(outcome: Outcome) -> NextCommand | None:
    """Return the command that ends a flow whose next command can never be accepted; None if the
    refusal is due to another server that was faster."""
    if outcome.code in (Code.STATE_TOO_LARGE, Code.INVALID_DATA, Code.TOO_MANY_STEPS):
        return NextCommand("fail", {"reason": f"{outcome.kind}: {outcome.message}"[:REASON_MAX]})
    return None


def failure_of(step: Document) -> str:
    """Return why a step failed."""
    result = step["result_json"]
    return str(result["failure"]["reason"]) if result else "the step failed"


def with_responses(task: TaskFlow, given: Document) -> NextCommand | None:
    """Return the command that records responses to open questions; None if `given` has none.

    The last response ends the wait. A question has one response: the first that was accepted.
    """
    questions, known = task.questions, task.responses
    new = {key: given[key] for key in questions if key in given and key not in known}
    if not new:
        return None
    if questions.keys() == known.keys() | new.keys():
        return _resumption(task.flow, {**known, **new})
    return NextCommand("update_state", {"patch": {_noted(key): new[key] for key in new}})


def key_of(correlation_id: str) -> str:
    """Return the key of a question without one. It does not reveal the correlation id."""
    return str(uuid5(UUID(int=0), correlation_id))


def _after(task: TaskFlow, last: Document) -> NextCommand:
    """The command after a step that succeeded: the end, a question, or the call with responses."""
    asked = last["result_json"]
    if not is_question(asked):
        return NextCommand("finish", {})
    resumed = _resumed_by(task.flow)
    if resumed.get("run_id") == last["run_id"]:
        more = {"inputResponses": resumed["inputResponses"]}
        if "requestState" in asked:
            more["requestState"] = asked["requestState"]
        return _call(task.flow, len(task.calls) + 1, more)
    try:
        check_question(asked)
    except ValidationError as error:
        reason = f"The tool asked for something else than input: {error.errors()[0]['msg']}"
        return NextCommand("fail", {"reason": reason[:REASON_MAX]})
    if len(task.calls) == CALLS_MAX:
        return NextCommand("fail", {"reason": f"The tool asked for input {CALLS_MAX} times."})
    run_id = last["run_id"]
    prompt = {"inputRequests": {f"{run_id}.{k}": v for k, v in asked["inputRequests"].items()}}
    if len(orjson.dumps(prompt)) > PROMPT_MAX_BYTES:
        return NextCommand("fail", {"reason": "The tool asked for more than 16 KiB of input."})
    wait = {
        "kind": "external_event",
        "topic": INPUT_TOPIC,
        "correlation_id": _correlation(task.flow, run_id),
        "prompt": prompt,
    }
    return NextCommand("set_waiting", {"wait": wait})


def is_question(value: Any) -> bool:
    """Whether a step's result is an `InputRequiredResult` of MCP."""
    return (
        isinstance(value, Mapping)
        and value.get("resultType") == "input_required"
        and bool(value.get("inputRequests"))
    )


def _call(flow: Document, nth: int, more: Document) -> NextCommand:
    call = flow["state_json"]["call"]
    named = {"run_id": f"{_CALL}{nth}", "input_json": {**call["arguments"], **more}}
    return NextCommand("schedule_step", {**call["step"], **named})


def _resumption(flow: Document, responses: Document) -> NextCommand:
    wait = flow["wait_json"]
    run_id = wait["correlation_id"].rpartition("/")[2]
    ours = wait["topic"] == INPUT_TOPIC
    named = {key.removeprefix(f"{run_id}."): value for key, value in responses.items()}
    payload = {"run_id": run_id if ours else None, "inputResponses": named}
    return NextCommand(
        "resume_external",
        {
            "topic": wait["topic"],
            "correlation_id": wait["correlation_id"],
            "payload": payload,
        },
    )


def _resumed_by(flow: Document) -> Document:
    event = flow["state_json"].get("resume_event")
    return event if isinstance(event, Mapping) else {}


def _correlation(flow: Document, run_id: str) -> str:
    return f"{flow['id']}/{run_id}"


def _noted(key: str) -> str:
    return f"response {key}"


def _form(prompt: Any) -> dict[str, Any]:
    """The prompt of a program that does not use MCP, as a form with one field."""
    text = prompt if isinstance(prompt, str) else orjson.dumps(prompt).decode()
    schema = {
        "type": "object",
        "properties": {"response": {"type": "string"}},
        "required": ["response"],
    }
    params = {"mode": "form", "message": text, "requestedSchema": schema}
    return {"method": "elicitation/create", "params": params}
