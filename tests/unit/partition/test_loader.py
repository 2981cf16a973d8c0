"""What is loaded for a batch: no more than its commands need, and no more than memory holds."""

from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from processor.contract.flow import FlowStatus
from processor.domain.steps import StepTotals
from processor.engine.batch import Decoded
from processor.engine.codec import Draft, decode
from processor.engine.flow_cache import FlowCache
from processor.engine.rows import FlowRow, StepRow
from processor.errors import TableDistrusted
from processor.partition import loader
from processor.partition.loader import load_state
from tests.unit.adapters.sqlite.tables import flow_row, managed_row, uuid
from tests.unit.commands import create, finish, observe, prune, schedule, step

LARGE = "x" * 60_000


class Table:
    """A table that counts what it is asked for."""

    def __init__(self, flows: Sequence[FlowRow], steps: Sequence[StepRow] = ()) -> None:
        self.asked: list[str] = []
        self._flows = {row.flow.id: row for row in flows}
        self._steps = {(row.step.flow_id, row.step.run_id): row for row in steps}

    async def flows(self, ids: Sequence[str]) -> dict[str, FlowRow]:
        self.asked.append("flows")
        return {one: self._flows[one] for one in ids if one in self._flows}

    async def steps(self, keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], StepRow]:
        self.asked.append("steps")
        return {key: self._steps[key] for key in keys if key in self._steps}

    async def live_steps(self, ids: Sequence[str]) -> dict[str, list[StepRow]]:
        self.asked.append("live")
        return {one: [row for at, row in self._steps.items() if at[0] == one] for one in ids}

    async def run_ids(self, ids: Sequence[str]) -> dict[str, list[str]]:
        self.asked.append("run_ids")
        return {one: [run for flow, run in self._steps if flow == one] for one in ids}

    async def ledger_entries(self, keys: Sequence[bytes]) -> dict[bytes, Any]:
        return {}


def items(*bodies: dict[str, Any]) -> list[Decoded]:
    return [decode(Draft(one["flow_id"].encode(), orjson.dumps(one))) for one in bodies]


def about(number: int, body: dict[str, Any]) -> dict[str, Any]:
    """The command for the flow that the table knows by this number."""
    return {**body, "flow_id": uuid(number)}


def waiting_for(number: int, *run_ids: str) -> FlowRow:
    wait = {"kind": "steps", "run_ids": list(run_ids)}
    return flow_row(number, status=FlowStatus.WAITING, wait_json=wait)


async def loaded(table: Any, *bodies: dict[str, Any]) -> tuple[int, Any]:
    some, memory = await load_state(items(*bodies), FlowCache(1 << 20), table)
    return len(some), memory


async def test_flows_without_steps_are_asked_for_none() -> None:
    table = Table([flow_row(1), flow_row(2)])
    bodies = [about(1, finish(1)), about(2, prune(2)), about(3, create(3))]
    count, _ = await loaded(table, *bodies[:1], *bodies[2:])
    assert (count, table.asked) == (2, ["flows"])


async def test_a_flow_that_ends_brings_its_live_steps() -> None:
    steps = [managed_row(1, run) for run in "ab"]
    table = Table([flow_row(1)._replace(totals=StepTotals(2, 2, 8, 0))], steps)
    _, memory = await loaded(table, about(1, finish(1)))
    assert memory.live == {uuid(1): steps}
    assert table.asked == ["flows", "live"]


async def test_a_table_that_lost_a_live_step_is_not_believed() -> None:
    table = Table([flow_row(1)._replace(totals=StepTotals(2, 2, 8, 0))], [managed_row(1, "a")])
    with pytest.raises(TableDistrusted, match="1 live steps"):
        await loaded(table, about(1, finish(1)))


async def test_what_a_join_lists_comes_with_each_command_of_its_steps() -> None:
    steps = [managed_row(1, run) for run in "abc"]
    table = Table([waiting_for(1, "a", "b")], steps)
    _, memory = await loaded(table, about(1, step("complete_step", 1, "c", attempt=1)))
    assert set(memory.steps) == {(uuid(1), run) for run in "abc"}


async def test_large_steps_end_a_batch_early_and_never_before_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "LOADED_MAX_BYTES", 1_000_000)
    monkeypatch.setattr(loader, "LOAD_FIRST", 4)
    steps = [managed_row(1, f"r{n}", input_json=LARGE) for n in range(100)]
    table = Table([flow_row(1)], steps)
    bodies = [about(1, step("start_step", 1, f"r{n}")) for n in range(100)]
    count, memory = await loaded(table, *bodies)
    assert 16 <= count <= 24
    assert set(memory.steps) >= {(uuid(1), f"r{n}") for n in range(count)}
    monkeypatch.setattr(loader, "LOADED_MAX_BYTES", 1)
    monkeypatch.setattr(loader, "LOAD_FIRST", 1)
    assert (await loaded(table, *bodies))[0] == 1


async def test_flows_whose_ends_are_too_large_together_end_in_several_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "LOADED_MAX_BYTES", 1_000_000)
    rows = [flow_row(n)._replace(totals=StepTotals(1, 1, 400_000, 0)) for n in range(1, 9)]
    table = Table(rows, [managed_row(n, "a") for n in range(1, 9)])
    count, memory = await loaded(table, *(about(n, finish(n)) for n in range(1, 9)))
    assert (count, len(memory.live)) == (2, 2)


async def test_flows_with_too_many_steps_are_pruned_in_several_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "PRUNED_STEPS_MAX", 20)
    rows = [flow_row(n)._replace(totals=StepTotals(15, 0, 0, 0)) for n in range(1, 4)]
    table = Table(rows)
    count, memory = await loaded(table, *(about(n, prune(n)) for n in range(1, 4)))
    assert (count, len(memory.run_ids)) == (1, 1)


async def test_a_step_that_is_only_named_is_read_once() -> None:
    table = Table([flow_row(1)], [managed_row(1, "r")])
    bodies = [about(1, schedule(1, "r")), about(1, observe(1, "r"))]
    _, memory = await loaded(table, *bodies)
    assert set(memory.steps) == {(uuid(1), "r")}
    assert table.asked == ["flows", "steps"]


async def test_a_live_step_that_is_cached_is_not_read() -> None:
    row, other = managed_row(1, "r"), managed_row(1, "other")
    table, cache = Table([flow_row(1)], [row, other]), FlowCache(1 << 20)
    cache.put({(uuid(1), "r"): row})
    bodies = items(about(1, step("start_step", 1, "r")))
    _, memory = await load_state(bodies, cache, table)  # type: ignore[arg-type]
    assert memory.steps == {(uuid(1), "r"): row}
    assert table.asked == ["flows"]
    bodies += items(about(1, step("start_step", 1, "other")))
    _, memory = await load_state(bodies, cache, table)  # type: ignore[arg-type]
    assert memory.steps == {(uuid(1), "r"): row, (uuid(1), "other"): other}
