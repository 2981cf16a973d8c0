"""The report of a verification: how much it checked, and the first violation of each kind."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Final

from processor.ops.verify.ports import LogRecord

INVARIANTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "I1": "each command has exactly one outcome, each outcome its command",
        "I2": "a command id is accepted at most once; a resend gets the first outcome",
        "I3": "revisions and event ids have no gap and no repeat",
        "I4": "every move is legal, by who may make it and when",
        "I5": "table, state and the fold of audit are the same",
        "I6": "positions never move back, nor past what is committed",
        "I7": "every flow's chain verifies",
        "I8": "one writer at a time, as far as its traces show",
        "I9": "what one command causes is there together",
        "I10": "every command has an outcome",
        "I11": "no transaction stays open",
        "I12": "all records of a flow are on its partition",
        "I13": "every wait ends at its time, and not before",
        "I14": "managed steps move as the contract says, one holder at a time",
        "I15": "each work item names an offered step, each offered step has one",
        "I16": "steps end with their flow, and joins with their steps",
        "I17": "no lease ends while commands that came within it are undecided",
    }
)


@dataclass(frozen=True, slots=True)
class Violation:
    """The first of its kind. `topic` is the full name, or a table's path; -1 is no offset."""

    invariant: str
    kind: str
    topic: str
    partition: int
    offset: int
    flow_id: str | None
    message: str


@dataclass(slots=True)
class Report:
    """`checked` counts the looks at each invariant, `counts` what was read; `not_covered` are
    sentences about what could not be looked at."""

    mode: str
    since: str | None
    flow_id: str | None
    partitions: list[int]
    checked: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    tables: list[str] = field(default_factory=list)
    not_covered: list[str] = field(default_factory=list)
    first: dict[tuple[str, str], Violation] = field(default_factory=dict)
    found: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not self.found

    def add(
        self,
        invariant: str,
        kind: str,
        message: str,
        *,
        topic: str,
        partition: int,
        offset: int = -1,
        flow_id: str | None = None,
    ) -> None:
        self.found[invariant, kind] += 1
        if (invariant, kind) not in self.first:
            self.first[invariant, kind] = Violation(
                invariant, kind, topic, partition, offset, flow_id, message
            )

    def at(
        self,
        record: LogRecord,
        invariant: str,
        kind: str,
        message: str,
        flow_id: str | None = None,
    ) -> None:
        """Add a violation that this record shows."""
        self.add(
            *(invariant, kind, message),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            flow_id=flow_id,
        )

    def violations_of(self, invariant: str) -> int:
        return sum(count for (name, _), count in self.found.items() if name == invariant)

    def uncovered(self, sentence: str) -> None:
        if sentence not in self.not_covered:
            self.not_covered.append(sentence)

    def as_json(self) -> dict[str, Any]:
        in_order = sorted(self.first.items(), key=lambda item: (int(item[0][0][1:]), item[0][1]))
        return {
            "ok": self.ok,
            "covered": {
                "mode": self.mode,
                "since": self.since,
                "flow_id": self.flow_id,
                "partitions": self.partitions,
                "tables": self.tables,
                "not_covered": self.not_covered,
            },
            "counts": dict(self.counts),
            "checked": {name: self.checked[name] for name in INVARIANTS},
            "violations": [
                {**asdict(violation), "count": self.found[key]} for key, violation in in_order
            ],
        }
