"""Find flows in the tables of this machine, else on the topic `state`.

A worker's table is looked at where it is level with the audit topic: then it says what `state`
says, and nothing need be fetched. Only without a broker is it believed as it is.
"""

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import orjson
from aiokafka import ConsumerRecord

from processor.adapters.kafka.admin.topic_admin import partition_counts
from processor.adapters.kafka.client_config import ensure_reachable
from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable, TopicsWrong
from processor.adapters.kafka.reader.topic_reader import end_offsets, read
from processor.adapters.sqlite.readonly import queries as queries
from processor.adapters.sqlite.readonly.queries import Kind
from processor.cli.common.output import say
from processor.cli.common.progress import progress_bar
from processor.contract.flow import Flow, FlowStatus
from processor.contract.state import CURSOR_PREFIX
from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.domain.waits import due_ms
from processor.engine.partitioner import partition_of
from processor.ops.bulk import BulkAction, BulkTarget, Filter
from processor.ops.conditions import Condition
from processor.settings import Settings

PATIENCE_WITH_TABLES_S = 2.0
"""How long a broker is waited for that could only confirm what lies here."""

REPORT_EVERY = 1_000

T = TypeVar("T")
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Found:
    """A flow with its steps, as JSON values."""

    flow: Document
    last_event_id: int
    chain: str
    steps: list[Document] = field(default_factory=list)


async def list_flows(
    settings: Settings,
    *,
    owner: str | None,
    status: FlowStatus | None,
    where: Sequence[Condition] = (),
    limit: int,
) -> list[Flow]:
    """Newest change first. With `where` every flow is looked at.

    Raises BrokerUnreachable if there is no table either, TopicsWrong, TableFailed, TableCorrupt.
    """

    from_tables = partial(queries.list_flows, owner=owner, status=status, limit=limit)
    flows = await _listed(settings, from_tables, owner, status, where)
    flows.sort(key=lambda flow: flow.id)
    flows.sort(key=lambda flow: flow.updated_at, reverse=True)
    return flows[:limit]


async def list_waiting(
    settings: Settings, *, owner: str | None, where: Sequence[Condition] = (), limit: int
) -> list[Flow]:
    """Whose wait ends by itself soonest comes first; those without a time come last.

    Raises as `list_flows` does.
    """

    def soonest(flow: Flow) -> tuple[bool, int, str]:
        due = due_ms(flow)
        return (True, 0, "") if due is None else (False, due, flow.id)

    from_tables = partial(queries.list_waiting, owner=owner, limit=limit)
    flows = await _listed(settings, from_tables, owner, FlowStatus.WAITING, where)
    return sorted(flows, key=soonest)[:limit]


async def _listed(
    settings: Settings,
    from_tables: Callable[[Iterable[Path]], list[Flow]],
    owner: str | None,
    status: FlowStatus | None,
    where: Sequence[Condition],
) -> list[Flow]:
    """Flows in no order. A table answers by its indexes, `from_tables`, unless there is a
    condition."""

    def wanted(flow: Document) -> Document | None:
        is_wanted = (
            owner in (None, flow["owner_session_key"])
            and status in (None, flow["status"])
            and all(one.holds(flow) for one in where)
        )
        return flow if is_wanted else None

    if where:
        return [*map(_flow, await select(settings, "flow", wanted))]
    places = await places_of(settings)
    there = await _on_topic(settings, places.topic, "flow", wanted)
    return [*from_tables(places.tables.values()), *map(_flow, there)]


async def list_ended(settings: Settings, *, owner: str | None, before_ms: int) -> list[BulkTarget]:
    """All flows that have ended and last changed before `before_ms`, the oldest change first.

    Holds about 400 bytes of each. Raises as `list_flows` does.
    """
    places = await places_of(settings)
    ended = queries.ended(places.tables.values(), before_ms=before_ms, owner=owner)
    found = [BulkTarget(**one._asdict()) for one in ended]
    wanted = Filter(BulkAction.PRUNE, owner, before=instant(before_ms)).target
    found += await _on_topic(settings, places.topic, "flow", wanted)
    found.sort(key=lambda flow: (flow.updated_at, flow.flow_id))
    return found


async def select(settings: Settings, kind: Kind, wanted: Callable[[Document], T | None]) -> list[T]:
    """What `wanted` makes of each flow or step there is; what it answers None to is left out, and
    not kept in memory. Raises as `list_flows` does."""
    places = await places_of(settings)
    found = [
        made
        for doc in queries.documents(places.tables.values(), kind)
        if (made := wanted(orjson.loads(doc))) is not None
    ]
    return found + await _on_topic(settings, places.topic, kind, wanted)


async def find_flow(settings: Settings, flow_id: str) -> Found | None:
    """None if there is no such flow. Raises as `list_flows` does."""
    places = await places_of(settings, flow_id)
    if places.tables:
        return _in_table(places.tables.values(), flow_id)
    found = await _snapshots_of(settings, places.topic, flow_id)
    entry = found.get(flow_id)
    if entry is None:
        return None
    steps = [value["step"] for key, value in found.items() if key.startswith(f"{flow_id}/")]
    steps.sort(key=lambda step: (step["created_at"], step["run_id"]))
    return Found(entry["flow"], entry["last_event_id"], entry["chain"], steps)


async def history(settings: Settings, flow_id: str) -> AsyncGenerator[bytes]:
    """The values of `events_of`."""
    async with aclosing(events_of(settings, flow_id)) as events:
        async for record in events:
            yield record.value


async def events_of(settings: Settings, flow_id: str) -> AsyncGenerator[ConsumerRecord]:
    """The flow's FlowEvents as they stand on the audit topic, in their order.

    Reads the one partition where they lie. Raises BrokerUnreachable, TopicsWrong.
    """
    topic = Topics(settings.topic_prefix).audit
    partition = partition_of(flow_id.encode(), await _count(settings, topic))
    ends = await end_offsets(settings, topic, [partition])
    with progress_bar("reading the audit") as bar:
        bar.expect(ends[partition])
        passed = 0
        async with aclosing(read(settings, topic, partitions=[partition])) as events:
            async for record in events:
                if record.offset >= passed + REPORT_EVERY:
                    bar.advance(record.offset - passed)
                    passed = record.offset
                if record.key == flow_id.encode() and record.value is not None:
                    yield record


@dataclass(frozen=True, slots=True)
class Places:
    """The tables to look at, and the partitions of `state` to read: together all that is asked."""

    tables: dict[int, Path]
    topic: list[int]


async def places_of(settings: Settings, flow_id: str | None = None) -> Places:
    """Where to look for all flows, or for one.

    Raises BrokerUnreachable if there is no table either, and TopicsWrong.
    """
    audit = Topics(settings.topic_prefix).audit
    paths = queries.tables(settings.state_dir, settings.topic_prefix)
    # Before the ends are asked for: a table that belongs to other topics may be past them.
    known = {
        partition: progress
        for partition, path in paths.items()
        if (progress := queries.progress(path)) is not None
    }

    def wanted(count: int) -> list[int]:
        return [*range(count)] if flow_id is None else [partition_of(flow_id.encode(), count)]

    try:
        if known:
            await ensure_reachable(settings, patience_s=PATIENCE_WITH_TABLES_S)
        count = await _count(settings, audit)
        behind = await end_offsets(settings, audit, wanted(count))
    except AccessDenied:
        raise
    except BrokerUnreachable as error:
        count = max((progress.partitions for progress in known.values()), default=0)
        here = {p: paths[p] for p in wanted(count) if p in known} if count else {}
        if not here:
            raise
        missing = count - len(known) if flow_id is None else 0
        say(
            f"{error} Shown are the tables in {settings.state_dir}, as new as their worker left "
            f"them{f'; {missing} of {count} partitions have none there' if missing else ''}."
        )
        return Places(here, [])
    # Behind the last record stands the marker of its transaction, which no table sees.
    current = {
        partition: paths[partition]
        for partition, end in behind.items()
        if partition in known and known[partition] in {(count, end), (count, end - 1)}
    }
    return Places(current, [partition for partition in behind if partition not in current])


def _in_table(paths: Iterable[Path], flow_id: str) -> Found | None:
    view = queries.find_flow(paths, flow_id)
    if view is None:
        return None
    steps = [step.model_dump(mode="json") for step in view.steps]
    return Found(view.flow.model_dump(mode="json"), view.last_event_id, view.chain.hex(), steps)


def _flow(document: Document) -> Flow:
    return Flow.model_validate_json(orjson.dumps(document))


async def _on_topic(
    settings: Settings,
    partitions: Sequence[int],
    kind: Kind,
    wanted: Callable[[Document], T | None],
) -> list[T]:
    """As `select`, in `partitions` of `state`."""
    newest: dict[str, T] = {}
    async with aclosing(snapshots(settings, partitions)) as records:
        async for key, value in records:
            if ("/" in key) is (kind == "flow"):
                continue
            made = None if value is None else wanted(orjson.loads(value)[kind])
            if made is None:
                newest.pop(key, None)
            else:
                newest[key] = made
    return [*newest.values()]


async def _snapshots_of(
    settings: Settings, partitions: Sequence[int], flow_id: str
) -> dict[str, Document]:
    """The newest values of the flow and its steps in `partitions` of `state`."""
    newest: dict[str, bytes | None] = {}
    async with aclosing(snapshots(settings, partitions)) as records:
        async for key, value in records:
            if key.startswith(flow_id):
                newest[key] = value
    return {key: orjson.loads(value) for key, value in newest.items() if value is not None}


async def snapshots(
    settings: Settings, partitions: Sequence[int]
) -> AsyncGenerator[tuple[str, bytes | None]]:
    """Keys and values of flows and steps in `partitions` of `state`, older ones too; None is a
    tombstone."""
    if not partitions:
        return
    topic = Topics(settings.topic_prefix).state
    async with aclosing(read(settings, topic, partitions=partitions)) as records:
        async for record in records:
            key = (record.key or b"").decode("utf-8", "replace")
            if not key.startswith(CURSOR_PREFIX):
                yield key, record.value


async def _count(settings: Settings, topic: str) -> int:
    count = (await partition_counts(settings, [topic])).get(topic)
    if count is None:
        raise TopicsWrong(f"{topic} does not exist; `taskflow topics create` makes the topics.")
    return count
