"""Commands for flows that are told apart by a number, as JSON."""

from typing import Any
from uuid import UUID, uuid5

from tests.support.builders import FLOW_ID, TIMER, document


def flow_id(number: int) -> str:
    return str(uuid5(UUID(FLOW_ID), f"flow {number}"))


def create(number: int, **fields: Any) -> dict[str, Any]:
    about = {"controller_id": "kate/inbox", "goal": f"goal {number}", "requester_origin": "user"}
    return document("create_managed", flow_id=flow_id(number), **{**about, **fields})


def start(number: int, **fields: Any) -> dict[str, Any]:
    return document("start_running", flow_id=flow_id(number), **fields)


def update(number: int, *, revision: int | None = None, **fields: Any) -> dict[str, Any]:
    patch = {"patch": {"n": number}, "expected_revision": revision}
    return document("update_state", flow_id=flow_id(number), **{**patch, **fields})


def observe(number: int, run_id: str = "run-1", **fields: Any) -> dict[str, Any]:
    about = {"run_id": run_id, "task": "classify", "status": "running"}
    return document("record_step_observation", flow_id=flow_id(number), **{**about, **fields})


def finish(number: int, **fields: Any) -> dict[str, Any]:
    return document("finish", flow_id=flow_id(number), **fields)


def prune(number: int, **fields: Any) -> dict[str, Any]:
    """For `control`."""
    return document("prune", flow_id=flow_id(number), **{"issued_by": TIMER, **fields})


def life(number: int) -> list[dict[str, Any]]:
    """A flow from its creation to its end, with a step; revision 2 in the end."""
    return [create(number), start(number), observe(number), finish(number)]


def schedule(number: int, run_id: str = "r", **fields: Any) -> dict[str, Any]:
    about = {"run_id": run_id, "task": "classify"}
    return document("schedule_step", flow_id=flow_id(number), **{**about, **fields})


def step(kind: str, number: int, run_id: str = "r", **fields: Any) -> dict[str, Any]:
    """A command of an executor about a step."""
    about = {"run_id": run_id, "issued_by": "executor:1"}
    return document(kind, flow_id=flow_id(number), **{**about, **fields})
