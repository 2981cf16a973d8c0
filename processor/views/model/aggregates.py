"""Count events: totals of all time, and what happened within each minute. Pure.

All of it adds up, over minutes as over partitions, so that workers can answer for each other.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Self

from processor.contract.flow import FlowStatus

_BUCKETS_PER_DOUBLING: Final = 4
_ENDS: Final = ("finished", "failed", "cancelled")
_COUNTED: Final = ("events", "created", *_ENDS)


def bucket(ms: int) -> int:
    """Durations in one bucket differ by less than a fifth."""
    return 0 if ms <= 0 else math.ceil(_BUCKETS_PER_DOUBLING * math.log2(ms)) + 1


def bucket_limit_ms(bucket: int) -> float:
    """The longest duration in a bucket."""
    return 0.0 if bucket == 0 else 2.0 ** ((bucket - 1) / _BUCKETS_PER_DOUBLING)


@dataclass(slots=True)
class StatusDuration:
    """How long flows stayed in a status that they left."""

    count: int = 0
    sum_ms: int = 0
    max_ms: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def note(self, ms: int) -> None:
        ms = max(ms, 0)
        self.count += 1
        self.sum_ms += ms
        self.max_ms = max(self.max_ms, ms)
        self.buckets[bucket(ms)] += 1

    def add(self, other: Self) -> None:
        self.count += other.count
        self.sum_ms += other.sum_ms
        self.max_ms = max(self.max_ms, other.max_ms)
        self.buckets.update(other.buckets)

    def percentile_ms(self, share: float) -> float:
        """An upper bound; 0 if nothing was noted."""
        wanted = math.ceil(share * self.count)
        for bucket in sorted(self.buckets):
            wanted -= self.buckets[bucket]
            if wanted <= 0:
                return min(bucket_limit_ms(bucket), float(self.max_ms))
        return 0.0

    def as_json(self) -> list[Any]:
        buckets = sorted(self.buckets.items())
        return [self.count, self.sum_ms, self.max_ms, [list(pair) for pair in buckets]]

    @classmethod
    def from_json(cls, value: list[Any]) -> Self:
        count, sum_ms, max_ms, buckets = value
        return cls(count, sum_ms, max_ms, Counter(dict(buckets)))


@dataclass(slots=True)
class MinuteCounts:
    """What happened within a minute, or within many."""

    events: int = 0
    created: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    stays: dict[str, StatusDuration] = field(default_factory=dict)
    """By the status that was left."""

    def moves(self, origin: FlowStatus | None, to: FlowStatus, stayed_ms: int) -> None:
        """A flow came to `to`, from `origin` (None: it was created)."""
        if origin is None:
            self.created += 1
        else:
            self.stays.setdefault(origin.value, StatusDuration()).note(stayed_ms)
            if to.value in _ENDS:
                setattr(self, to.value, getattr(self, to.value) + 1)

    def add(self, other: Self) -> None:
        for name in _COUNTED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for status, stay in other.stays.items():
            self.stays.setdefault(status, StatusDuration()).add(stay)

    def as_json(self) -> dict[str, Any]:
        stays = {status: stay.as_json() for status, stay in sorted(self.stays.items())}
        return {**{name: getattr(self, name) for name in _COUNTED}, "stays": stays}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        stays = {status: StatusDuration.from_json(stay) for status, stay in value["stays"].items()}
        return cls(**{name: value[name] for name in _COUNTED}, stays=stays)


@dataclass(slots=True)
class Totals:
    """How many there are, and were."""

    flows: Counter[str] = field(default_factory=Counter)
    """By status, now."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Events by kind, ever."""
    cancel_requested: int = 0

    def enters(self, status: FlowStatus) -> None:
        self.flows[status.value] += 1

    def leaves(self, status: FlowStatus) -> None:
        self.flows[status.value] -= 1

    def asks(self, change: int) -> None:
        self.cancel_requested += change

    def happened(self, kind: str) -> None:
        self.kinds[kind] += 1

    def add(self, other: Self) -> None:
        self.flows.update(other.flows)
        self.kinds.update(other.kinds)
        self.cancel_requested += other.cancel_requested

    def as_json(self) -> dict[str, Any]:
        return {
            "flows": {name: count for name, count in sorted(self.flows.items()) if count},
            "kinds": dict(sorted(self.kinds.items())),
            "cancel_requested": self.cancel_requested,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        return cls(Counter(value["flows"]), Counter(value["kinds"]), value["cancel_requested"])


def added_minutes(parts: Iterable[Mapping[str, Any]]) -> MinuteCounts:
    minute = MinuteCounts()
    for part in parts:
        minute.add(MinuteCounts.from_json(part))
    return minute


def added_totals(parts: Iterable[Mapping[str, Any]]) -> Totals:
    totals = Totals()
    for part in parts:
        totals.add(Totals.from_json(part))
    return totals
