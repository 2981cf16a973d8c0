"""Cache a partition's flows and live steps that were used last, within a bound of bytes."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

from processor.engine.batch import SettledStep
from processor.engine.rows import FlowRow, StepRow

StepKey = tuple[str, str]
"""Flow id and run id."""
K = TypeVar("K", str, StepKey)

ROW_BYTES: Final = 2_500
"""What a flow or a step takes beside its document: objects, texts, its place here (measured)."""
EXPANSION: Final = 3
"""How much a document takes as bytes and as objects together, per byte (measured)."""


def weight_bytes(row: FlowRow | StepRow) -> int:
    """What keeping `row` costs."""
    return ROW_BYTES + EXPANSION * len(row.doc)


class FlowCache:
    """Flow rows by id, and rows of live steps by flow and run id; the least recently used are
    thrown out once they exceed `limit_bytes`.

    Only what the table holds may be put in: whatever is thrown out can be read again.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self.size_bytes = 0
        self._rows: OrderedDict[str | StepKey, Any] = OrderedDict()
        self._steps = 0

    @property
    def flows(self) -> int:
        """How many flows are here."""
        return len(self._rows) - self._steps

    def resize(self, limit_bytes: int) -> None:
        """Keep to `limit_bytes` from the next `put` on."""
        self._limit_bytes = limit_bytes

    def find(self, keys: Iterable[K]) -> dict[K, Any]:
        """The rows of those of `keys` that are here; they count as just used."""
        found = {}
        for key in keys:
            row = self._rows.get(key)
            if row is not None:
                self._rows.move_to_end(key)
                found[key] = row
        return found

    def put(self, rows: Mapping[K, FlowRow | StepRow | None]) -> None:
        """Keep `rows`; None: the flow is gone, or the step is not live."""
        known = self._rows
        for key, row in rows.items():
            old = known.get(key)
            if row is None:
                if old is not None:
                    self._drop(key)
                continue
            if old is None:
                self.size_bytes += weight_bytes(row)
                self._steps += isinstance(key, tuple)
            else:
                self.size_bytes += EXPANSION * (len(row.doc) - len(old.doc))
            known[key] = row
            known.move_to_end(key)
        while self.size_bytes > self._limit_bytes and known:
            self._drop(next(iter(known)))

    def put_steps(self, steps: Mapping[StepKey, SettledStep]) -> None:
        """Keep those of `steps` that are live, and so have a timer."""
        self.put({key: row if timer else None for key, (_, row, _, timer) in steps.items()})

    def clear(self) -> None:
        self._rows.clear()
        self.size_bytes = self._steps = 0

    def _drop(self, key: str | StepKey) -> None:
        self.size_bytes -= weight_bytes(self._rows.pop(key))
        self._steps -= isinstance(key, tuple)
