"""Load what must be known of a batch's flows and steps, from the cache and the table."""

import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from processor.engine.batch import Decoded, LoadedState, Needs, needs, step_needs
from processor.engine.codec import Readable
from processor.engine.flow_cache import FlowCache
from processor.engine.ports import Table
from processor.engine.rows import FlowRow, StepRow
from processor.errors import TableDistrusted

LOADED_MAX_BYTES: Final = 32 * 1024 * 1024
"""A batch ends early once the flows, or the steps, read for it take more than this."""
LOAD_FIRST: Final = 64
"""Rows read at first, to see how large they are."""
LIVE_STEP_BYTES: Final = 1_500
"""What a live step takes beside its input, as far as can be known before it is read."""
PRUNED_STEPS_MAX: Final = 20_000
"""A batch ends early once the flows that it prunes have more steps: each is a tombstone."""

Key = tuple[str, str]
"""Flow id and run id."""
Flows = Mapping[str, FlowRow | None]
K = TypeVar("K", str, Key)
R = TypeVar("R", FlowRow, StepRow)


async def load_state(
    items: Sequence[Decoded], cache: FlowCache, table: Table
) -> tuple[Sequence[Decoded], LoadedState]:
    """What is known of the flows and steps of `items`, and those items that it covers: fewer than
    all, but at least one, where what must be read for them together is too large.

    The table is asked for steps only where a command names one, or a flow that is about to end has
    some: flows without steps pay nothing for those of others.
    """
    needed = needs(items)
    known = cache.find(needed.flows)
    # In the order of the items, so that what is read covers the first of them.
    missing = [flow_id for flow_id in needed.flows if flow_id not in known]
    flows: dict[str, FlowRow | None] = known
    if missing:
        unread = await _load(missing, table.flows, flows)
        if unread:
            items = _until(items, lambda item: item.command.flow_id in unread)
            needed = needs(items)
        flows = {flow_id: flows.get(flow_id) for flow_id in needed.flows}
    memory = LoadedState(flows=flows)
    if needed.steps:
        keys, _ = step_needs(needed, flows)
        memory.steps = cache.find(keys)
        missing_keys = [key for key in keys if key not in memory.steps]
        if unread_keys := await _load(missing_keys, table.steps, memory.steps):

            def names_unread(item: Readable) -> bool:
                keys, _ = step_needs(needs([item]), flows)
                return not unread_keys.isdisjoint(keys)

            items = _until(items, names_unread)
            needed = needs(items)
    if needed.ending or needed.pruned:
        if too_many := _too_many(needed, flows):
            items = _until(items, lambda item: item.command.flow_id in too_many)
            needed = needs(items)
        _, live = step_needs(needed, flows)
        if live:
            memory.live = await table.live_steps(live)
            _check_live(memory, live)
    if needed.pruned:
        memory.run_ids = await table.run_ids(sorted(needed.pruned))
    if len(needed.flows) < len(flows):
        memory.flows = {flow_id: flows[flow_id] for flow_id in needed.flows}
    memory.ledger = await table.ledger_entries(needed.ledger)
    return items, memory


async def _load(
    keys: Sequence[K],
    read: Callable[[Sequence[K]], Awaitable[Mapping[K, R]]],
    into: dict[K, Any],
) -> frozenset[K]:
    """Read rows until they are too large together; the keys that were not read."""
    size_bytes = start = 0
    while start < len(keys) and size_bytes <= LOADED_MAX_BYTES:
        some = keys[start : start + _load_at_once(start, size_bytes)]
        rows = await read(some)
        size_bytes += sum(len(row.doc) for row in rows.values())
        into.update(rows)
        start += len(some)
    return frozenset(keys[start:])


def _load_at_once(count: int, size_bytes: int) -> int:
    """How many rows to read next, after `count` that take `size_bytes`: what should fit."""
    if not size_bytes:
        return LOAD_FIRST
    return max(LOAD_FIRST, (LOADED_MAX_BYTES - size_bytes) * count // size_bytes)


def _until(items: Sequence[Decoded], not_covered: Callable[[Readable], bool]) -> Sequence[Decoded]:
    """Those of `items` that come before the first one that is not covered, and one at least."""
    covered = itertools.takewhile(
        lambda item: not (isinstance(item, Readable) and not_covered(item)), items
    )
    return list(covered) or items[:1]


def _too_many(needed: Needs, flows: Flows) -> frozenset[str]:
    """Flows that end or are pruned, whose steps are too many together with those before them."""
    size_bytes = steps = 0
    left: set[str] = set()
    for flow_id in needed.flows:
        row = flows.get(flow_id)
        if row is None or not row.totals.steps:
            continue
        more_bytes = more_steps = 0
        if flow_id in needed.ending:
            more_bytes = row.totals.live * LIVE_STEP_BYTES + row.totals.live_bytes
        if flow_id in needed.pruned:
            more_steps = row.totals.steps
        over = (size_bytes and size_bytes + more_bytes > LOADED_MAX_BYTES) or (
            steps and steps + more_steps > PRUNED_STEPS_MAX
        )
        if over and (more_bytes or more_steps):
            left.add(flow_id)
        size_bytes += more_bytes
        steps += more_steps
    return frozenset(left)


def _check_live(memory: LoadedState, flow_ids: Iterable[str]) -> None:
    """No CRC covers which steps are live: the flow's totals, which one covers, must say the same.
    Raises TableDistrusted."""
    for flow_id in flow_ids:
        row = memory.flows[flow_id]
        expected = 0 if row is None else row.totals.live
        if (there := len(memory.live.get(flow_id, ()))) != expected:
            raise TableDistrusted(
                f"the table has {there} live steps of flow {flow_id}, which has {expected}; it is "
                "restored"
            )
