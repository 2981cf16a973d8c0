"""Times: any RFC 3339 with an offset comes in, one form goes out."""

import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.contract import instant, parse_timestamp


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2026-11-22T21:02:08.123Z", "2026-11-22T21:02:08.123Z"),
        ("2026-11-22T21:02:08Z", "2026-11-22T21:02:08.000Z"),
        ("2026-11-22t21:02:08.5z", "2026-11-22T21:02:08.500Z"),
        ("2026-11-22T22:02:08+01:00", "2026-11-22T21:02:08.000Z"),
        ("2026-11-22T00:02:08-05:30", "2026-11-22T05:32:08.000Z"),
        ("2026-11-22T21:02:08-00:00", "2026-11-22T21:02:08.000Z"),
        ("2026-01-01T00:30:00+23:59", "2025-12-31T00:31:00.000Z"),
        ("2024-02-29T12:00:00Z", "2024-02-29T12:00:00.000Z"),
        ("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z"),
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"),
        ("9999-12-31T23:59:59.999Z", "9999-12-31T23:59:59.999Z"),
    ],
)
def test_any_rfc_3339_time_with_an_offset_is_taken(text: str, written: str) -> None:
    assert instant(parse_timestamp(text)) == written


@pytest.mark.parametrize(
    ("fraction", "milliseconds"),
    [(".1", 100), (".12", 120), (".1239", 123), (".9999999999", 999), (".0009", 0), ("", 0)],
)
def test_what_is_finer_than_a_millisecond_is_cut_off(fraction: str, milliseconds: int) -> None:
    assert parse_timestamp(f"1970-01-01T00:00:00{fraction}Z") == milliseconds


def test_a_time_of_a_hundred_thousand_digits_is_read_and_not_kept() -> None:
    text = f"2026-11-22T21:02:08.1239{'0' * 100_000}Z"
    references = sys.getrefcount(text)

    assert instant(parse_timestamp(text)) == "2026-11-22T21:02:08.123Z"

    assert sys.getrefcount(text) == references


def test_before_1970_too_it_is_cut_and_not_rounded() -> None:
    assert parse_timestamp("1969-12-31T23:59:59.0009Z") == -1000


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00.000Z"),
        ("2016-12-31T23:59:60.75Z", "2017-01-01T00:00:00.750Z"),
        ("2017-01-01T00:59:60+01:00", "2017-01-01T00:00:00.000Z"),
    ],
)
def test_a_leap_second_is_the_second_after_it(text: str, written: str) -> None:
    assert instant(parse_timestamp(text)) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        "now",
        "2026-11-22",
        "2026-11-22T21:02Z",
        "2026-11-22T21:02:08",
        "2026-11-22 21:02:08Z",
        "20261122T210208Z",
        "2026-11-22T21:02:08+0100",
        "2026-11-22T21:02:08+01",
        "2026-11-22T21:02:08+24:00",
        "2026-11-22T21:02:08+01:60",
        "2026-11-22T21:02:08.Z",
        "2026-11-22T21:02:08,5Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T21:60:08Z",
        "2026-11-22T21:02:61Z",
        "2026-11-22T21:02:60Z",
        "2026-11-31T21:02:08Z",
        "2026-02-29T21:02:08Z",
        "2026-13-01T21:02:08Z",
        "26-11-22T21:02:08Z",
        "+2026-11-22T21:02:08Z",
        "２０２６-11-22T21:02:08Z",
        "2026-11-22T21:02:08Z\n",
        " 2026-11-22T21:02:08Z",
    ],
)
def test_what_is_no_such_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not an RFC 3339 time with an offset"):
        parse_timestamp(text)


@pytest.mark.parametrize(
    "text",
    [
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+00:01",
        "9999-12-31T23:59:59-00:01",
        "9999-12-31T23:59:60Z",
    ],
)
def test_a_time_outside_the_years_1_to_9999_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"outside the years 1\.\.9999 in UTC"):
        parse_timestamp(text)


MILLISECONDS = st.datetimes(timezones=st.just(UTC)).map(
    lambda t: (t - datetime(1970, 1, 1, tzinfo=UTC)).days * 86_400_000 + t.microsecond // 1000
)


@given(MILLISECONDS)
def test_what_is_written_is_read_back(at_ms: Any) -> None:
    assert parse_timestamp(instant(at_ms)) == at_ms
    assert len(instant(at_ms)) == 24


@given(MILLISECONDS, MILLISECONDS)
def test_written_times_compare_as_their_texts_do(one: Any, other: Any) -> None:
    assert (one < other) == (instant(one) < instant(other))
