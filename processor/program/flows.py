"""Where the program finds flows: the `state` topic, or the tables of this machine.

The topic is right everywhere. A table is only as new as the worker that wrote it, and that one
may have given the partition to another since; so the tables are read when asked for.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from aiokafka import ConsumerRecord

from processor.adapters.kafka.admin import partition_counts
from processor.adapters.kafka.errors import TopicsWrong
from processor.adapters.kafka.reader import read
from processor.adapters.sqlite import queries
from processor.errors import TaskflowError
from processor.placement import partition_of
from processor.settings import Settings
from schemas.flow import Flow, FlowStatus
from schemas.state import CURSOR_PREFIX
from schemas.topics import Topics


class NoTables(TaskflowError):
    """There is nothing to look at on this machine."""


Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A flow with its steps, as JSON values."""

    flow: Document
    last_event_id: int
    chain: str
    steps: list[Document] = field(default_factory=list)


def local_flows(
    settings: Settings, *, owner: str | None, status: FlowStatus | None, limit: int
) -> list[Flow]:
    """Newest change first. Needs no broker. Raises NoTables, TableFailed, TableCorrupt."""
    return queries.list_flows(_tables(settings), owner=owner, status=status, limit=limit)


def local_flow(settings: Settings, flow_id: str) -> Found | None:
    """None if no table has it. Raises NoTables, TableFailed, TableCorrupt."""
    view = queries.find_flow(_tables(settings), flow_id)
    if view is None:
        return None
    steps = [step.model_dump(mode="json") for step in view.steps]
    return Found(view.flow.model_dump(mode="json"), view.last_event_id, view.chain.hex(), steps)


def _tables(settings: Settings) -> list[Path]:
    paths = queries.tables(settings.state_dir, settings.topic_prefix)
    if not paths:
        raise NoTables(
            f"{settings.state_dir} holds no tables of {settings.topic_prefix!r}; "
            "TASKFLOW_STATE_DIR says where a worker keeps them."
        )
    return paths


async def list_flows(
    settings: Settings, *, owner: str | None, status: FlowStatus | None, limit: int
) -> list[Flow]:
    """Newest change first. Raises BrokerUnreachable, TopicsWrong."""
    snapshots = await _snapshots(settings, None)
    flows = [
        entry["flow"]
        for key, entry in snapshots.items()
        if "/" not in key
        and (owner is None or entry["flow"]["owner_session_key"] == owner)
        and (status is None or entry["flow"]["status"] == status)
    ]
    flows.sort(key=lambda flow: (flow["updated_at"], flow["id"]), reverse=True)
    return [Flow.model_validate_json(orjson.dumps(flow)) for flow in flows[:limit]]


async def find_flow(settings: Settings, flow_id: str) -> Found | None:
    """None if there is no such flow. Raises BrokerUnreachable, TopicsWrong."""
    snapshots = await _snapshots(settings, flow_id)
    entry = snapshots.get(flow_id)
    if entry is None:
        return None
    steps = [value["step"] for key, value in snapshots.items() if key.startswith(f"{flow_id}/")]
    steps.sort(key=lambda step: (step["created_at"], step["run_id"]))
    return Found(entry["flow"], entry["last_event_id"], entry["chain"], steps)


async def history(settings: Settings, flow_id: str) -> AsyncGenerator[bytes]:
    """The flow's FlowEvents as they stand on the audit topic, in their order.

    Reads the one partition where they lie. Raises BrokerUnreachable, TopicsWrong.
    """
    async with aclosing(_of_flow(settings, Topics(settings.topic_prefix).audit, flow_id)) as events:
        async for record in events:
            if record.key == flow_id.encode() and record.value is not None:
                yield record.value


async def _snapshots(settings: Settings, flow_id: str | None) -> dict[str, Document]:
    """The newest value of each key of `state`; with `flow_id` only that flow's."""
    topic = Topics(settings.topic_prefix).state
    records = read(settings, topic) if flow_id is None else _of_flow(settings, topic, flow_id)
    newest: dict[str, bytes] = {}
    async with aclosing(records):
        async for record in records:
            key = (record.key or b"").decode("utf-8", "replace")
            if key.startswith(CURSOR_PREFIX) or (
                flow_id is not None and not key.startswith(flow_id)
            ):
                continue
            if record.value is None:
                newest.pop(key, None)
            else:
                newest[key] = record.value
    return {key: orjson.loads(value) for key, value in newest.items()}


async def _of_flow(settings: Settings, topic: str, flow_id: str) -> AsyncGenerator[ConsumerRecord]:
    count = (await partition_counts(settings)).get(topic)
    if count is None:
        raise TopicsWrong(f"{topic} does not exist; `taskflow topics create` makes the topics.")
    partition = partition_of(flow_id.encode(), count)
    async with aclosing(read(settings, topic, partitions=[partition])) as records:
        async for record in records:
            yield record
