"""Rows as PostgreSQL can hold them."""

import json

import pytest

from processor.adapters.postgres.texts import json_text, text
from processor.sink.rows import json_arrays


def test_rows_come_in_arrays_of_a_size_that_a_statement_takes() -> None:
    docs = [b'{"n":%d}' % n for n in range(7)] + [b'{"n":"%b"}' % (b"x" * 50)]
    arrays = [json.loads(array) for array in json_arrays(docs, max_bytes=24)]
    assert [len(array) for array in arrays] == [3, 3, 1, 1]
    assert [row for array in arrays for row in array] == [json.loads(doc) for doc in docs]


def test_nothing_is_no_array() -> None:
    assert json_arrays([]) == []


@pytest.mark.parametrize(
    "value", ["\0", "a\0b", "\\u0000", "\\\0", "\\\\u0000", "\0\0", "é\\", 'q"\0', "u0000"]
)
def test_a_nul_is_replaced_in_json_and_what_looks_like_one_is_kept(value: str) -> None:
    written = json_text(json.dumps({value: [value]}, ensure_ascii=False))
    assert "\\u0000" not in written.replace("\\\\", "")
    assert json.loads(written) == {text(value): [text(value)]}
