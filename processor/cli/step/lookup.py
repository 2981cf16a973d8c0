"""Find steps: in the tables of this machine where they are current, else on the topic `state`."""

from collections.abc import Callable, Iterator
from contextlib import aclosing
from typing import Any

import orjson

from processor.adapters.sqlite import readonly_queries as queries
from processor.cli.flow.lookup import find_flow, snapshots, where
from processor.contract.steps import StepStatus
from processor.settings import Settings

Document = dict[str, Any]


def step_filter(
    *,
    flow_id: str | None = None,
    task: str | None = None,
    status: StepStatus | None = None,
    holder: str | None = None,
    changed_before: str | None = None,
    managed: bool = False,
) -> Callable[[Document], bool]:
    """Return whether a step has all that is given; `changed_before` is a timestamp as written."""
    equal = {
        "flow_id": flow_id,
        "task": task,
        "status": None if status is None else str(status),
        "child_session_key": holder,
        "runtime": "managed" if managed else None,
    }
    wanted = {name: value for name, value in equal.items() if value is not None}

    def matches(step: Document) -> bool:
        return all(step[name] == value for name, value in wanted.items()) and (
            changed_before is None or step["updated_at"] < changed_before
        )

    return matches


async def list_steps(
    settings: Settings, matches: Callable[[Document], bool], *, limit: int
) -> list[Document]:
    """Up to `limit` steps, the newest change first.

    Raises BrokerUnreachable if there is no table either, TopicsWrong, TableFailed, TableCorrupt.
    """
    places = await where(settings)
    found = [step for step in _in_tables(places.tables.values()) if matches(step)]
    newest: dict[str, Document] = {}
    async with aclosing(snapshots(settings, places.topic)) as records:
        async for key, value in records:
            if "/" not in key:
                continue
            step = None if value is None else orjson.loads(value)["step"]
            if step is not None and matches(step):
                newest[key] = step
            else:
                newest.pop(key, None)
    found += newest.values()
    found.sort(key=lambda step: (step["flow_id"], step["run_id"]))
    found.sort(key=lambda step: str(step["updated_at"]), reverse=True)
    return found[:limit]


async def find_step(settings: Settings, flow_id: str, run_id: str) -> Document | None:
    """Raises as `list_steps` does."""
    found = await find_flow(settings, flow_id)
    steps = () if found is None else found.steps
    return next((step for step in steps if step["run_id"] == run_id), None)


def _in_tables(paths: Any) -> Iterator[Document]:
    return (orjson.loads(doc) for doc in queries.step_documents(paths))
