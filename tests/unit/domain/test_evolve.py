"""Evolving believes what it is told, and tells when it cannot."""

import pytest

from processor.contract import EventKind, FlowStatus, instant
from processor.domain.evolve import evolve, fold
from processor.domain.facts import Fact
from tests.support.builders import FLOW_ID, NOON, create, decided, given, start


def test_folding_nothing_changes_nothing() -> None:
    flow = given(create())
    assert fold(flow, ()) is flow


def test_an_event_of_a_flow_that_was_never_created_cannot_be_folded() -> None:
    (started,) = decided(start(), given(create())).facts
    with pytest.raises(ValueError, match=f"never created: {FLOW_ID}"):
        evolve(None, started)


def test_what_is_evolved_is_a_new_flow() -> None:
    flow = given(create())
    fact = Fact(EventKind.STARTED, FLOW_ID, instant(NOON), 1, FlowStatus.RUNNING, {})
    assert evolve(flow, fact) is not flow
    assert (flow.status, flow.revision) == ("created", 0)
