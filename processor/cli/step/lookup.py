"""Find steps: in the tables of this machine where they are current, else on the topic `state`."""

from collections.abc import Callable
from contextlib import aclosing
from typing import Any, TypeVar

import orjson

from processor.adapters.sqlite.readonly import queries as queries
from processor.cli.flow.lookup import find_flow, places_of, snapshots
from processor.ops.step_filter import StepFilter
from processor.settings import Settings

T = TypeVar("T")
Document = dict[str, Any]


async def list_steps(settings: Settings, meant: StepFilter, *, limit: int) -> list[Document]:
    """Up to `limit` steps, the newest change first. Raises as `select_steps` does."""

    def wanted(step: Document) -> Document | None:
        return step if meant.matches(step) else None

    found = await select_steps(settings, wanted)
    found.sort(key=lambda step: (step["flow_id"], step["run_id"]))
    found.sort(key=lambda step: str(step["updated_at"]), reverse=True)
    return found[:limit]


async def select_steps(settings: Settings, wanted: Callable[[Document], T | None]) -> list[T]:
    """What `wanted` makes of each step there is; what it answers None to is left out, and not kept
    in memory.

    Raises BrokerUnreachable if there is no table either, TopicsWrong, TableFailed, TableCorrupt.
    """
    places = await places_of(settings)
    found = [
        made
        for doc in queries.step_documents(places.tables.values())
        if (made := wanted(orjson.loads(doc))) is not None
    ]
    newest: dict[str, T] = {}
    async with aclosing(snapshots(settings, places.topic)) as records:
        async for key, value in records:
            if "/" not in key:
                continue
            made = None if value is None else wanted(orjson.loads(value)["step"])
            if made is None:
                newest.pop(key, None)
            else:
                newest[key] = made
    return [*found, *newest.values()]


async def find_step(settings: Settings, flow_id: str, run_id: str) -> Document | None:
    """Raises as `list_steps` does."""
    found = await find_flow(settings, flow_id)
    steps = () if found is None else found.steps
    return next((step for step in steps if step["run_id"] == run_id), None)
