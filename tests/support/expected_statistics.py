"""What the views' statistics must say, counted from the events alone: it knows nothing of what is
tested but the shape of its answer."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

ENDS = ("finished", "failed", "cancelled")
COUNTED = ("events", "created", *ENDS)
RATE_MINUTES = 5
LONGER = 2**0.25
"""By how much a percentile may be over: durations are counted in buckets of that width."""


class Counted:
    """`flows` by status, now; `minutes`: a minute's begin → what happened in it; `stays`: status →
    for how many ms flows stayed in it before they left."""

    def __init__(self, events: Iterable[Mapping[str, Any]]) -> None:
        """All events, each partition's in order."""
        self.kinds: Counter[str] = Counter()
        self.minutes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.stays: defaultdict[str, list[int]] = defaultdict(list)
        self._alive: dict[str, tuple[str, int, bool]] = {}
        for event in events:
            self._count(event)
        self.flows = Counter(status for status, _, _ in self._alive.values())
        self.cancel_requested = sum(
            asked for status, _, asked in self._alive.values() if status not in ENDS
        )

    def _count(self, event: Mapping[str, Any]) -> None:
        kind, status, flow_id = event["kind"], event["status"], event["flow_id"]
        now, minute = _ms(event["at"]), self.minutes[event["at"][:16] + ":00.000Z"]
        self.kinds[kind] += 1
        minute["events"] += 1
        if kind == "pruned":
            del self._alive[flow_id]
            return
        if kind == "created":
            assert flow_id not in self._alive
            minute["created"] += 1
            self._alive[flow_id] = (status, now, False)
            return
        before, since, asked = self._alive[flow_id]
        if status != before:
            self.stays[before].append(max(now - since, 0))
            minute.update([status] if status in ENDS else [])
            since = now
        self._alive[flow_id] = (status, since, asked or kind == "cancel_requested")

    def assert_said(self, statistics: Mapping[str, Any]) -> None:
        """`/v1/statistics` over all minutes in which anything happened."""
        assert +Counter(statistics["flows"]) == self.flows
        assert statistics["flows_total"] == self.flows.total()
        assert statistics["cancel_requested"] == self.cancel_requested
        assert +Counter(statistics["events_by_kind"]) == self.kinds
        assert statistics["events_total"] == self.kinds.total()
        series = {one["at"]: one for one in statistics["series"]}
        assert self.minutes.keys() <= series.keys()
        for at, one in series.items():
            assert {name: one[name] for name in COUNTED} == self._happened([at]), at
        last = sorted(series)[-RATE_MINUTES:]
        longest_s = 60 * len(last)  # the last minute is under way, for 1 to 60 seconds
        for name, count in self._happened(last).items():
            rate = statistics["rates"][name]
            assert count / longest_s <= rate <= count / (longest_s - 59), name
        ends = self._happened(series)
        ended = sum(ends[name] for name in ENDS)
        ratio = ends["failed"] / ended if ended else None
        assert statistics["failure_ratio"] == ratio
        assert {one["status"] for one in statistics["durations"]} == self.stays.keys()
        for one in statistics["durations"]:
            _assert_stayed(one, sorted(self.stays[one["status"]]))

    def _happened(self, minutes: Iterable[str]) -> dict[str, int]:
        happened = [self.minutes.get(minute, Counter()) for minute in minutes]
        return {name: sum(one[name] for one in happened) for name in COUNTED}


def _assert_stayed(said: Mapping[str, Any], stays: list[int]) -> None:
    assert said["count"] == len(stays)
    assert said["max_ms"] == stays[-1]
    assert math.isclose(said["mean_ms"], sum(stays) / len(stays))
    for name, share in (("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99)):
        exact = stays[math.ceil(share * len(stays)) - 1]
        assert exact - 1e-6 <= said[name] <= exact * LONGER + 1e-6, name


def _ms(at: str) -> int:
    return round(datetime.fromisoformat(at).timestamp() * 1000)
