"""From what is and what happened to what is next. Evolving believes what it is told."""

from collections.abc import Iterable
from typing import Any, assert_never

from processor.domain.facts import Fact
from schemas.events import EventKind
from schemas.flow import Flow, FlowStep


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
    kind, payload = fact.kind, fact.payload
    if kind is EventKind.CREATED:
        return Flow(
            id=fact.flow_id,
            **payload,
            wait_json=None,
            status=fact.status,
            cancel_requested=False,
            revision=fact.revision,
            created_at=fact.at,
            updated_at=fact.at,
        )
    if flow is None:
        raise ValueError(f"{kind} of a flow that was never created: {fact.flow_id}")
    changes: dict[str, Any] = {
        "status": fact.status,
        "revision": fact.revision,
        "updated_at": fact.at,
    }
    match kind:
        case EventKind.STARTED:
            pass
        case EventKind.WAITING:
            changes["wait_json"] = payload["wait"]
        case EventKind.RESUMED:
            changes["wait_json"] = None
            changes["state_json"] = merge_if_any(flow.state_json, payload["state_patch"])
        case EventKind.FINISHED:
            changes["state_json"] = merge_if_any(flow.state_json, payload["final_state"])
        case EventKind.FAILED:
            changes["wait_json"] = None
            changes["state_json"] = merge(flow.state_json, failure(payload["reason"], fact.at))
        case EventKind.CANCEL_REQUESTED:
            changes["cancel_requested"] = True
        case EventKind.CANCELLED:
            changes["wait_json"] = None
        case EventKind.STATE_UPDATED:
            changes["state_json"] = merge(flow.state_json, payload["patch"])
            if payload["next_step"] is not None:
                changes["current_step"] = payload["next_step"]
        case EventKind.STEP_OBSERVED:
            return flow
        case EventKind.PRUNED:
            return None
        case _:
            assert_never(kind)
    return flow.changed(changes)


def fold(flow: Flow | None, facts: Iterable[Fact]) -> Flow | None:
    """The flow after all of `facts`, in order."""
    for fact in facts:
        flow = evolve(flow, fact)
    return flow


def observed_step(fact: Fact) -> FlowStep:
    """The step that a `step_observed` fact leaves behind."""
    return FlowStep.model_validate(fact.payload["step"], strict=False)
