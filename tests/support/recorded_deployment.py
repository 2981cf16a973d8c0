"""A deployment whose records and tables stand in lists that a test may edit."""

import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced
from typing import Any, ClassVar
from uuid import UUID, uuid5

from processor.contract.topics import Topics
from processor.engine.batch import PartitionConfig, WriteSet, first_event_id
from processor.engine.partitioner import partition_of
from processor.engine.rows import Position
from processor.ops.verify.ports import TableFlow, TablePosition, TableStep
from processor.ops.verify.report import Report
from processor.partition.scheduling.scheduler import wake_record
from processor.testing.memory.deployment import Deployment, TableContents
from processor.testing.memory.record import Appended
from tests.support.builders import MORNING
from tests.support.checked_deployment import CheckedDeployment
from tests.support.json_values import json_of
from tests.support.partition import Partition

TOPICS = Topics()
Body = dict[str, Any] | bytes | None


@dataclass(slots=True)
class Recorded(CheckedDeployment):
    """Decides what is sent to it, as the owners of its partitions would."""

    chunk: ClassVar[int] = 3
    """Few, so that what spans two chunks of a log is met."""

    now: int = MORNING
    wakes: int = 0
    """How many flows were woken because they were asked to cancel."""
    _next: dict[tuple[str, int], int] = field(default_factory=dict)
    _owners: dict[int, Partition] = field(default_factory=dict)

    def send(
        self,
        *sent: tuple[str, Body],
        at_ms: int | None = None,
        partition: int | None = None,
        decide: bool = True,
    ) -> None:
        """Append commands (topic, body), a second after the last or at `at_ms`, where their key
        belongs or on `partition`, and decide them, each partition's in one batch."""
        self.now = self.now + 1000 if at_ms is None else at_ms
        batches: dict[int, list[Appended]] = {}
        for name, body in sent:
            key, value = b"k", body
            if isinstance(body, dict):
                key = str(body["flow_id"]).encode()
                value = json.dumps(body, ensure_ascii=False).encode()
            at = partition_of(key, self.partitions) if partition is None else partition
            headers = (("traceparent", b"00-1"), ("mine", b""))
            batches.setdefault(at, []).append(self.append(name, at, key, value, headers))
        for at, batch in batches.items() if decide else ():
            self.decide(at, batch)

    def decide(self, partition: int, batch: Sequence[Appended]) -> WriteSet:
        """One transaction, and one for each copy of what was forwarded and for each wake."""
        written = self.commit(partition, batch)
        for topic, home, copied, _ in written.forwards:
            name = topic.removeprefix(f"{TOPICS.prefix}.")
            again = self.append(name, home, copied.key, copied.value, tuple(copied.headers))
            self.decide(home, [again])
        for flow_id, headers in written.wakes:
            self.wakes += 1
            command_id = str(uuid5(UUID(flow_id), f"wake {self.wakes}"))
            key, value, headers = wake_record(flow_id, command_id, headers)
            wake = self.append("control", partition, key, value, tuple(headers))
            self.decide(partition, [wake])
        return written

    def commit(self, partition: int, batch: Sequence[Appended]) -> WriteSet:
        """One transaction. What is to be forwarded, or woken, is the caller's to do."""
        written = self.owner(partition).handle(batch)
        assert not written.faults
        for name, some in (
            ("audit", written.audit),
            ("outcomes", written.outcomes),
            ("state", written.state),
            ("deadletters", written.dead_letters),
        ):
            for key, value, headers in some:
                self.append(name, partition, key, value, tuple(headers))
            self._next[name, partition] = self._next.get((name, partition), 0) + 1  # the marker
        for _, (key, value, headers) in written.work:
            at = partition_of(key or b"", self.steps_partitions or self.partitions)
            self.append("steps", at, key, value, tuple(headers))
        return written

    def owner(self, partition: int) -> Partition:
        if partition not in self._owners:
            place = PartitionConfig(partition, self.partitions, TOPICS, self.window_ms)
            start = Position(0, 0, first_event_id(partition))
            self._owners[partition] = Partition(place=place, position=start)
        return self._owners[partition]

    def append_command(self, name: str, command: dict[str, Any], partition: int = 0) -> Appended:
        """Append a command, a second after the last; it is not decided."""
        self.now += 1000
        value = json.dumps(command, ensure_ascii=False).encode()
        return self.append(name, partition, str(command["flow_id"]).encode(), value, ())

    def append(self, name: str, partition: int, key: Any, value: Any, headers: Any) -> Appended:
        offset = self._next.get((name, partition), 0)
        self._next[name, partition] = offset + 1
        topic = f"{TOPICS.prefix}.{name}"
        record = Appended(topic, partition, offset, self.now, key, value, headers)
        self.of(name, partition).append(record)
        return record

    def keep_tables(self) -> None:
        """Tables as their owners have them now."""
        self.tables = [
            TableContents(
                partition,
                TablePosition(
                    f"table-{partition}", self.partitions, *owner.position, restored=True
                ),
                [
                    TableFlow(
                        *(flow_id, row.doc.decode(), row.last_event_id, row.chain),
                        *(row.flow.revision, row.flow.status.value),
                        *(row.flow.owner_session_key, row.flow.updated_at),
                    )
                    for flow_id, row in owner.flows.items()
                ],
                [TableStep(*key, row.doc.decode()) for key, row in owner.steps.items()],
            )
            for partition, owner in sorted(self._owners.items())
        ]

    def copy(self) -> "Recorded":
        # What was decided is not edited: only lists are.
        return replaced(
            self,
            records={at: [*some] for at, some in self.records.items()},
            starts={**self.starts},
            ends={**self.ends},
            tables=copy.deepcopy(self.tables),
        )

    def end(self, name: str, partition: int) -> int:
        """The offset behind the last record, and behind the marker of its transaction."""
        return max(self._next.get((name, partition), 0), Deployment.end(self, name, partition))


def kinds(report: Report) -> set[tuple[str, str]]:
    """Invariant and kind of all that was found."""
    return set(report.found)


def violations(report: Report) -> str:
    """For a test that expected none."""
    return "\n".join(map(str, report.first.values()))


def edit(record: Appended, **fields: Any) -> Appended:
    """With other fields in its JSON."""
    return replaced(record, value=json.dumps({**json_of(record), **fields}).encode())


def renumbered(records: Iterable[Appended]) -> list[Appended]:
    """The same bytes at offsets 0, 1, 2 …, as if that were their order."""
    return [replaced(record, offset=offset) for offset, record in enumerate(records)]
