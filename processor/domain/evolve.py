"""Fold a fact into a flow or step. Checks nothing: what was decided is applied."""

from collections.abc import Iterable
from typing import Any, Final

from processor.contract.events import EventKind
from processor.domain.facts import Fact
from processor.domain.flow import Flow
from processor.domain.step import Step, changed_step, read_step

# Python 3.11 runs a function whenever an enum is asked for a member: half of what evolving cost.
CREATED: Final = EventKind.CREATED
STARTED: Final = EventKind.STARTED
WAITING: Final = EventKind.WAITING
RESUMED: Final = EventKind.RESUMED
FINISHED: Final = EventKind.FINISHED
FAILED: Final = EventKind.FAILED
CANCEL_REQUESTED: Final = EventKind.CANCEL_REQUESTED
CANCELLED: Final = EventKind.CANCELLED
STATE_UPDATED: Final = EventKind.STATE_UPDATED
STEP_OBSERVED: Final = EventKind.STEP_OBSERVED
STEP_SCHEDULED: Final = EventKind.STEP_SCHEDULED
PRUNED: Final = EventKind.PRUNED

STEP_KINDS: Final = frozenset(kind for kind in EventKind if kind.startswith("step_"))
"""What happens to a step of a flow; the flow stays as it is."""
STEP_KIND_NAMES: Final = frozenset(map(str, STEP_KINDS))


def merge(state: Any, patch: Any) -> Any:
    """Shallow: top-level keys of `patch` overwrite those of `state`; if either side is not an
    object, the patch replaces the state."""
    if isinstance(state, dict) and isinstance(patch, dict):
        return {**state, **patch}
    return patch


def merge_if_any(state: Any, patch: Any) -> Any:
    """As `merge`, where a null patch says that there is none."""
    return state if patch is None else merge(state, patch)


def failure(reason: str, at: str) -> dict[str, Any]:
    """What a failed flow's state is patched with."""
    return {"failure": {"reason": reason, "at": at}}


def evolve(flow: Flow | None, fact: Fact) -> Flow | None:
    """The flow after `fact`; None once it is pruned. `flow` is None only before `created`."""
    kind, flow_id, at, revision, status, payload = fact
    if kind is CREATED:
        return Flow(
            id=flow_id,
            **payload,
            wait_json=None,
            status=status,
            cancel_requested=False,
            revision=revision,
            created_at=at,
            updated_at=at,
        )
    if flow is None:
        raise ValueError(f"{kind} of a flow that was never created: {flow_id}")
    if kind is PRUNED:
        return None
    if kind in STEP_KINDS:
        return flow
    after = flow.copy()
    after.status, after.revision, after.updated_at = status, revision, at
    if kind is STATE_UPDATED:
        after.state_json = merge(flow.state_json, payload["patch"])
        after.current_step = payload["next_step"] or flow.current_step
    elif kind is WAITING:
        after.wait_json = payload["wait"]
    elif kind is RESUMED:
        after.wait_json = None
        after.state_json = merge_if_any(flow.state_json, payload["state_patch"])
    elif kind is FINISHED:
        after.state_json = merge_if_any(flow.state_json, payload["final_state"])
    elif kind is FAILED:
        after.wait_json = None
        after.state_json = merge(flow.state_json, failure(payload["reason"], at))
    elif kind is CANCEL_REQUESTED:
        after.cancel_requested = True
    elif kind is CANCELLED:
        after.wait_json = None
    return after


def fold(flow: Flow | None, facts: Iterable[Fact]) -> Flow | None:
    """The flow after all of `facts`, in order."""
    for fact in facts:
        flow = evolve(flow, fact)
    return flow


def evolve_step(step: Step | None, fact: Fact) -> Step:
    """The step after `fact`, of one of STEP_KINDS; `step` is what it was before, if it was there.

    Raises ValueError if there is no managed step for the fact to change.
    """
    kind, payload = fact.kind, fact.payload
    if kind is STEP_SCHEDULED or kind is STEP_OBSERVED:
        return read_step(payload["step"])
    if step is None or step.runtime != "managed":
        raise ValueError(f"{kind} of a step that was never scheduled: {fact.flow_id}")
    return changed_step(step, payload["changes"])
