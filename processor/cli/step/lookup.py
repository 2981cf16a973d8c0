"""Find steps: in the tables of this machine where they are current, else on the topic `state`."""

from typing import Any

from processor.cli.flow.lookup import find_flow, select
from processor.ops.step_filter import StepFilter
from processor.settings import Settings

Document = dict[str, Any]


async def list_steps(settings: Settings, meant: StepFilter, *, limit: int) -> list[Document]:
    """Up to `limit` steps, the newest change first. Raises as `list_flows` does."""
    found = await select(settings, "step", lambda step: step if meant.matches(step) else None)
    found.sort(key=lambda step: (step["flow_id"], step["run_id"]))
    found.sort(key=lambda step: str(step["updated_at"]), reverse=True)
    return found[:limit]


async def find_step(settings: Settings, flow_id: str, run_id: str) -> Document | None:
    """Raises as `list_steps` does."""
    found = await find_flow(settings, flow_id)
    steps = () if found is None else found.steps
    return next((step for step in steps if step["run_id"] == run_id), None)
