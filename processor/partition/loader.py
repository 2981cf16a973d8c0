"""Load the flows of a batch from the cache and the table."""

import itertools
from collections.abc import Sequence
from typing import Final

from processor.engine.batch import Decoded, LoadedState, needs
from processor.engine.codec import Readable
from processor.engine.flow_cache import FlowCache
from processor.engine.ports import Table

LOADED_MAX_BYTES: Final = 32 * 1024 * 1024
"""A batch ends early once the flows read for it take more than this."""
LOAD_FIRST: Final = 64
"""Flows read at first, to see how large they are."""


async def recall(
    items: Sequence[Decoded], cache: FlowCache, table: Table
) -> tuple[Sequence[Decoded], LoadedState]:
    """What is known of the flows of `items`, and those items that it covers: fewer than all
    where their flows together are too large."""
    needed = needs(items)
    flows = cache.find(needed.flows)
    # In the order of the items, so that what is read covers the first of them.
    missing = [flow_id for flow_id in needed.flows if flow_id not in flows]
    size_bytes = start = 0
    while start < len(missing):
        if size_bytes > LOADED_MAX_BYTES:
            items = _until(items, frozenset(missing[start:]))
            needed = needs(items)
            break
        some = missing[start : start + _load_at_once(start, size_bytes)]
        loaded = await table.flows(some)
        size_bytes += sum(len(row.doc) for row in loaded.values())
        flows |= loaded
        start += len(some)
    memory = LoadedState(flows={flow_id: flows.get(flow_id) for flow_id in needed.flows})
    memory.ledger = await table.recall(needed.ledger)
    if needed.steps:
        memory.steps = await table.steps(list(needed.steps))
    if needed.pruned:
        memory.run_ids = await table.run_ids(sorted(needed.pruned))
    return items, memory


def _load_at_once(count: int, size_bytes: int) -> int:
    """How many flows to read next, after `count` that take `size_bytes`: what should fit."""
    if not size_bytes:
        return LOAD_FIRST
    return max(LOAD_FIRST, (LOADED_MAX_BYTES - size_bytes) * count // size_bytes)


def _until(items: Sequence[Decoded], unknown: frozenset[str]) -> Sequence[Decoded]:
    """Those of `items` that come before the first command of an unknown flow."""
    return list(
        itertools.takewhile(
            lambda item: not (isinstance(item, Readable) and item.command.flow_id in unknown),
            items,
        )
    )
