"""`update_state`, and how a patch is merged."""

from typing import Any

import pytest

from processor.contract import Code
from processor.domain.decision import rejected
from processor.domain.evolve import merge
from tests.support.builders import accepted, create, decided, given, set_waiting, start, update


@pytest.mark.parametrize(
    ("state", "patch", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3, "c": 4}, {"a": 1, "b": 3, "c": 4}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"b": 9}}, {"a": {"b": 9}}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": 1}, {}, {"a": 1}),
        ({"a": 1}, [1], [1]),
        ({"a": 1}, None, None),
        (7, {"a": 1}, {"a": 1}),
        (None, {"a": 1}, {"a": 1}),
    ],
)
def test_a_patch_is_merged_by_its_top_level_keys(state: Any, patch: Any, merged: Any) -> None:
    assert merge(state, patch) == merged


def test_merging_leaves_both_sides_as_they_are() -> None:
    state, patch = {"a": 1}, {"b": 2}
    merge(state, patch)
    assert (state, patch) == ({"a": 1}, {"b": 2})


@pytest.mark.parametrize("past", [[], [start()], [start(), set_waiting()]])
def test_a_live_flow_takes_a_patch_and_keeps_its_status(past: Any) -> None:
    flow = given(create(state_json={"a": 1}), *past)
    after = accepted(update({"b": 2}), flow)
    assert (after.state_json, after.status, after.wait_json) == (
        {"a": 1, "b": 2},
        flow.status,
        flow.wait_json,
    )
    assert after.revision == flow.revision + 1


def test_a_null_patch_is_a_value_and_replaces_the_state() -> None:
    flow = given(create(state_json={"a": 1}))
    (fact,) = decided(update(None), flow).facts
    assert fact.payload == {"patch": None, "next_step": None}
    assert accepted(update(None), flow).state_json is None


def test_the_next_step_becomes_the_current_one() -> None:
    assert accepted(update({}, next_step="fetch"), given(create())).current_step == "fetch"


@pytest.mark.parametrize("fields", [{}, {"next_step": None}])
def test_without_a_next_step_the_current_one_stays(fields: Any) -> None:
    assert accepted(update({}, **fields), given(create())).current_step == "init"


def test_it_is_the_merged_state_that_must_not_be_too_large() -> None:
    half = "x" * (128 * 1024)
    flow = given(create(state_json={"a": half}))
    assert decided(update({"a": half}), flow).accepted
    assert decided(update({"b": half}), flow) == rejected(
        Code.STATE_TOO_LARGE,
        field="state_json",
        size_bytes=2 * len(half) + len('{"a":"","b":""}'),
        limit_bytes=256 * 1024,
    )
