"""Facts: what happened to a flow, before it has its place on the audit topic."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus


class Fact(NamedTuple):
    """A FlowEvent without id, source and actor, which are the partition's to give.

    `revision` and `status` are the flow's after the fact; `payload` is the event's
    `payload_json`; `at` is the append time of the command, as text.
    """

    kind: EventKind
    flow_id: str
    at: str
    revision: int
    status: FlowStatus
    payload: dict[str, Any]


# As rows.new_flow_row.
new_fact: Final[Callable[[tuple[EventKind, str, str, int, FlowStatus, dict[str, Any]]], Fact]] = (
    partial(tuple.__new__, Fact)
)
