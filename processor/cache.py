"""The flows that a partition keeps in memory: the ones used last, within a bound."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from processor.rows import FlowRow
from schemas.flow import Flow

RESTING_BYTES: Final = 600
"""What a flow takes beside its document: its key, its chain, its place in the cache (measured)."""


class _Resting(NamedTuple):
    """A row that nobody works on: its document alone, a tenth of what the flow takes as objects."""

    doc: bytes
    last_event_id: int
    chain: bytes
    number: int


class FlowCache:
    """Flow rows by id, the least recently used thrown out once they exceed `limit_bytes`.

    Only what the table holds may be put in: whatever is thrown out can be read again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.size_bytes = 0
        self._rows: OrderedDict[str, _Resting] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def find(self, flow_ids: Iterable[str]) -> dict[str, FlowRow]:
        """Those of `flow_ids` that are here; they count as just used."""
        found = {}
        for flow_id in flow_ids:
            row = self._rows.get(flow_id)
            if row is not None:
                self._rows.move_to_end(flow_id)
                found[flow_id] = FlowRow(Flow.model_validate_json(row.doc), *row)
        return found

    def put(self, rows: Mapping[str, FlowRow | None]) -> None:
        """Keep `rows`; None: the flow is gone."""
        for flow_id, row in rows.items():
            old = self._rows.pop(flow_id, None)
            if old is not None:
                self.size_bytes -= RESTING_BYTES + len(old.doc)
            if row is not None:
                self._rows[flow_id] = _Resting(row.doc, row.last_event_id, row.chain, row.number)
                self.size_bytes += RESTING_BYTES + len(row.doc)
        while self.size_bytes > self.limit_bytes and self._rows:
            _, oldest = self._rows.popitem(last=False)
            self.size_bytes -= RESTING_BYTES + len(oldest.doc)

    def clear(self) -> None:
        self._rows.clear()
        self.size_bytes = 0
