"""Conditions on flows: what is read, what is refused, and what is said back."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.ops.conditions import OPERATORS, Condition, parse_condition
from tests.support.strategies import JSON, TEXTS
from tests.unit.ops.documents import FLOW


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("state.label = invoice", '$.state_json.label = "invoice"'),
        ('state.label="invoice"', '$.state_json.label = "invoice"'),
        ("state.label='invoice'", '$.state_json.label = "invoice"'),
        ("$.state_json.label = invoice", '$.state_json.label = "invoice"'),
        ("$.state.label = invoice", '$.state_json.label = "invoice"'),
        ("state_json['label'] = invoice", '$.state_json.label = "invoice"'),
        ("state.label != receipt", '$.state_json.label != "receipt"'),
        ("state.nothing != 1", "$.state_json.nothing != 1"),
        ("state.n = 7.0", "$.state_json.n = 7.0"),
        ("state.n >= 7", "$.state_json.n >= 7"),
        ("state.n>-1", "$.state_json.n > -1"),
        ("state['a = b'] = 1", "$.state_json['a = b'] = 1"),
        ("state.and = and", '$.state_json.and = "and"'),
        ("revision < 4", "$.revision < 4"),
        ('goal ~ "message 7"', '$.goal ~ "message 7"'),
        ("goal ~ message", '$.goal ~ "message"'),
        ("goal ~ 7", '$.goal ~ "7"'),
        ("state.deep[0]['a b'] = null", "$.state_json.deep[0]['a b'] = null"),
        ("state.deep", "$.state_json.deep"),
        ("!state.nothing", "!$.state_json.nothing"),
        ("! wait.timeout_at", "!$.wait_json.timeout_at"),
        ("wait.kind = manual", '$.wait_json.kind = "manual"'),
        ("wait != null", "$.wait_json != null"),
        ("status = waiting", '$.status = "waiting"'),
        ("cancel_requested = false", "$.cancel_requested = false"),
        ("updated_at < 2026-11-23", '$.updated_at < "2026-11-23T00:00:00.000Z"'),
        ("updated_at = 2026-11-22T01:00:00+01:00", '$.updated_at = "2026-11-22T00:00:00.000Z"'),
        ("state.ok = true", "$.state_json.ok = true"),
    ],
)
def test_a_condition_that_holds_and_how_it_is_said_back(text: str, said: str) -> None:
    condition = parse_condition(text)

    assert condition.holds(FLOW)
    assert str(condition) == said


@pytest.mark.parametrize(
    "text",
    [
        "state.label = receipt",
        "state.n = seven",
        "state.n > 7",
        "state.n < x",
        "state.nothing",
        "state.nothing = null",
        "state.nothing < 1",
        "!state.n",
        "state.ok = 1",
        "state.ok < 2",
        "state.n ~ 7",
        "goal ~ Message",
        "goal = 7",
        "wait.timeout_at < 2030-01-01",
    ],
)
def test_a_condition_that_does_not_hold(text: str) -> None:
    assert not parse_condition(text).holds(FLOW)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("state.label !== x", "!== is not an operator; write !="),
        ("state.label == x", "== is not an operator; write = "),
        ("state.label === x", "write = "),
        ("state.label <> x", "write !="),
        ("state.label =~ x", "write ~"),
        ("state.n => 1", "write >="),
        ("state.n =< 1", "write <="),
        ("state.n && 1", "&& is not an operator; allowed are = != < <= > >= ~"),
        ("state.label = x and state.n = 7", "a --where of its own"),
        ("state.label = x && state.n = 7", "a --where of its own"),
        ("state.label = x or y", "a --where of its own"),
        ("goal ~ message 7", "in quotes"),
        ("state.label = a=b", "in quotes"),
        ("state.label = 'a' 'b'", "in quotes"),
        ("state.label is x", "'is x' does not begin with an operator"),
        ("state.label and goal", "does not begin with an operator"),
        ("not state.label", "no field 'not'"),
        ("state.label =", 'the empty text is ""'),
        ("!state.label = x", "! is for a path alone"),
        ("", "not understood"),
        ("= 3", "not understood"),
        ("'x' = 3", "not understood"),
        ("state..x = 1", "does not begin with an operator"),
        ("labels = 1", "no field 'labels'"),
        ("sate.label = 1", "did you mean state"),
        ("steps['a'].status = running", "no field 'steps'"),
        ("$ = 1", "name a field"),
        ("goal", "every flow has goal"),
        ("!cancel_requested", "every flow has cancel_requested"),
        ("goal.x = 1", "nothing lies within goal"),
        ("goal.x", "nothing lies within goal"),
        ("status = runing", "created, running"),
        ("status ~ run", "created, running"),
        ("cancel_requested = yes", "true or false"),
        ("revision > three", "whole number"),
        ("revision ~ 3", "whole number"),
        ("revision > 1.5", "whole number"),
        ("updated_at < 10m", "a time such as"),
        ("updated_at ~ 2026", "a time such as"),
        ("wait.kinds = manual", "a wait has no field 'kinds'"),
        ("!wait.kinds", "a wait has no field 'kinds'"),
        ("wait.kind = manuel", "compared by = or != with"),
        ("wait.timeout_at < soon", "a time such as"),
        ("state.label = 'a\\q'", "is no name"),
        ("state[99999999999999999999] = 1", "does not begin with an operator"),
        ("state.x = \udcff", "not UTF-8"),
    ],
)
def test_anything_else_is_refused_with_what_is_allowed(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=r".+") as refused:
        parse_condition(text)
    assert why in str(refused.value)


VALUES = JSON.filter(lambda value: not isinstance(value, float) or value == value)


@given(
    st.lists(TEXTS | st.integers(-9, 9), min_size=1, max_size=4),
    st.sampled_from([*OPERATORS, "", "!"]),
    VALUES,
    TEXTS,
)
def test_what_is_said_back_is_read_again(
    inner: list[str | int], by: str, value: Any, text: str
) -> None:
    given_value = None if by in ("", "!") else text if by == "~" else value
    condition = Condition(("state_json", *inner), by, given_value)

    assert parse_condition(str(condition)) == condition
