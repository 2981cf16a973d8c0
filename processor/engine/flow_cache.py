"""Cache a partition's least recently used flows within a bound of bytes."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final

from processor.engine.rows import FlowRow

ROW_BYTES: Final = 2_500
"""What a flow takes beside its state: objects, texts, its place in the cache (measured)."""
EXPANSION: Final = 3
"""How much a document takes as bytes and as objects together, per byte (measured)."""


def weight_bytes(row: FlowRow) -> int:
    """What keeping `row` costs."""
    return ROW_BYTES + EXPANSION * len(row.doc)


def _grown(old: FlowRow, row: FlowRow) -> int:
    """How much more `row` weighs than `old`."""
    return EXPANSION * (len(row.doc) - len(old.doc))


class FlowCache:
    """Flow rows by id, the least recently used thrown out once they exceed `limit_bytes`.

    Only what the table holds may be put in: whatever is thrown out can be read again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.size_bytes = 0
        self._rows: OrderedDict[str, FlowRow] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def resize(self, limit_bytes: int) -> None:
        """Keep to `limit_bytes` from the next `put` on."""
        self._limit_bytes = limit_bytes

    def find(self, flow_ids: Iterable[str]) -> dict[str, FlowRow]:
        """Those of `flow_ids` that are here; they count as just used."""
        found = {}
        for flow_id in flow_ids:
            row = self._rows.get(flow_id)
            if row is not None:
                self._rows.move_to_end(flow_id)
                found[flow_id] = row
        return found

    def put(self, rows: Mapping[str, FlowRow | None]) -> None:
        """Keep `rows`; None: the flow is gone."""
        known = self._rows
        for flow_id, row in rows.items():
            old = known.get(flow_id)
            if row is None:
                if old is not None:
                    self.size_bytes -= weight_bytes(known.pop(flow_id))
                continue
            self.size_bytes += weight_bytes(row) if old is None else _grown(old, row)
            known[flow_id] = row
            known.move_to_end(flow_id)
        while self.size_bytes > self._limit_bytes and known:
            _, oldest = known.popitem(last=False)
            self.size_bytes -= weight_bytes(oldest)

    def clear(self) -> None:
        self._rows.clear()
        self.size_bytes = 0
