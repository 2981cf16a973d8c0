"""What a partition keeps in memory, and what that weighs."""

from processor.engine.flow_cache import FlowCache, weight_bytes
from processor.engine.rows import FlowRow, StepRow
from tests.unit.adapters.sqlite.tables import flow_row, managed_row, uuid

FLOWS: dict[str, FlowRow | None] = {
    uuid(row_number): flow_row(row_number) for row_number in range(3)
}
STEPS: dict[tuple[str, str], StepRow | None] = {
    (uuid(0), run_id): managed_row(0, run_id) for run_id in "ab"
}


def test_flows_and_steps_share_one_bound() -> None:
    rows = [row for row in (*FLOWS.values(), *STEPS.values()) if row is not None]
    limit_bytes = sum(map(weight_bytes, rows))
    cache = FlowCache(limit_bytes)
    cache.put(FLOWS)
    cache.put(STEPS)
    assert (cache.flows, cache.size_bytes) == (3, limit_bytes)
    cache.find([uuid(0)])
    cache.put({(uuid(0), "c"): managed_row(0, "c")})
    assert not cache.find([uuid(1)]), "the one that was used longest ago is thrown out"
    assert cache.find([uuid(0)])
    assert cache.find([*STEPS, (uuid(0), "c")]).keys() == {*STEPS, (uuid(0), "c")}
    assert cache.size_bytes <= limit_bytes


def test_what_is_gone_weighs_nothing() -> None:
    cache = FlowCache(1 << 20)
    cache.put(FLOWS)
    cache.put(STEPS)
    cache.put(dict.fromkeys(STEPS))
    assert not cache.find(STEPS)
    cache.put(dict.fromkeys(FLOWS))
    assert (cache.flows, cache.size_bytes) == (0, 0)
