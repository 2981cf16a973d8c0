"""How far a partition's fold is behind its source, and what the metrics say of it."""

import asyncio
import re
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import IllegalStateError
from faust.types import TP

from processor.contract.values import DAY_MS
from processor.settings import Settings
from processor.signals.app import SignalsApp
from processor.signals.deliveries import Deliveries
from processor.signals.folds import MatchFold
from processor.signals.metrics import SignalMetrics
from processor.signals.partition import SourcePartition
from processor.signals.transport import RestoredConsumer

AUDIT = TP("taskflow.audit", 1)
LOG = TP("taskflow.signals.log", 1)


def partition(next_offset: int) -> SourcePartition:
    made = SourcePartition(Settings(), "audit", *AUDIT, cast(Any, None))
    made.next_offset = next_offset
    return made


@pytest.mark.parametrize(
    ("position", "end", "fetched", "behind"),
    [
        (10, None, 10, None),
        (10, 10, 10, 0),
        (10, 25, 10, 15),
        (25, 25, 25, 15),  # fetched, and not folded
        (25, 25, 10, 0),  # markers of transactions follow the last record
        (10, 8, 10, 0),  # what the broker said last is old
    ],
)
def test_a_fold_is_behind_by_what_is_committed_and_not_folded(
    position: int, end: int | None, fetched: int, behind: int | None
) -> None:
    assert partition(10).behind(position, end, fetched) == behind


async def test_lag_is_shown_for_the_partitions_that_a_process_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def levels(self: RestoredConsumer) -> dict[TP, Any]:
        return {AUDIT: (25, 25, 25), TP("taskflow.audit", 2): (0, 5, 0)}

    async def revoked(self: RestoredConsumer) -> dict[TP, Any]:
        raise IllegalStateError

    monkeypatch.setattr(RestoredConsumer, "levels", levels)
    app = SimpleNamespace(
        assigned=True,
        consumer=RestoredConsumer.__new__(RestoredConsumer),
        metrics_=SignalMetrics(),
        _partitions={AUDIT: partition(10)},
        _sources={"audit": AUDIT.topic},
    )
    await SignalsApp._measure(cast(SignalsApp, app))
    monkeypatch.setattr(RestoredConsumer, "levels", revoked)
    await SignalsApp._measure(cast(SignalsApp, app))

    shown = app.metrics_.text().decode()
    assert 'taskflow_signals_lag_records{partition="1",source="audit"} 15.0' in shown
    assert shown.count("taskflow_signals_lag_records{") == 1


async def test_what_is_shown_of_partitions_ends_with_them() -> None:
    """An alert looks at it, and the partitions are another process's then."""
    metrics = SignalMetrics()
    app = SignalsApp(Settings(), {}, cast(Any, None), metrics)
    fold = MatchFold(app.topics_, 4, DAY_MS, metrics)
    fold.matcher.early, fold.matcher.open = 2, 3
    own, lock = SourcePartition(Settings(), "log", *LOG, fold), asyncio.Lock()
    app._partitions[LOG], app._locks[LOG] = own, lock
    app._deliveries[LOG] = deliveries = Deliveries(cast(Any, None), metrics, cast(Any, None))
    deliveries._waiting[cast(Any, "one")] = cast(Any, None)
    metrics.lag.labels("log", "1").set(5)

    def shown() -> set[str]:
        names = r"taskflow_signals_((?:early|open_waits|pending|lag_records\{).*)"
        return set(re.findall(rf"^{names}", metrics.text().decode(), re.MULTILINE))

    lag = 'lag_records{partition="1",source="log"} 5.0'
    assert shown() == {"early 2.0", "open_waits 3.0", "pending 1.0", lag}
    await app.release()
    assert shown() == {"early 0.0", "open_waits 0.0", "pending 0.0"}
