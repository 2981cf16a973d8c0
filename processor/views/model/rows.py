"""Rows of the view's file: the columns of a flow and a step, and what writes them."""

from collections.abc import Sequence
from typing import Any, Final

import orjson

from processor.contract.flow import FlowStatus
from processor.contract.values import EVENTS_PER_PARTITION, instant, parse_timestamp
from processor.domain.flow import Flow
from processor.views.model.projection import Viewed, ViewedStep, wait_ends_ms

# What never changes after the creation comes after what does.
_CHANGING: Final = (
    "status", "updated_ms", "since_ms", "cancel", "revision", "events", "last_event_id",
    "wait_kind", "wait_ends_ms", "pruned", "step", "wait", "state_bytes", "state",
)  # fmt: skip
_FIXED: Final = ("id", "partition", "created_ms", "owner", "controller", "origin", "goal")
MUTABLE: Final = len(_CHANGING)
INSERT_FLOW: Final = (
    f"INSERT INTO flow (n, {', '.join((*_CHANGING, *_FIXED))}) "
    f"VALUES ({', '.join('?' * (1 + len(_CHANGING) + len(_FIXED)))})"
)
PUT_STEP: Final = (
    "INSERT INTO step (n, flow, run_id, task, status, holder, updated_ms, doc) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (flow, run_id) DO UPDATE SET "
    "task = excluded.task, status = excluded.status, holder = excluded.holder, "
    "updated_ms = excluded.updated_ms, doc = excluded.doc"
)
UPDATE_FLOW: Final = f"UPDATE flow SET {', '.join(f'{c} = ?' for c in _CHANGING)} WHERE n = ?"
DROP_DEAD_LETTERS: Final = (
    'DELETE FROM letter WHERE partition = ? AND "offset" <= (SELECT "offset" FROM letter '
    'WHERE partition = ? ORDER BY "offset" DESC LIMIT 1 OFFSET ?)'
)
FLOW_COLUMNS: Final = (
    "id, controller, goal, owner, origin, step, state, wait, status, cancel, revision, "
    "created_ms, updated_ms"
)
"""In the order of Flow's fields."""
_STATUSES: Final = {status.value: status for status in FlowStatus}


def marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def flow_of(row: Sequence[Any]) -> Flow:
    """The flow in a row of FLOW_COLUMNS, which is believed."""
    return Flow(
        id=row[0],
        controller_id=row[1],
        goal=row[2],
        owner_session_key=row[3],
        requester_origin=row[4],
        current_step=row[5],
        state_json=orjson.loads(row[6]),
        wait_json=orjson.loads(row[7]),
        status=_STATUSES[row[8]],
        cancel_requested=bool(row[9]),
        revision=row[10],
        created_at=instant(row[11]),
        updated_at=instant(row[12]),
    )


def flow_row(viewed: Viewed) -> tuple[Any, ...]:
    flow = viewed.flow
    wait = flow.wait_json
    state = orjson.dumps(flow.state_json)
    viewed.state_bytes = len(state)
    return (
        flow.status.value,
        parse_timestamp(flow.updated_at),
        viewed.since_ms,
        int(flow.cancel_requested),
        flow.revision,
        viewed.events,
        viewed.last_event_id,
        None if wait is None else wait["kind"],
        wait_ends_ms(wait),
        0,
        flow.current_step,
        orjson.dumps(wait).decode(),
        len(state),
        state.decode(),
        flow.id,
        viewed.row_number // EVENTS_PER_PARTITION,
        parse_timestamp(flow.created_at),
        flow.owner_session_key,
        flow.controller_id,
        flow.requester_origin,
        flow.goal,
        viewed.row_number,
    )


def step_row(viewed: ViewedStep) -> tuple[Any, ...]:
    step = viewed.step
    return (
        viewed.row_number,
        viewed.flow,
        step["run_id"],
        step["task"],
        step["status"],
        step["child_session_key"],
        parse_timestamp(step["updated_at"]),
        orjson.dumps(step).decode(),
    )


def pruned_row(viewed: Viewed) -> tuple[Any, ...]:
    """What is left for the sake of the events: no wait, no state."""
    row = list(flow_row(viewed))
    row[7:10] = (None, None, 1)
    row[11:14] = ("null", 0, "null")
    return tuple(row)


def inserted_row(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (row[-1], *row[:-1])
