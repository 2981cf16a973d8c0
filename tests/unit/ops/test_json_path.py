"""Places in JSON values, written and read, and what differs between two values."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from processor.ops.json_path import ABSENT, Change, changes, parse, same, value_at, written
from tests.support.strategies import JSON, TEXTS


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("$", ()),
        ("$.state_json", ("state_json",)),
        ("state_json.items[0]", ("state_json", "items", 0)),
        ("$.steps['run 1'].status", ("steps", "run 1", "status")),
        ('$["a\\"b"][ -1 ]', ('a"b', -1)),
        (r"$['it\'s \u00e9']", ("it's é",)),
        ("$.é_1", ("é_1",)),
        ("[0]", (0,)),
    ],
)
def test_a_path_is_read(text: str, path: Any) -> None:
    assert parse(text) == path


@pytest.mark.parametrize("text", ["$..a", "$.*", "$[*]", "$[1:2]", "$[?@.a]", "$.", "a b", "$['a]"])
def test_what_names_more_than_one_place_or_none_is_no_path(text: str) -> None:
    with pytest.raises(ValueError, match="is not understood"):
        parse(text)


@given(st.lists(TEXTS | st.integers(-9, 9), max_size=5).map(tuple))
def test_what_is_written_is_read_again(path: Any) -> None:
    assert parse(written(path)) == path


@given(JSON, JSON)
def test_what_differs_is_named_by_its_innermost_places(before: Any, after: Any) -> None:
    found = [*changes(before, after)]

    assert same(before, after) == (not found)
    for change in found:
        path = parse(change.path)
        assert value_at(before, path) is change.before or value_at(before, path) == change.before
        assert value_at(after, path) is change.after or value_at(after, path) == change.after
    assert len({change.path for change in found}) == len(found)


@given(JSON)
def test_a_value_is_the_same_as_itself(value: Any) -> None:
    assert same(value, value)


def test_true_is_not_1_nor_is_1_0() -> None:
    before, after = {"a": 1, "b": 1, "c": [1], "d": None}, {"a": True, "b": 1.0, "c": []}

    assert [*changes(before, after)] == [
        Change("$.a", 1, True),
        Change("$.b", 1, 1.0),
        Change("$.c[0]", 1, ABSENT),
        Change("$.d", None, ABSENT),
    ]
    assert Change("$.d", None, ABSENT).as_json() == {"path": "$.d", "before": None}
