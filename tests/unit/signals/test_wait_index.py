"""What the audit says of waits for external events."""

from typing import Any

from processor.signals.facts import SignalFact, WaitClosed, WaitKey, WaitMoved, WaitOpened
from processor.signals.wait_index import WaitIndex

FLOW = "6f1f3a52-0000-4000-8000-000000000001"
KEY = WaitKey("payments", "order-17")
EXTERNAL = {"kind": "external_event", "topic": "payments", "correlation_id": "order-17"}


def event(number: int, kind: str, status: str, revision: int, **payload: Any) -> Any:
    doc = {
        "id": number,
        "flow_id": FLOW,
        "kind": kind,
        "payload_json": payload,
        "revision": revision,
        "status": status,
        "command_id": f"c{number}",
    }
    return doc, 1000 + number


WAITING = event(1, "waiting", "waiting", 2, wait=EXTERNAL)


def facts(index: WaitIndex, *events: Any) -> list[tuple[WaitKey, SignalFact]]:
    return index.apply(events)


def test_a_wait_for_an_external_event_opens_moves_and_closes() -> None:
    index = WaitIndex()
    assert facts(index, WAITING) == [(KEY, WaitOpened(FLOW, 1, 2, 1001))]
    assert facts(index, event(2, "state_updated", "waiting", 3)) == [(KEY, WaitMoved(FLOW, 1, 3))]
    assert facts(index, event(3, "resumed", "running", 4)) == [(KEY, WaitClosed(FLOW, 1, 4, "c3"))]
    assert facts(index, event(4, "finished", "finished", 5)) == []


def test_steps_of_a_flow_that_waits_say_nothing() -> None:
    index = WaitIndex()
    facts(index, WAITING)

    assert facts(index, event(2, "step_observed", "waiting", 2, step={})) == []


def test_other_waits_say_nothing() -> None:
    wait = {"kind": "timer", "at": "2026-11-30T12:00:00.000Z"}

    assert facts(WaitIndex(), event(1, "waiting", "waiting", 2, wait=wait)) == []


def test_a_wait_that_ends_among_the_same_events_says_nothing() -> None:
    index = WaitIndex()
    events = (
        WAITING,
        event(2, "state_updated", "waiting", 3),
        event(3, "cancelled", "cancelled", 4),
    )
    assert facts(index, *events) == []
    assert index.take_changes() == {b"wait/" + FLOW.encode(): None}


def test_what_is_loaded_goes_on_as_before() -> None:
    index, restarted = WaitIndex(), WaitIndex()
    facts(index, WAITING)
    for entry, value in index.take_changes().items():
        assert value is not None
        restarted.load(entry, value)

    assert facts(restarted, event(2, "failed", "failed", 3)) == [
        (KEY, WaitClosed(FLOW, 1, 3, "c2"))
    ]
