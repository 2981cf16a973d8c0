"""Compare the wakes that this code sends with the recorded ones."""

from collections.abc import Callable, Iterable, Sequence

from processor.domain.flow import Flow
from processor.domain.waits import AT_ONCE_MS, due_ms
from processor.engine.batch import Decoded
from processor.engine.codec import Readable, Record
from processor.ops.replay.differences import ADDED, MISSING, Findings
from processor.ops.replay.store import ReplayStore
from processor.partition.scheduling.timers import ACTOR

Differs = Callable[[Record, str, str], None]
"""Called with a record, whether its wake is added or missing, and the flow."""


class Wakes:
    """Of one partition. A transaction sends a wake for each flow that it asks to cancel and that
    still waits when it ends; the wake comes with a later one."""

    def __init__(self, store: ReplayStore, findings: Findings, differs: Differs) -> None:
        self._store = store
        self._findings = findings
        self._differs = differs
        self._asked: dict[str, Record] = {}
        """Flows whose wake did not come yet, with the request."""
        self._excused: set[str] = set()
        """Flows whose wake need not have been sent: of before, or after a difference."""

    def excuse_all(self) -> None:
        """Take for sent what was asked for before the history begins."""
        self._excused = {
            known.row.flow.id for known in self._store.known() if _is_to_be_woken(known.row.flow)
        }

    def excuse(self, flow_id: str) -> None:
        self._excused.add(flow_id)

    def observe(self, record: Record, item: Decoded) -> None:
        """A record of `control`: a wake, perhaps."""
        if not isinstance(item, Readable):
            return
        command = item.command
        if command.kind != "wake" or command.issued_by != ACTOR:
            return
        flow_id = command.flow_id
        if self._asked.pop(flow_id, None) is not None:
            self._findings.records["wakes"] += 1
        elif self._is_waited_for(flow_id) and flow_id not in self._excused:
            self._differs(record, MISSING, flow_id)

    def ask(self, flow_ids: Iterable[str], items: Sequence[Decoded]) -> None:
        """The code at hand asks these to cancel, by one of `items`."""
        for flow_id in flow_ids:
            if self._is_waited_for(flow_id):
                self._asked[flow_id] = next(
                    item.record
                    for item in items
                    if isinstance(item, Readable) and item.command.flow_id == flow_id
                )

    def asked(self) -> frozenset[str]:
        return frozenset(self._asked)

    def settle(self, before: frozenset[str]) -> None:
        """A transaction ends, before which these were asked."""
        for flow_id in self._asked.keys() - before:
            if not self._is_waited_for(flow_id):
                del self._asked[flow_id]

    def passed(self) -> None:
        """A transaction was compared."""
        if self._excused:
            self._excused = {one for one in self._excused if self._is_waited_for(one)}

    def end(self, waking: Sequence[str]) -> None:
        """`waking`: flows for which a wake stands behind the last command."""
        for flow_id, request in self._asked.items():
            if flow_id in waking:
                self._findings.records["wakes"] += 1
            else:
                self._differs(request, ADDED, flow_id)

    def _is_waited_for(self, flow_id: str) -> bool:
        row = self._store.flow(flow_id)
        return row is not None and _is_to_be_woken(row.flow)


def _is_to_be_woken(flow: Flow) -> bool:
    """Whether it waits and is to be cancelled."""
    return due_ms(flow) == AT_ONCE_MS
