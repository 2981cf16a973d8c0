"""What tells one hand from two is checked, too: each planted stranger is seen."""

from typing import Any

import pytest

from tests.support.log_files import LogBatch, foreign_in


def data(epoch: Any, producer_id: int = 7) -> Any:
    return LogBatch(0, producer_id, epoch, transactional=True, control=False)


def marker(epoch: Any, producer_id: int = 7) -> Any:
    return LogBatch(0, producer_id, epoch, transactional=True, control=True)


def test_one_owner_after_the_other_is_in_order() -> None:
    log = [data(0), data(0), marker(0), data(0), marker(1), marker(2), data(2), marker(2)]
    assert foreign_in("audit/0", iter(log)) == []


@pytest.mark.parametrize(
    "log",
    [
        [data(0), data(1), marker(1), data(0)],
        [data(0), data(0, 8), marker(0)],
        [data(0), marker(0, 8)],
        [data(1), marker(1), data(0), marker(0)],
        [data(0), marker(0), data(0, 8), marker(0, 8)],
        [LogBatch(0, -1, -1, transactional=False, control=False)],
    ],
)
def test_a_foreign_hand_is_seen(log: Any) -> None:
    assert foreign_in("audit/0", iter(log))
