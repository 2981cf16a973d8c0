"""Derive the commands that bring a flow's status in line with its task's state. Pure.

A save is one `update_state`. The flow's status then follows by one command after another, so that
operators, waits and retention see the task's state. Each command is derived from the flow alone:
any replica can continue for a saver that died, and of two that do so one is refused.
"""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID, uuid5

import orjson
from a2a.helpers import get_message_text
from a2a.types import TaskState

from processor.a2a.documents import INTERRUPTED, TERMINAL, state_of, task_of, version_of
from processor.client import CurrentFlow
from processor.contract import FlowStatus
from processor.contract.steps import LIVE
from processor.contract.values import PROMPT_MAX_BYTES

TEXT_MAX: Final = 4096
PROMPT_TEXT_MAX_BYTES: Final = PROMPT_MAX_BYTES - 256
"""Of a prompt's text as written; the state's name stands beside it."""
FAILURES: Final = frozenset({TaskState.TASK_STATE_FAILED, TaskState.TASK_STATE_REJECTED})
_ENDED: Final = frozenset({FlowStatus.FINISHED, FlowStatus.FAILED, FlowStatus.CANCELLED})


def next_move(current: CurrentFlow) -> Mapping[str, Any] | None:
    """Return the next command that brings the flow's status in line; None if it is.

    A flow does not end while one of its managed steps is live: the end would cancel the run that
    has just saved the task.
    """
    flow = current.flow
    if flow.status in _ENDED:
        return None
    state = state_of(current)
    if flow.cancel_requested or state == TaskState.TASK_STATE_CANCELED:
        return _command(current, "cancel")
    if not version_of(current) or state == TaskState.TASK_STATE_SUBMITTED:
        return None
    if state in TERMINAL and _is_worked_on(current):
        return None
    if flow.status == FlowStatus.CREATED:
        return _command(current, "start_running")
    if state in FAILURES:
        return _command(current, "fail", reason=_text(current) or TaskState.Name(state))
    if flow.status == FlowStatus.WAITING:
        return None if state in INTERRUPTED else _command(current, "resume")
    if state in INTERRUPTED:
        text = _written_within(PROMPT_TEXT_MAX_BYTES, _text(current))
        prompt = {"state": TaskState.Name(state), "text": text}
        return _command(current, "set_waiting", wait={"kind": "manual", "prompt": prompt})
    if state == TaskState.TASK_STATE_COMPLETED:
        return _command(current, "finish")
    return None


def _is_worked_on(current: CurrentFlow) -> bool:
    return any(s.runtime == "managed" and s.status in LIVE for s in current.steps.values())


def _command(current: CurrentFlow, kind: str, **fields: Any) -> Mapping[str, Any]:
    flow = current.flow
    return {
        "kind": kind,
        "flow_id": flow.id,
        "issued_by": flow.owner_session_key,
        # The same for all replicas that see the flow at this revision.
        "command_id": str(uuid5(UUID(flow.id), f"{kind} {flow.revision}")),
        "expected_revision": flow.revision,
        **fields,
    }


def _text(current: CurrentFlow) -> str:
    task = task_of(current)
    assert task is not None
    return get_message_text(task.status.message)[:TEXT_MAX]


def _written_within(limit_bytes: int, text: str) -> str:
    """The beginning of `text` that takes at most so many bytes as JSON: a character takes up to
    six."""
    while (size := len(orjson.dumps(text))) > limit_bytes:
        text = text[: len(text) * limit_bytes // size]
    return text
