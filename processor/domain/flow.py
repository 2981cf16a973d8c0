"""A flow as commands are decided on it and facts are folded into it."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from processor.contract.flow import FlowStatus


class Flow(NamedTuple):
    """The fields of the published model, in its order; nothing is validated.

    A tuple, since each command makes a new one: `new_flow` takes a fraction of what a model's copy
    does, and a flow in memory a third of the room.
    """

    id: str
    controller_id: str
    goal: str
    owner_session_key: str
    requester_origin: str
    current_step: str
    state_json: Any
    wait_json: Any
    status: FlowStatus
    cancel_requested: bool
    revision: int
    created_at: str
    updated_at: str


_Fields = tuple[str, str, str, str, str, str, Any, Any, FlowStatus, bool, int, str, str]
# A named tuple's own constructor is a Python function that takes twice the time.
new_flow: Final[Callable[[_Fields], Flow]] = partial(tuple.__new__, Flow)
_STATUSES: Final = {status.value: status for status in FlowStatus}


def read_flow(document: Mapping[str, Any]) -> Flow:
    """The flow that `document`, JSON of the published model, says. Raises KeyError."""
    return Flow(**{**document, "status": _STATUSES[document["status"]]})
