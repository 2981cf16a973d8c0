"""Flows are read from a table exactly where it is level with the audit topic."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable
from processor.adapters.sqlite import open_table, table_path
from processor.cli.common.runner import Refused, WrongUse
from processor.cli.flow import flow_ids
from processor.cli.flow import lookup as flows
from processor.cli.flow.flow_ids import ids_with_prefix
from processor.contract.flow import FlowStatus
from processor.contract.values import instant
from processor.engine.partitioner import partition_of
from processor.engine.rows import Changes, Checkpoint, FlowRow, Position
from processor.ops.conditions import parse_condition
from processor.settings import Settings
from tests.unit.adapters.sqlite.tables import NOON_MS, flow_row, later, uuid

PARTITIONS = 2
TABLE_AUDIT = 4  # the next offset that the tables have not seen


@dataclass
class Topics:
    """The topics as a broker would show them: the ends of audit, the snapshots on state."""

    ends: Mapping[int, int]
    state: list[tuple[int, str, bytes | None]] = field(default_factory=list)
    away: Exception | None = None
    read: list[int] = field(default_factory=list)

    async def reachable(self, *_: Any, **__: Any) -> None:
        if self.away is not None:
            raise self.away

    async def counts(self, _: Settings, __: Sequence[str]) -> dict[str, int]:
        await self.reachable()
        return {f"taskflow.{name}": PARTITIONS for name in ("audit", "state")}

    async def ends_of(self, _: Settings, __: str, partitions: Sequence[int]) -> dict[int, int]:
        return {partition: self.ends[partition] for partition in partitions}

    async def records(
        self, _: Settings, __: str, *, partitions: Sequence[int]
    ) -> AsyncIterator[SimpleNamespace]:
        self.read += partitions
        for partition, key, value in self.state:
            if partition in partitions:
                yield SimpleNamespace(key=key.encode(), value=value)


@pytest.fixture
def topics(monkeypatch: pytest.MonkeyPatch) -> Topics:
    topics = Topics({0: TABLE_AUDIT + 1, 1: TABLE_AUDIT + 1})
    monkeypatch.setattr(flows, "ensure_reachable", topics.reachable)
    monkeypatch.setattr(flows, "partition_counts", topics.counts)
    monkeypatch.setattr(flows, "end_offsets", topics.ends_of)
    monkeypatch.setattr(flows, "read", topics.records)
    return topics


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(state_dir=tmp_path)


async def given_table(settings: Settings, partition: int, *rows: FlowRow, of: int = 2) -> None:
    path = table_path(settings.state_dir, "taskflow", partition)
    checkpoint = Checkpoint(Position(1, 1, 1), TABLE_AUDIT, 1, 1)
    async with open_table(path, partition=partition, prefix="taskflow", partitions=of) as table:
        await table.write(Changes(inserted=list(rows)), before=None, after=checkpoint)


def snapshot(row: FlowRow) -> bytes:
    entry = {"flow": orjson.loads(row.doc), "last_event_id": 1, "chain": "00"}
    return orjson.dumps(entry)


def flow_on(partition: int, *, start: int = 1, **values: Any) -> FlowRow:
    numbers = range(start, start + 100)
    number = next(n for n in numbers if partition_of(uuid(n).encode(), PARTITIONS) == partition)
    return flow_row(number, **values)


def waiting_on(partition: int, start: int, wait: dict[str, Any], **values: Any) -> FlowRow:
    waiting = FlowStatus.WAITING
    return flow_on(partition, start=start, status=waiting, wait_json=wait, **values)


def timer(left_ms: int) -> dict[str, Any]:
    return {"kind": "timer", "at": instant(NOON_MS + left_ms)}


async def listed(settings: Settings) -> list[str]:
    found = await flows.list_flows(settings, owner=None, status=None, limit=9)
    return [flow.id for flow in found]


@pytest.mark.parametrize("end", [TABLE_AUDIT, TABLE_AUDIT + 1])
async def test_a_table_that_is_level_with_audit_is_read_and_the_topic_is_not(
    settings: Settings, topics: Topics, end: int
) -> None:
    here, there = flow_on(0), flow_on(1)
    await given_table(settings, 0, here)
    topics.ends = {0: end, 1: 9}
    topics.state = [(1, "cursor/1", b"{}"), (1, there.flow.id, snapshot(there))]

    assert await listed(settings) == sorted([here.flow.id, there.flow.id])
    assert topics.read == [1]


@pytest.mark.parametrize("end", [TABLE_AUDIT - 1, TABLE_AUDIT + 2])
async def test_a_table_that_is_not_level_is_not_believed(
    settings: Settings, topics: Topics, end: int
) -> None:
    old, new = flow_on(0), flow_on(0, start=50)
    await given_table(settings, 0, old)
    topics.ends = {0: end, 1: 0}
    topics.state = [
        (0, old.flow.id, snapshot(old)),
        (0, new.flow.id, snapshot(new)),
        (0, old.flow.id, None),
    ]

    assert await listed(settings) == [new.flow.id]
    assert await flows.find_flow(settings, old.flow.id) is None
    assert topics.read == [0, 1, 0]


MANUAL = {"kind": "manual"}


async def test_waiting_flows_come_by_their_end_from_tables_and_topic_alike(
    settings: Settings, topics: Topics
) -> None:
    first = waiting_on(1, 1, MANUAL, cancel_requested=True)
    second = waiting_on(0, 100, timer(1000))
    third = waiting_on(1, 200, {**MANUAL, "timeout_at": instant(NOON_MS + 2000)})
    fourth = waiting_on(0, 300, timer(3000), owner_session_key="other")
    never, never_there = waiting_on(0, 400, MANUAL), waiting_on(1, 500, MANUAL)
    no_more = waiting_on(1, 600, timer(1))
    await given_table(settings, 0, flow_on(0, start=700), never, fourth, second)
    topics.ends = {0: TABLE_AUDIT, 1: 9}
    topics.state = [
        (1, row.flow.id, snapshot(row))
        for row in (flow_on(1, start=700), no_more, never_there, third, first, later(no_more))
    ]
    topics.state.append((1, f"{first.flow.id}/run-1", orjson.dumps({"step": {}})))

    async def ids(**wanted: Any) -> list[str]:
        found = await flows.list_waiting(settings, **{"owner": None, "limit": 9, **wanted})
        return [flow.id for flow in found]

    in_order = [row.flow.id for row in (first, second, third, fourth, never, never_there)]
    assert await ids() == in_order
    assert await ids(limit=3) == in_order[:3]
    assert await ids(owner="other") == [fourth.flow.id]
    assert topics.read == [1, 1, 1]


async def test_ended_flows_come_by_their_last_change_from_tables_and_topic_alike(
    settings: Settings, topics: Topics
) -> None:
    def ended_on(partition: int, start: int, age: int, **values: Any) -> FlowRow:
        about = {"status": FlowStatus.FINISHED, "updated_at": instant(NOON_MS - age), **values}
        return flow_on(partition, start=start, **about)

    first = ended_on(1, 1, 4, status=FlowStatus.CANCELLED)
    second = ended_on(0, 100, 3, status=FlowStatus.FAILED)
    third = ended_on(1, 200, 2, owner_session_key="other")
    fourth = ended_on(0, 300, 1, owner_session_key="other")
    live = {"status": FlowStatus.RUNNING}
    pruned = ended_on(1, 400, 9)
    here = (ended_on(0, 500, 0), ended_on(0, 600, 9, **live), fourth, second)
    there = (ended_on(1, 500, 0), ended_on(1, 600, 9, **live), third, first, pruned)
    await given_table(settings, 0, *here)
    topics.ends = {0: TABLE_AUDIT, 1: 9}
    topics.state = [(1, row.flow.id, snapshot(row)) for row in there]
    topics.state.append((1, pruned.flow.id, None))

    found = await flows.list_ended(settings, owner=None, before_ms=NOON_MS)
    others = await flows.list_ended(settings, owner="other", before_ms=NOON_MS)

    assert found == [
        (
            *(row.flow.id, row.flow.status, row.flow.updated_at, row.flow.revision),
            *(row.flow.owner_session_key, row.flow.goal),
        )
        for row in (first, second, third, fourth)
    ]
    assert others == found[2:]


async def test_ids_are_found_by_their_beginning_in_tables_and_topic_alike(
    settings: Settings, topics: Topics
) -> None:
    here, there, gone = flow_on(0), flow_on(1), flow_on(1, start=300)
    await given_table(settings, 0, here)
    topics.ends = {0: TABLE_AUDIT, 1: 9}
    topics.state = [(1, row.flow.id, snapshot(row)) for row in (there, gone)]
    topics.state += [(1, gone.flow.id, None), (1, f"{there.flow.id}/run-1", b"{}")]

    alike = sorted([here.flow.id, there.flow.id])
    assert await ids_with_prefix(settings, here.flow.id[:8]) == alike
    assert await ids_with_prefix(settings, here.flow.id[:35]) == [
        flow_id for flow_id in alike if flow_id[:35] == here.flow.id[:35]
    ]
    assert await ids_with_prefix(settings, "ffff") == []


async def test_without_tables_views_are_asked_and_the_topic_is_read_no_further_than_it_is_long(
    settings: Settings, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def known(_: Settings, prefix: str, limit: int) -> list[str] | None:
        asked.append(prefix)
        return [uuid(1)] if prefix == uuid(1)[:8] else None

    monkeypatch.setattr(flow_ids, "shown_ids", known)
    monkeypatch.setattr(flow_ids, "RECORDS_MAX", 2)
    rows = [flow_on(1, start=n) for n in (0, 100, 200)]
    topics.ends = {0: 0, 1: 9}
    topics.state = [(1, row.flow.id, snapshot(row)) for row in rows]

    assert await ids_with_prefix(settings, uuid(1)[:8]) == [uuid(1)]
    assert topics.read == []
    with pytest.raises(Refused, match=r"more than 2 records, .* Type the full id, or start"):
        await ids_with_prefix(settings, "ffffffff")
    topics.state.pop()
    assert await ids_with_prefix(settings, "ffffffff") == []
    assert asked == [uuid(1)[:8], "ffffffff", "ffffffff"]


def test_a_beginning_that_several_ids_have_is_refused_with_these(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def several(_: Settings, prefix: str) -> list[str]:
        return [uuid(n) for n in range(7) if uuid(n).startswith(prefix)]

    monkeypatch.setattr(flow_ids, "ids_with_prefix", several)
    with pytest.raises(WrongUse, match=f"7 flows' ids begin with .*: {uuid(0)}, .* …$"):
        flow_ids.flow_id_at(settings, uuid(0)[:8])
    assert flow_ids.flow_id_at(settings, uuid(9).upper()) == uuid(9)
    for text in ("abc", "6f1f3a52x", "6f1f3a520", "", "me"):
        with pytest.raises(WrongUse, match="is no flow id"):
            flow_ids.flow_id_at(settings, text)


async def test_a_table_of_another_number_of_partitions_is_not_believed(
    settings: Settings, topics: Topics
) -> None:
    await given_table(settings, 0, flow_on(0), of=3)
    assert await listed(settings) == []
    assert topics.read == [0, 1]


async def test_what_is_no_table_is_not_believed(settings: Settings, topics: Topics) -> None:
    table_path(settings.state_dir, "taskflow", 0).write_bytes(b"no table")
    assert await listed(settings) == []
    assert topics.read == [0, 1]


async def test_a_flow_is_looked_for_in_its_own_partition_only(
    settings: Settings, topics: Topics
) -> None:
    here, there = flow_on(0), flow_on(1)
    await given_table(settings, 0, here)
    topics.state = [(1, there.flow.id, snapshot(there))]

    found = await flows.find_flow(settings, here.flow.id)
    assert found is not None
    assert found.flow["id"] == here.flow.id
    assert topics.read == []
    found = await flows.find_flow(settings, there.flow.id)
    assert found is not None
    assert found.flow["id"] == there.flow.id
    assert topics.read == [1]


async def test_without_a_broker_the_tables_are_shown_and_it_is_said(
    settings: Settings, topics: Topics, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = flow_on(0), flow_on(1)
    await given_table(settings, 0, here)
    topics.away = BrokerUnreachable("Nobody answers.")

    assert await listed(settings) == [here.flow.id]
    output = capsys.readouterr().err
    assert output == (
        f"Nobody answers. Shown are the tables in {settings.state_dir}, as new as their worker "
        "left them; 1 of 2 partitions have none there.\n"
    )
    assert await flows.find_flow(settings, here.flow.id) is not None
    with pytest.raises(BrokerUnreachable):  # its table is elsewhere, so nobody knows
        await flows.find_flow(settings, there.flow.id)


async def test_without_a_broker_and_without_a_table_there_is_no_answer(
    settings: Settings, topics: Topics
) -> None:
    topics.away = BrokerUnreachable("Nobody answers.")
    with pytest.raises(BrokerUnreachable):
        await listed(settings)


async def test_a_broker_that_does_not_let_us_in_is_no_absent_one(
    settings: Settings, topics: Topics
) -> None:
    await given_table(settings, 0, flow_on(0))
    topics.away = AccessDenied("You are not wanted.")
    with pytest.raises(AccessDenied):
        await listed(settings)


async def test_a_condition_is_held_against_tables_and_topic(
    settings: Settings, topics: Topics
) -> None:
    topics.ends = {0: TABLE_AUDIT, 1: TABLE_AUDIT + 9}
    here, there = flow_on(0, state_json={"n": 7}), flow_on(1, state_json={"n": 8})
    await given_table(settings, 0, here, flow_on(0, start=20))
    topics.state = [(1, there.flow.id, snapshot(there))]

    async def found(condition: str, **about: Any) -> list[str]:
        where = [parse_condition(condition)]
        usual = {"owner": None, "status": None, "limit": 9}
        return [f.id for f in await flows.list_flows(settings, where=where, **{**usual, **about})]

    both = {here.flow.id, there.flow.id}
    assert set(await found("state.n >= 7")) == both
    assert len(await found("state.n >= 7", limit=1)) == 1
    assert await found("state.n >= 7", owner="nobody") == []
    assert await found(f"id ~ '{there.flow.id}'") == [there.flow.id]
    waiting = await flows.list_waiting(
        settings, owner=None, where=[parse_condition("state.n = 7")], limit=9
    )
    assert waiting == []
