"""What the doctor makes of what was seen."""

from collections.abc import Iterable
from typing import Any

import pytest

from processor.adapters.kafka.admin.cluster_inspection import decodable
from processor.contract.rights import Role, rights
from processor.contract.topics import Topics
from processor.ops import doctor
from processor.ops.doctor import (
    AIOKAFKA,
    Finding,
    Level,
    Mismatched,
    Open,
    TableSeen,
    Undecided,
    Versions,
    worst,
)
from tests.unit.adapters.sqlite.tables import NOON_MS


def levels(findings: Iterable[Finding]) -> list[Level]:
    found = list(findings)
    for one in found:
        assert (one.level is Level.GOOD) is (one.do == ""), "what is not good says what to do"
    return [one.level for one in found]


@pytest.mark.parametrize(
    ("python", "aiokafka", "apis", "expected"),
    [
        ((3, 11, 0), AIOKAFKA, {"Fetch": ((0, 11), (4, 18))}, ["good", "good", "good"]),
        ((3, 10, 9), AIOKAFKA, {}, ["bad", "good"]),
        ((3, 14, 0), "0.13.0", {"Fetch": ((0, 3), (4, 18))}, ["good", "bad", "bad"]),
        ((3, 14, 0), AIOKAFKA, {"EndTxn": ((0, 0), None)}, ["good", "good", "bad"]),
    ],
)
def test_versions(python: Any, aiokafka: Any, apis: Any, expected: Any) -> None:
    assert levels(doctor.versions(Versions(python, aiokafka, apis))) == expected


def test_a_topic_that_only_differs_is_a_warning() -> None:
    seen = [Mismatched("t.audit does not exist", True, "Make it."), Mismatched("short", False, "-")]

    assert levels(doctor.topics(seen, 6)) == ["bad", "warning"]
    assert [finding.do for finding in doctor.topics(seen, 6)] == ["Make it.", "-"]
    assert levels(doctor.topics([], 6)) == ["good"]


def test_each_compression_is_really_decoded() -> None:
    assert decodable() == dict.fromkeys(("gzip", "snappy", "lz4", "zstd"))
    assert levels(doctor.codecs({"lz4": "no library", "gzip": None}, "gzip")) == ["bad"]


def test_each_right_that_is_missing_is_named() -> None:
    missing = rights(Role.WORKER, Topics("t"), "g")[:2]

    (good,) = doctor.authorizations("User:w", Role.WORKER, [])
    assert (good.level, good.what) == (Level.GOOD, "User:w may do what a worker needs")
    found = list(doctor.authorizations("User:w", Role.WORKER, missing))
    assert levels(found) == ["bad", "bad"]
    assert found[0].what == "User:w lacks Read on topic t.commands"
    assert "taskflow topics acls --role worker" in found[0].do


@pytest.mark.parametrize(
    ("first_ms", "members", "expected"),
    [
        (None, 1, ["good"]),
        (None, 0, ["good", "warning"]),
        (NOON_MS - 5_000, 1, ["good"]),
        (NOON_MS - 5_000, 0, ["bad"]),
        (NOON_MS - 20_000, 1, ["warning"]),
        (NOON_MS - 90_000, 2, ["bad"]),
    ],
)
def test_lag_is_judged_by_the_oldest_undecided_command(
    first_ms: Any, members: int, expected: Any
) -> None:
    undecided = [Undecided(0, 3, None), Undecided(1, 2, first_ms)]

    assert levels(doctor.lag(undecided, members, NOON_MS)) == expected


def test_what_an_open_transaction_hides_is_not_called_decided() -> None:
    undecided = [Undecided(0, 19, None), Undecided(1, 2, None, hidden=6)]

    hidden, visible = doctor.lag(undecided, 1, NOON_MS)

    assert hidden.level is Level.WARNING
    assert "6 offsets of commands or control lie behind an open transaction" in hidden.what
    assert "on partition 1" in hidden.what
    assert visible.what.startswith("every command that can be read is decided")


def test_a_batch_under_way_does_not_hang() -> None:
    young, old = Open("t.audit", 1, 7, NOON_MS - 100), Open("t.state", 2, 9, NOON_MS - 16_000)

    assert levels(doctor.transactions([young], NOON_MS)) == ["good"]
    (found,) = doctor.transactions([young, old], NOON_MS)
    assert found.level is Level.BAD
    assert "--topic t.state --partition 2 --start-offset 9" in found.do


@pytest.mark.parametrize(
    ("due_ms", "expected"),
    [
        (None, ["good"]),
        (NOON_MS + 1, ["good"]),
        (NOON_MS - 20_000, ["warning"]),
        (NOON_MS - 61_000, ["bad"]),
    ],
)
def test_a_wait_that_is_over_is_overdue_only_after_a_while(due_ms: Any, expected: Any) -> None:
    assert levels(doctor.waits("f", due_ms, NOON_MS)) == expected


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (TableSeen("a.db", 0, 4, None, 1), "good"),
        (TableSeen("a.db", 0, 4, None, 900), "good"),
        (TableSeen("a.db", 0, 4, None, None), "good"),
        (TableSeen("a.db", 0, 4, None, -5), "warning"),
        (TableSeen("a.db", 0, 3, None, 0), "bad"),
        (TableSeen("a.db", 0, None, "page 3 is damaged", None), "bad"),
    ],
)
def test_tables(table: Any, expected: str) -> None:
    assert levels(doctor.tables([table], "data", 4, None)) == [expected]


@pytest.mark.parametrize(
    ("view", "expected", "what"),
    [
        ("No views answer at http://h:1 (refused).", "good", "No views answer"),
        (None, "warning", "show topics of another broker or prefix"),
        ({"missing": [2, 3], "lag_ms": None}, "warning", "do not show partitions 2, 3"),
        ({"missing": [], "lag_ms": 10_001}, "warning", "10 s behind the audit"),
        ({"missing": [], "lag_ms": None}, "warning", "an unknown time behind"),
        ({"missing": [], "lag_ms": 3}, "good", "show all partitions"),
    ],
)
def test_views(view: Any, expected: str, what: str) -> None:
    (found,) = doctor.views("http://h:1", view)
    assert (found.level, bool(found.do)) == (expected, expected != "good")
    assert what in found.what


@pytest.mark.parametrize(
    ("free", "expected"), [(9 * 1024**3, "good"), (1024**3, "warning"), (1024**2, "bad")]
)
def test_a_full_disk(free: int, expected: str) -> None:
    assert levels(doctor.tables([], "data", 4, free)) == ["good", expected]


@pytest.mark.parametrize(
    ("newest_ms", "probed", "expected"),
    [
        (None, None, "good"),
        (NOON_MS - 1, None, "good"),
        (NOON_MS + 10_000, None, "warning"),
        (NOON_MS + 3_600_000, None, "bad"),
        (None, (NOON_MS, NOON_MS + 20, NOON_MS + 10), "good"),
        (None, (NOON_MS, NOON_MS + 20, NOON_MS - 10_000), "warning"),
        (None, (NOON_MS, NOON_MS + 20, NOON_MS + 3_600_000), "bad"),
    ],
)
def test_the_clock_beside_the_brokers(newest_ms: Any, probed: Any, expected: str) -> None:
    assert levels(doctor.clock(newest_ms, NOON_MS, probed)) == [expected]


def test_the_worst_finding_decides() -> None:
    assert worst([]) is Level.GOOD
    assert worst([Finding("a", Level.WARNING, ""), Finding("b", Level.GOOD, "")]) is Level.WARNING
    assert worst([Finding("a", Level.BAD, ""), Finding("b", Level.WARNING, "")]) is Level.BAD
