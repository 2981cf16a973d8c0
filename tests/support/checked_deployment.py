"""A deployment as it was left, held against what must be true of it at rest."""

import json
from collections.abc import Coroutine
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

from processor.contract.values import EVENTS_PER_PARTITION
from processor.testing.memory.deployment import Deployment, TableContents
from tests.support.builders import DAY_MS

NEVER_LATE_MS = 1_000_000 * DAY_MS

T = TypeVar("T")


def is_at(table: TableContents, cursor: dict[str, Any]) -> bool:
    """Whether a table has all that a cursor covers."""
    at = table.position
    named = {"commands": at.commands, "control": at.control, "next_event_id": at.next_event_id}
    return all(cursor[name] == offset for name, offset in named.items())


def items_left(partition: int, cursor: dict[str, Any]) -> bool:
    """Whether the cursor of a partition says that work items may not be written yet."""
    first = partition * EVENTS_PER_PARTITION + 1
    next_unwritten: int = max(cursor["offered"] + 1, first)
    return next_unwritten < int(cursor["next_event_id"])


@dataclass(slots=True)
class CheckedDeployment(Deployment):
    """The records and tables of a deployment, with the checks of the tests."""

    @classmethod
    def of_left(cls, left: Deployment) -> Self:
        return cls(**{field.name: getattr(left, field.name) for field in fields(left)})

    def newest_cursor(self, partition: int) -> dict[str, Any] | None:
        key = f"cursor/{partition}".encode()
        for record in reversed(self.of("state", partition)):
            if record.key == key:
                cursor: dict[str, Any] = json.loads(record.value or b"")
                return cursor
        return None

    def violations(self, *, punctual_ms: int | None = None) -> list[str]:
        """What does not hold at rest. `punctual_ms`: how late the wakes may be; None: ever so late,
        for a deployment whose workers have been away."""
        late_ms = NEVER_LATE_MS if punctual_ms is None else punctual_ms
        report = without_a_loop(self.verify(punctual_ms=late_ms))
        found = [f"{violation} ({report.found[at]})" for at, violation in report.first.items()]
        for partition in range(self.partitions):
            cursor = self.newest_cursor(partition)
            tables = [table for table in self.tables if table.partition == partition]
            if cursor is not None and tables and not any(is_at(one, cursor) for one in tables):
                found.append(f"no table of partition {partition} is where the topics are: {cursor}")
        return found

    def assert_clean(self, *, punctual_ms: int | None = None) -> None:
        found = self.violations(punctual_ms=punctual_ms)
        assert not found, f"{len(found)} kinds of violations:\n" + "\n".join(found)


def without_a_loop(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that never waits, from wherever it is asked for."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise AssertionError("it waited")
