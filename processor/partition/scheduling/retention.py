"""Prune flows that ended long ago, some at a time, by commands on `control`; the audit stays."""

from collections.abc import Iterable, Mapping
from typing import Final

from processor.contract.commands import Prune
from processor.contract.values import parse_timestamp
from processor.domain.transitions import TERMINAL
from processor.engine.batch import Outgoing
from processor.engine.encoding import encode
from processor.engine.ports import Table
from processor.engine.rows import Deadline, FlowRow

ACTOR: Final = "taskflow:retention"
STEP_MAX: Final = 100
"""Prunes in one transaction; the next ones follow when these are decided."""
LOOK_EVERY_S: Final = 60.0
"""How long to leave the table alone after nothing more was found in it; less where flows are kept
for less."""
LOOK_MIN_S: Final = 1.0


class Retention:
    """What one partition lets go of, from a takeover to the next.

    `retain_ms` is how long a terminal flow is kept after its last change, by the broker's clock;
    None: for ever.
    """

    def __init__(self, retain_ms: int | None) -> None:
        self._retain_ms = retain_ms
        self._look_every_s = min(LOOK_EVERY_S, max(LOOK_MIN_S, (retain_ms or 0) / 1000))
        self._undecided: dict[str, str] = {}
        self._after: Deadline | None = None
        self._look_s = 0.0

    @property
    def on(self) -> bool:
        return self._retain_ms is not None

    async def take(self, table: Table, now_ms: int, at_s: float) -> list[str]:
        """Flows to prune now, the longest ended first. `at_s` is our monotonic clock."""
        if self._retain_ms is None or self._undecided or at_s < self._look_s:
            return []
        before_ms = max(0, now_ms - self._retain_ms)
        found = await table.ended(self._after, before_ms, STEP_MAX)
        if len(found) < STEP_MAX:
            # From the beginning again: what was refused is tried again.
            self._after = None
            self._look_s = at_s + self._look_every_s
        else:
            self._after = found[-1]
        # A prune is not refused for coming early: the flow itself must say that it ended then.
        rows = await table.flows([ended.flow_id for ended in found])
        return [flow_id for flow_id, row in rows.items() if has_ended(row, before_ms)]

    def written(self, prunes: Mapping[str, str], decided: Iterable[Prune]) -> None:
        """A batch is written: `prunes` (command id by flow id) were sent with it, and `decided`
        are those that it returned."""
        self._undecided.update(prunes)
        for prune in decided:
            if self._undecided.get(prune.flow_id) == prune.command_id:
                del self._undecided[prune.flow_id]


def has_ended(row: FlowRow, before_ms: int) -> bool:
    """Whether the last change of a flow's was its end, and was before that."""
    flow = row.flow
    return flow.status in TERMINAL and parse_timestamp(flow.updated_at) < before_ms


def prune_record(flow_id: str, command_id: str) -> Outgoing:
    """The command that removes a flow."""
    prune = {"kind": "prune", "command_id": command_id, "flow_id": flow_id, "issued_by": ACTOR}
    return Outgoing(flow_id.encode(), encode(prune), ())
