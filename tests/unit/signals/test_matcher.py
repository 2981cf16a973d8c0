"""Which signal ends which wait, and what becomes of the others."""

from typing import Any

import pytest

from processor.contract.signals import UNCLAIMED, UNDELIVERABLE
from processor.signals.facts import (
    AuditRead,
    SignalFact,
    SignalReceived,
    WaitClosed,
    WaitKey,
    WaitMoved,
    WaitOpened,
)
from processor.signals.matcher import Delivery, Matcher

KEY = WaitKey("payments", "order-17")
TTL_MS = 1_000


@pytest.fixture
def matcher() -> Matcher:
    return Matcher(audit_partitions=2, ttl_ms=TTL_MS)


def signal(name: str = "s1", at_ms: int = 10, payload: Any = None) -> SignalReceived:
    return SignalReceived(name, at_ms, 0, 0, payload)


def opened(flow: str = "f1", wait: int = 1, revision: int = 2, at_ms: int = 5) -> WaitOpened:
    return WaitOpened(flow, wait, revision, at_ms)


def only(matcher: Matcher) -> Delivery:
    (delivery,) = matcher.deliveries()
    return delivery


def closed_by(delivery: Delivery) -> WaitClosed:
    return WaitClosed(delivery.flow_id, delivery.wait, delivery.revision + 1, delivery.command_id)


def closed_otherwise(delivery: Delivery) -> WaitClosed:
    return WaitClosed(delivery.flow_id, delivery.wait, delivery.revision + 1, "another command")


def read_up_to(matcher: Matcher, at_ms: int) -> None:
    for partition in range(2):
        matcher.apply(None, AuditRead(partition, at_ms))


def dead(matcher: Matcher) -> list[tuple[str, str]]:
    _, unclaimed = matcher.take_changes()
    return [(one.signal.id, one.code) for one in unclaimed]


@pytest.mark.parametrize("early", [True, False])
def test_a_signal_is_assigned_to_the_wait_of_its_key_whichever_comes_first(
    matcher: Matcher, early: bool
) -> None:
    facts: list[SignalFact] = [signal(), opened()] if early else [opened(), signal()]
    for fact in facts:
        matcher.apply(KEY, fact)

    assert only(matcher)[:5] == (KEY, signal(), "f1", 1, 2)


def test_a_signal_of_another_key_is_not(matcher: Matcher) -> None:
    matcher.apply(KEY, opened())
    matcher.apply(WaitKey("payments", "order-18"), signal())

    assert list(matcher.deliveries()) == []
    assert (matcher.early, matcher.open) == (1, 1)


def test_an_id_that_is_known_is_left_out_before_and_after_its_delivery(matcher: Matcher) -> None:
    assert matcher.apply(KEY, signal())
    assert not matcher.apply(KEY, signal(at_ms=11))
    matcher.apply(KEY, opened())
    matcher.apply(KEY, closed_by(only(matcher)))
    assert not matcher.apply(KEY, signal(at_ms=12))

    matcher.apply(KEY, opened("f2", 2))
    assert list(matcher.deliveries()) == []


def test_a_signal_ends_one_of_two_waits_and_the_next_signal_the_other(matcher: Matcher) -> None:
    matcher.apply(KEY, opened("f1", 1))
    matcher.apply(KEY, opened("f2", 2))
    matcher.apply(KEY, signal("s1"))
    assert only(matcher).flow_id == "f1"

    matcher.apply(KEY, signal("s2"))
    assert {(one.signal.id, one.flow_id) for one in matcher.deliveries()} == {
        ("s1", "f1"),
        ("s2", "f2"),
    }


def test_a_wait_that_ended_otherwise_gives_its_signal_to_the_next_one(matcher: Matcher) -> None:
    matcher.apply(KEY, opened("f1", 1))
    matcher.apply(KEY, signal())
    matcher.apply(KEY, closed_otherwise(only(matcher)))
    assert (list(matcher.deliveries()), matcher.early) == ([], 1)

    matcher.apply(KEY, opened("f2", 2))
    assert only(matcher).flow_id == "f2"


def test_a_wait_that_moves_on_gets_another_command_for_the_same_signal(matcher: Matcher) -> None:
    matcher.apply(KEY, opened())
    matcher.apply(KEY, signal())
    before = only(matcher)
    matcher.apply(KEY, WaitMoved("f1", 1, 3))
    after = only(matcher)

    assert (after.revision, after.signal) == (3, before.signal)
    assert after.command_id != before.command_id
    matcher.apply(KEY, closed_by(after))
    assert list(matcher.deliveries()) == []


def test_a_signal_becomes_a_dead_letter_once_all_of_the_audit_is_read(matcher: Matcher) -> None:
    matcher.apply(KEY, signal(at_ms=10))
    matcher.apply(None, AuditRead(0, 10 + TTL_MS))
    matcher.apply(None, AuditRead(1, 9 + TTL_MS))
    assert dead(matcher) == []

    matcher.apply(None, AuditRead(1, 10 + TTL_MS))
    assert dead(matcher) == [("s1", UNCLAIMED)]
    assert matcher.apply(KEY, signal(at_ms=2_000)), "sent again it has another time to live"


def test_a_wait_that_begins_in_time_gets_the_signal_however_late_it_is_read(
    matcher: Matcher,
) -> None:
    matcher.apply(KEY, signal(at_ms=10))
    matcher.apply(None, AuditRead(0, 5_000))
    matcher.apply(KEY, opened(at_ms=9 + TTL_MS))

    assert only(matcher).signal.id == "s1"
    read_up_to(matcher, 6_000)
    assert dead(matcher) == [], "what is assigned has no end"


def test_a_wait_that_begins_too_late_does_not(matcher: Matcher) -> None:
    matcher.apply(KEY, signal(at_ms=10))
    matcher.apply(KEY, opened(at_ms=10 + TTL_MS))

    assert list(matcher.deliveries()) == []


def test_a_signal_given_back_after_its_time_is_a_dead_letter(matcher: Matcher) -> None:
    matcher.apply(KEY, opened())
    matcher.apply(KEY, signal(at_ms=10))
    read_up_to(matcher, 5_000)
    matcher.apply(KEY, closed_otherwise(only(matcher)))

    assert dead(matcher) == [("s1", UNCLAIMED)]


def test_a_delivered_id_is_forgotten_with_its_time(matcher: Matcher) -> None:
    matcher.apply(KEY, opened())
    matcher.apply(KEY, signal(at_ms=10))
    matcher.apply(KEY, closed_by(only(matcher)))
    matcher.take_changes()
    read_up_to(matcher, 5_000)

    changes, unclaimed = matcher.take_changes()
    assert (list(changes.values()), unclaimed) == ([None], [])


def test_what_a_flow_refuses_for_good_is_a_dead_letter_and_the_wait_goes_on(
    matcher: Matcher,
) -> None:
    matcher.apply(KEY, opened())
    matcher.apply(KEY, signal("large"))
    matcher.apply(KEY, signal("small"))
    first = only(matcher)
    matcher.refuse(first, "the state would be too large")
    assert dead(matcher) == [("large", UNDELIVERABLE)]

    assert only(matcher).signal.id == "small"
    matcher.refuse(first, "once more, of before")
    assert dead(matcher) == []


def test_facts_of_a_wait_that_is_not_open_change_nothing(matcher: Matcher) -> None:
    matcher.apply(KEY, WaitMoved("f1", 1, 3))
    matcher.apply(KEY, WaitClosed("f1", 1, 3, "c"))
    matcher.apply(KEY, opened(wait=7))
    matcher.apply(KEY, WaitClosed("f1", 1, 3, "c"))

    assert matcher.open == 1
