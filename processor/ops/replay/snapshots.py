"""Compare `state` with what the replayed events lead to."""

from collections.abc import Sequence
from typing import Final

import orjson

from processor.engine.batch import Outgoing, PartitionConfig, snapshot_of
from processor.ops.replay.differences import CHANGED, Difference, Findings, fields_of
from processor.ops.replay.recorded_history import RecordedSnapshot
from processor.ops.replay.store import Known, ReplayStore

STATE: Final = "(state)"
"""In place of a command's kind, which is not known."""


class Snapshots:
    """Of one partition."""

    def __init__(self, place: PartitionConfig, store: ReplayStore, findings: Findings) -> None:
        self._place = place
        self._store = store
        self._findings = findings
        self._differing: dict[bytes, Difference] = {}

    def compare(self, snapshots: Sequence[RecordedSnapshot]) -> None:
        """Some of them, in their order. Older and newer ones are passed over."""
        for key, value in snapshots:
            flow_id, _, run_id = key.decode().partition("/")
            known = self._store.known_flow(flow_id)
            if known is None:
                continue
            if run_id:
                self._compare_step(known, flow_id, run_id, key, value)
                continue
            now = snapshot_of(known.row)
            # Equal bytes need no look at which event they are of.
            if value == now or orjson.loads(value)["last_event_id"] == known.row.last_event_id:
                self._compare(flow_id, key, value, now)

    def _compare_step(
        self, known: Known, flow_id: str, run_id: str, key: bytes, value: bytes
    ) -> None:
        step = known.steps.get(run_id)
        if step is None:
            return
        now = b'{"step":%b}' % step.doc
        at = step.step.updated_at if value == now else orjson.loads(value)["step"]["updated_at"]
        if at == step.step.updated_at:
            self._compare(flow_id, key, value, now)
        elif at > step.step.updated_at:
            self._differing.pop(key, None)

    def _compare(self, flow_id: str, key: bytes, recorded: bytes, now: bytes) -> None:
        self._findings.records["snapshots"] += 1
        if recorded == now:
            self._differing.pop(key, None)
            return
        # A step may have changed twice in a millisecond: its last snapshot counts.
        topic, partition = self._place.topics.state, self._place.partition
        fields = fields_of(Outgoing(key, recorded, ()), Outgoing(key, now, ()))
        self._differing[key] = Difference(
            *(STATE, "snapshot", CHANGED, topic, partition, -1, flow_id, fields)
        )

    def end(self) -> None:
        """All were compared."""
        for found in self._differing.values():
            self._findings.add(found)
            self._findings.touched[STATE] += 1
