"""How the flow of a task goes on, and what its client is shown; no processor, no views."""

from typing import Any

import pytest

from processor.mcp.tasks.executor_tool import ExecutorTool
from processor.mcp.tasks.progress import (
    CALLS_MAX,
    NextCommand,
    TaskFlow,
    initial_state,
    next_command,
)
from processor.mcp.tasks.protocol import fields_of
from processor.mcp.tasks.task_view import result_of, task_of

AT = "2026-11-30T12:00:00.000Z"
LATER = "2026-11-30T12:00:05.000Z"
TASK_ID = "6f1f3a52-0000-4000-8000-000000000001"
TOOL = ExecutorTool(name="ask", description="Ask.", input_schema={"type": "object"})
FORM = {"message": "?", "requestedSchema": {"type": "object", "properties": {}}}
REQUEST = {"method": "elicitation/create", "params": FORM}


def task(status: str = "running", *calls: dict[str, Any], **fields: Any) -> TaskFlow:
    flow = {
        "id": TASK_ID,
        "status": status,
        "state_json": initial_state(TOOL, {"a": 1}),
        "wait_json": None,
        "cancel_requested": False,
        "created_at": AT,
        "updated_at": LATER,
        **fields,
    }
    return TaskFlow(flow, calls)


def call(status: str, result: Any = None, *, nth: int = 1) -> dict[str, Any]:
    execution = {"attempt": 1, "max_attempts": 3, "progress": None, "last_failure": None}
    known = {"run_id": f"call-{nth}", "status": status, "result_json": result}
    return {**known, "execution": execution, "updated_at": AT}


def asked(**requests: Any) -> dict[str, Any]:
    return {"resultType": "input_required", "inputRequests": requests}


def reason_of(command: NextCommand | None) -> str:
    assert command is not None
    assert command.kind == "fail"
    return str(command.fields["reason"])


def test_a_task_whose_maker_was_killed_gets_its_step() -> None:
    command = next_command(task())
    assert command is not None
    assert command.kind == "schedule_step"
    assert (command.fields["run_id"], command.fields["input_json"]) == ("call-1", {"a": 1})


@pytest.mark.parametrize("status", ["pending", "running"])
def test_an_executor_is_waited_for(status: str) -> None:
    assert next_command(task("running", call(status))) is None


@pytest.mark.parametrize(
    ("last", "kind"),
    [
        (call("succeeded", "done"), "finish"),
        (call("failed", {"failure": {"reason": "no", "at": AT}}), "fail"),
        (call("cancelled"), "cancel"),
        (call("succeeded", asked(a=REQUEST)), "set_waiting"),
    ],
)
def test_a_call_that_has_ended_moves_the_flow(last: dict[str, Any], kind: str) -> None:
    command = next_command(task("running", last))
    assert command is not None
    assert command.kind == kind


@pytest.mark.parametrize("status", ["finished", "failed", "cancelled"])
def test_an_ended_flow_needs_nothing(status: str) -> None:
    assert next_command(task(status, call("succeeded", "done"))) is None


def test_a_cancel_that_was_asked_for_goes_first() -> None:
    command = next_command(task("running", call("succeeded", "done"), cancel_requested=True))
    assert command == NextCommand("cancel", {})


def test_keys_of_questions_are_those_of_their_call() -> None:
    asks = [asked(name=REQUEST), asked(name=REQUEST)]
    prompts = []
    for nth, ask in enumerate(asks, 1):
        command = next_command(task("running", call("succeeded", ask, nth=nth)))
        assert command is not None
        prompts.append(command.fields["wait"]["prompt"]["inputRequests"])
    assert [list(prompt) for prompt in prompts] == [["call-1.name"], ["call-2.name"]]


def test_a_question_that_a_person_passed_over_is_asked_again() -> None:
    """An operator may resume the wait without a response."""
    passed = task("running", call("succeeded", asked(name=REQUEST)))
    command = next_command(passed)
    assert command is not None
    assert command.kind == "set_waiting"


def test_what_is_no_question_fails_the_flow() -> None:
    no_request = call("succeeded", asked(name={"method": "shell/run"}))
    no_form = {"method": "elicitation/create", "params": {"message": "?", "requestedSchema": {}}}
    no_schema = call("succeeded", asked(name=no_form))
    too_much = call("succeeded", asked(**{str(n): REQUEST for n in range(400)}))
    assert "something else than input" in reason_of(next_command(task("running", no_request)))
    assert "something else than input" in reason_of(next_command(task("running", no_schema)))
    assert "16 KiB" in reason_of(next_command(task("running", too_much)))


def test_a_tool_that_asks_without_end_fails_the_flow() -> None:
    calls = [call("succeeded", asked(name=REQUEST), nth=nth) for nth in range(1, CALLS_MAX + 1)]
    assert "24 times" in reason_of(next_command(task("running", *calls)))


def test_a_flow_that_failed_without_its_call_is_an_error_of_the_protocol() -> None:
    state = {"failure": {"reason": "closed", "at": AT}}
    shown = fields_of(task_of(task("failed", call("cancelled"), state_json=state), 1_000))
    assert shown["status"] == "failed"
    assert shown["error"] == {"code": -32603, "message": "closed"}


def test_a_task_lives_until_its_flow_may_be_pruned() -> None:
    assert fields_of(task_of(task("running", call("pending")), 1_000))["ttlMs"] is None
    ended = task("finished", call("succeeded", 1))
    assert fields_of(task_of(ended, 1_000))["ttlMs"] == 6_000
    assert fields_of(task_of(ended, None))["ttlMs"] is None


@pytest.mark.parametrize(
    ("value", "text", "structured"),
    [
        ("done", "done", None),
        ({"pages": 3}, '{"pages":3}', {"pages": 3}),
        ({"content": "of a page"}, '{"content":"of a page"}', {"content": "of a page"}),
        ({"content": [{"type": "text", "text": "whole"}], "isError": True}, "whole", None),
    ],
)
def test_a_result_is_structured_and_text(value: Any, text: str, structured: Any) -> None:
    result = result_of(value)
    assert result.content[0].text == text  # type: ignore[union-attr]
    assert result.structured_content == structured
    assert result.is_error is (text == "whole")
