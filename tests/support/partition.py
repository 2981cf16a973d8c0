"""One partition without a broker: records in, and what they cause kept as the topics keep it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from processor.contract import EVENTS, Outcome, Topics, WorkItem
from processor.domain.step import read_step
from processor.domain.steps import is_live
from processor.engine.batch import (
    LoadedState,
    PartitionConfig,
    WriteSet,
    first_event_id,
    needs,
    step_needs,
)
from processor.engine.codec import decode
from processor.engine.command_handler import CommandHandler
from processor.engine.rows import FlowRow, LedgerEntry, Position, StepRow
from processor.testing.memory.record import Appended
from tests.support.builders import HOUR_MS

PLACE = PartitionConfig(partition=0, partitions=1, topics=Topics(), dedupe_window_ms=HOUR_MS)
"""The only partition there is: every flow lies right."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A command that somebody sends to the topic `name`."""

    name: str
    at_ms: int
    command: dict[str, Any]


class Decided(NamedTuple):
    """The outcome of a command, the FlowEvents that it caused, and the work items."""

    outcome: Any
    events: list[Any]
    work: list[Any]


@dataclass(slots=True)
class Partition:
    """Keeps between batches what a partition's table keeps."""

    place: PartitionConfig = PLACE
    position: Position = field(default_factory=lambda: Position(0, 0, first_event_id(0)))
    flows: dict[str, FlowRow] = field(default_factory=dict)
    steps: dict[tuple[str, str], StepRow] = field(default_factory=dict)
    ledger: dict[bytes, LedgerEntry] = field(default_factory=dict)

    def send(self, *batch: Sent) -> list[Decided]:
        """What each command caused, as JSON."""
        offsets = {"commands": self.position.commands, "control": self.position.control}
        records = []
        for sent in batch:
            records.append(
                Appended(
                    f"{self.place.topics.prefix}.{sent.name}",
                    self.place.partition,
                    offsets[sent.name],
                    sent.at_ms,
                    sent.command["flow_id"].encode(),
                    json.dumps(sent.command, ensure_ascii=False).encode(),
                )
            )
            offsets[sent.name] += 1
        written = self.handle(records)
        assert written.faults == []
        outcomes = [json.loads(record.value or b"") for record in written.outcomes]
        events = [json.loads(record.value or b"") for record in written.audit]
        work = [json.loads(item.record.value or b"") for item in written.work]
        all_decided = []
        for outcome in outcomes:
            caused = [event for event in events if event["source"] == outcome["source"]]
            ids = {event["id"] for event in caused}
            offered = [item for item in work if item["event_id"] in ids]
            all_decided.append(Decided(outcome, caused, offered))
        return all_decided

    def handle(self, records: Sequence[Appended]) -> WriteSet:
        """One batch of records; what it writes can be read by the published models."""
        items = [decode(record) for record in records]
        wanted = needs(items)
        steps, live = step_needs(wanted, self.flows)
        memory = LoadedState(
            flows={flow_id: self.flows.get(flow_id) for flow_id in wanted.flows},
            steps={at: self.steps[at] for at in steps if at in self.steps},
            live={
                flow_id: [
                    row for at, row in self.steps.items() if at[0] == flow_id and is_live(row.step)
                ]
                for flow_id in live
            },
            run_ids={
                flow_id: [run_id for owner, run_id in self.steps if owner == flow_id]
                for flow_id in wanted.pruned
            },
            ledger={key: self.ledger[key] for key in wanted.ledger if key in self.ledger},
        )
        handler = CommandHandler(
            self.place, memory, self.position, next_row_number=len(self.flows) + 1
        )
        batch = handler.handle(items)
        for outcome in batch.outcomes:
            Outcome.model_validate_json(outcome.value or b"")
        for event in batch.audit:
            EVENTS.validate_json(event.value or b"")
        for item in batch.work:
            WorkItem.model_validate_json(item.record.value or b"")
        self._keep(batch)
        return batch

    def _keep(self, batch: WriteSet) -> None:
        self.position = batch.position
        for flow_id, row in batch.flows.items():
            if row is None:
                self.flows.pop(flow_id, None)
            else:
                self.flows[flow_id] = row
        for key, value, _ in batch.state:
            flow_id, slash, run_id = (key or b"").decode().partition("/")
            if not slash or flow_id == "cursor":
                continue
            if value is None:
                self.steps.pop((flow_id, run_id), None)
            else:
                doc = value.removeprefix(b'{"step":').removesuffix(b"}")
                self.steps[flow_id, run_id] = StepRow(read_step(json.loads(doc)), doc)
        self.ledger.update((row.key, row) for row in batch.changes.ledger_entries)

    def flow(self, flow_id: str) -> Any:
        """The flow's row as JSON; None where there is none."""
        row = self.flows.get(flow_id)
        return row and json.loads(row.doc)

    def steps_of(self, flow_id: str) -> list[Any]:
        """The flow's steps as JSON, by run id."""
        return [json.loads(row.doc) for at, row in sorted(self.steps.items()) if at[0] == flow_id]
