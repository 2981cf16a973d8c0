"""Adding up what view workers say."""

import pytest

from processor.views.model.aggregates import MinuteCounts
from processor.views.query.scatter_gather import statistics

NOON_S = 1_795_694_400


@pytest.mark.parametrize(("second", "rate"), [(0, 30 / 241), (15, 30 / 255), (59, 30 / 299)])
def test_rates_have_the_minute_under_way_in_them(second: int, rate: float) -> None:
    counted = {
        NOON_S + 60 * minute: [MinuteCounts(events=events).as_json()]
        for minute, events in ((0, 7), (1, 20), (5, 10))
    }
    now_ms = (NOON_S + 5 * 60 + second) * 1000
    found = statistics([(counted, [])], 60, now_ms)
    assert found["rates"]["events"] == pytest.approx(rate)
    assert [one["events"] for one in found["series"][-6:]] == [7, 20, 0, 0, 0, 10]
