"""Combine the peers' responses, each for its partitions, into one. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.values import EVENTS_PER_PARTITION, instant, parse_timestamp
from processor.views.http.pagination import keyset, vector
from processor.views.model.aggregates import (
    MinuteCounts,
    StatusDuration,
    Totals,
    added_minutes,
    added_totals,
)
from processor.views.model.projection import MINUTE_MS

Json = dict[str, Any]
RATE_MINUTES = 5


def view_of(
    parts: Iterable[tuple[Iterable[Json], int | None]], partitions: Collection[int]
) -> Json:
    """`view` of an answer: from each worker its partitions and its lag in ms."""
    found: dict[int, Json] = {}
    lags: list[int | None] = []
    for views, lag_ms in parts:
        found |= {each["partition"]: each for each in views}
        lags.append(lag_ms)
    behind = [each["behind"] for each in found.values()]
    missing = sorted(set(partitions) - found.keys())
    return {
        "complete": not missing,
        "missing": missing,
        "behind": None if missing or None in behind else sum(behind),
        "lag_ms": None if missing or None in lags else max((lag or 0 for lag in lags), default=0),
        "partitions": [found[partition] for partition in sorted(found)],
    }


def page(
    parts: Iterable[Iterable[tuple[tuple[int, ...], Any]]],
    limit: int,
    kind: str,
    *,
    ascending: bool,
) -> tuple[list[Any], str | None]:
    """The first `limit` items of all, and the cursor behind them if there are more."""
    rows = sorted(
        (row for part in parts for row in part), key=lambda row: row[0], reverse=not ascending
    )
    more = len(rows) > limit
    cursor = keyset(kind, *rows[limit - 1][0]) if more else None
    return [item for _, item in rows[:limit]], cursor


def event_page(
    parts: Iterable[tuple[Iterable[tuple[tuple[int, int], Any]], Mapping[int, int]]], limit: int
) -> tuple[list[Any], str | None]:
    """The newest `limit` events of all, and the cursor: partition → below which id to go on."""
    rows: list[tuple[tuple[int, int], Any]] = []
    floors: dict[int, int] = {}
    for items, down_to in parts:
        rows += items
        floors |= down_to
    rows.sort(key=lambda row: row[0], reverse=True)
    for (_, cut), _ in rows[limit:]:
        partition = cut // EVENTS_PER_PARTITION
        floors[partition] = max(floors[partition], cut + 1)
    return [item for _, item in rows[:limit]], vector(floors) if any(floors.values()) else None


def statistics(
    parts: Sequence[tuple[Mapping[int, Sequence[Json]], Sequence[Json]]],
    minutes: int,
    now_ms: int,
) -> Json:
    """From each worker: a minute's beginning in s → what happened in it, and totals.

    The last minute of the series is the one of `now_ms`.
    """
    totals: Totals = added_totals(total for _, some in parts for total in some)
    last_s = (now_ms - now_ms % MINUTE_MS) // 1000
    starts = range(last_s - (minutes - 1) * 60, last_s + 1, 60)
    by_minute = {
        start: added_minutes(one for found, _ in parts for one in found.get(start, ()))
        for start in starts
    }
    over_all = MinuteCounts()
    for one in by_minute.values():
        over_all.add(one)
    ended = over_all.finished + over_all.failed + over_all.cancelled
    flows = {status.value: totals.flows[status.value] for status in FlowStatus}
    return {
        "flows": flows,
        "flows_total": sum(flows.values()),
        "cancel_requested": totals.cancel_requested,
        "events_total": sum(totals.kinds.values()),
        "events_by_kind": {kind.value: totals.kinds[kind.value] for kind in EventKind},
        "minutes": minutes,
        "series": [
            {"at": instant(start * 1000), **_counts(one)} for start, one in by_minute.items()
        ],
        "rates": _rates(
            [by_minute[start] for start in starts[-RATE_MINUTES:]], (now_ms % MINUTE_MS) / 1000
        ),
        "failure_ratio": over_all.failed / ended if ended else None,
        "durations": [_duration(s, over_all.stays[s]) for s in sorted(over_all.stays)],
    }


def _counts(minute: MinuteCounts) -> Json:
    return {
        name: getattr(minute, name)
        for name in ("created", "finished", "failed", "cancelled", "events")
    }


def _rates(minutes: Sequence[MinuteCounts], under_way_s: float) -> Json:
    """Per second; the last of `minutes` is under way since `under_way_s`."""
    seconds = 60 * (len(minutes) - 1) + max(under_way_s, 1.0)
    total = MinuteCounts()
    for minute in minutes:
        total.add(minute)
    return {name: count / seconds for name, count in _counts(total).items()}


def _duration(status: str, stay: StatusDuration) -> Json:
    return {
        "status": status,
        "count": stay.count,
        "mean_ms": stay.sum_ms / stay.count if stay.count else 0.0,
        "p50_ms": stay.percentile_ms(0.5),
        "p90_ms": stay.percentile_ms(0.9),
        "p99_ms": stay.percentile_ms(0.99),
        "max_ms": stay.max_ms,
    }


def event_key(event: Json) -> tuple[int, int]:
    return parse_timestamp(event["at"]), event["id"]
