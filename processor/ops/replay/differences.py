"""Collect what a replay found: how much was compared, and the first differences of each kind."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any, Final

import orjson

from processor.contract.dead_letters import MESSAGE
from processor.contract.events import CHAIN_HEADER
from processor.contract.headers import Header, split_dead_letter
from processor.engine.batch import Outgoing
from processor.ops.json_path import ABSENT, Change, changes

EXAMPLES: Final = 3
"""How many of each sort are kept in full."""
FIELDS_MAX: Final = 20
"""How many differing fields of one record are named."""
SHOWN_MAX: Final = 200
"""Bytes of a value, as JSON, that a difference repeats."""

ADDED, MISSING, CHANGED = "added", "missing", "changed"

Field = dict[str, Any]
"""A place that differs: `path`, and its value as `recorded` and `now`, where there is one."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One record that the code at hand writes in another way than it was written, does not write
    (`missing`), or writes beyond what was (`added`)."""

    kind: str
    """Of the command."""
    record: str
    """`outcome`, `event`, `dead dead_letter`, `wake`, or `copy` of a forwarded command."""
    what: str
    topic: str
    partition: int
    offset: int
    flow_id: str | None
    fields: list[Field]


@dataclass(slots=True)
class Findings:
    """Of some partitions. `kinds` counts differences by command kind, record and what; `touched`
    the commands that have any."""

    commands: Counter[str] = field(default_factory=Counter)
    """How many commands of each kind were compared."""
    records: Counter[str] = field(default_factory=Counter)
    """How many outcomes, events, dead letters, wakes, copies were compared."""
    touched: Counter[str] = field(default_factory=Counter)
    kinds: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    first: list[Difference] = field(default_factory=list)
    begins: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Where the history of each partition begins."""
    not_compared: Counter[str] = field(default_factory=Counter)
    """Sentences about what was taken as given, with how often."""

    @property
    def ok(self) -> bool:
        return not self.kinds

    def add(self, found: Difference) -> None:
        sort = (found.kind, found.record, found.what)
        self.kinds[sort] += 1
        if self.kinds[sort] <= EXAMPLES:
            self.first.append(found)

    def merge(self, other: "Findings") -> None:
        """Add what was found elsewhere."""
        for mine, theirs in (
            (self.commands, other.commands),
            (self.records, other.records),
            (self.touched, other.touched),
            (self.not_compared, other.not_compared),
        ):
            mine.update(theirs)
        self.kinds.update(other.kinds)
        self.begins |= other.begins
        kept: Counter[tuple[str, str, str]] = Counter()
        together, self.first = [*self.first, *other.first], []
        for one in together:
            sort = (one.kind, one.record, one.what)
            kept[sort] += 1
            if kept[sort] <= EXAMPLES:
                self.first.append(one)

    def as_json(self) -> dict[str, Any]:
        by_kind: dict[str, dict[str, Any]] = {}
        for (kind, record, what), count in sorted(self.kinds.items()):
            entry = by_kind.setdefault(kind, {"commands": self.touched[kind]})
            entry.setdefault(record.replace(" ", "_"), {})[what] = count
        return {
            "ok": self.ok,
            "compared": {"commands": self.commands.total(), **self.records},
            "begins": {str(p): self.begins[p] for p in sorted(self.begins)},
            "not_compared": dict(self.not_compared),
            "commands": dict(sorted(self.commands.items())),
            "touched": self.touched.total(),
            "differences": by_kind,
            "first": [asdict(one) for one in self.first],
        }


def alike(recorded: Outgoing, now: Outgoing) -> bool:
    """Whether the code at hand writes just what is recorded."""
    return (
        recorded.value == now.value
        and recorded.key == now.key
        and (recorded.headers == now.headers or [*recorded.headers] == [*now.headers])
    )


def fields_of(recorded: Outgoing, now: Outgoing, *, chain: bool = True) -> list[Field]:
    """Where two records differ. Without `chain`, their places in the chain are left out: they
    follow from what came before."""
    found = [*changes(_shown(recorded.value), _shown(now.value))]
    if not found and recorded.value != now.value:
        found.append(Change("$", "(the same JSON, written with other bytes)", ABSENT))
    if recorded.key != now.key:
        found.append(Change("(key)", _shown(recorded.key), _shown(now.key)))
    for one, other in zip_longest(recorded.headers, now.headers):
        if one != other and (chain or CHAIN_HEADER not in {h[0] for h in (one, other) if h}):
            found.append(Change(f"(header {(one or other)[0]})", _header(one), _header(other)))
    return [_cut(change.as_json("recorded", "now")) for change in found[:FIELDS_MAX]]


def reworded(recorded: Outgoing, now: Outgoing) -> bool:
    """Whether two outcomes of a record that was no command, or its two dead letters, differ only
    in the sentences that say why: these are for people, and become better."""
    return alike(_without_reasons(recorded), _without_reasons(now))


def _without_reasons(record: Outgoing) -> Outgoing:
    originals, facts = split_dead_letter(record.headers)
    if facts is not None:
        added = [(n, v) for n, v in record.headers[len(originals) :] if n != MESSAGE]
        return record._replace(headers=[*originals, *added])
    outcome = orjson.loads(record.value or b"")
    details = outcome["details"]
    if "errors" in details:
        details["errors"] = [error["field"] for error in details["errors"]]
    outcome["message"] = ""
    return record._replace(value=orjson.dumps(outcome))


def _header(one: Header | None) -> Any:
    return ABSENT if one is None else _shown(one[1])


def _shown(raw: bytes | None) -> Any:
    """Bytes as JSON if they are, else as text or in hex."""
    if raw is None:
        return None
    try:
        parsed = orjson.loads(raw)
        orjson.dumps(parsed)  # what is nested too deep can be read, and not be written
        return parsed
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        pass
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"hex {raw.hex()}"


def _cut(fields: Field) -> Field:
    """Values that are short enough to be looked at."""
    for side in {"recorded", "now"} & fields.keys():
        text = orjson.dumps(fields[side])
        if len(text) > SHOWN_MAX:
            fields[side] = f"{text[:SHOWN_MAX].decode(errors='ignore')}… ({len(text):,} bytes)"
    return fields
