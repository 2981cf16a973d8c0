"""A header's name that is not UTF-8 is told with escapes; everything else stays as it is."""

import pytest
from aiokafka.consumer import fetcher
from aiokafka.record.default_records import DefaultRecordBatchBuilder, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

from processor.adapters.kafka.header_names import _Records


def batch(*records, codec=0):
    """The bytes of a record batch, where `\\xff` stands for every ø in a header's name."""
    builder = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, 0, 1_000_000)
    for offset, (key, value, headers) in enumerate(records):
        assert builder.append(offset, 1000 + offset, key, value, headers) is not None
    return bytes(builder.build()).replace("ø".encode(), b"\xff\xfe")


def read(data, reader=_Records):
    records, found = reader(data), []
    while records.has_next():
        found.extend(
            (r.offset, r.timestamp, r.key, r.value, list(r.headers)) for r in records.next_batch()
        )
    return found


GOOD = [
    (b"k", b"v", [("a", b"1"), ("b", None), ("é", b"")]),
    (None, b"v" * 300, []),
    (b"k", None, []),
]
ODD = (b"k", b"ok", [("x", b"1"), ("ø", None), ("", b"2")])


@pytest.mark.parametrize("codec", range(5))
def test_what_is_utf8_is_read_as_ever(codec):
    data = batch(*GOOD, codec=codec) * 2
    assert read(data) == read(data, MemoryRecords)
    assert len(read(data)) == 6


def test_what_is_not_is_escaped_and_the_rest_follows():
    data = batch(GOOD[0], ODD, *GOOD) + batch(*GOOD)
    with pytest.raises(UnicodeDecodeError):
        read(data, MemoryRecords)

    found = read(data)

    assert found[1] == (1, 1001, b"k", b"ok", [("x", b"1"), (r"\xff\xfe", None), ("", b"2")])
    plain = batch(GOOD[0], GOOD[0], *GOOD) + batch(*GOOD)
    assert found[:1] + found[2:] == read(plain)[:1] + read(plain)[2:]


def test_the_fetcher_still_reads_with_the_class_that_is_replaced():
    assert fetcher.MemoryRecords is _Records
    assert "MemoryRecords" in fetcher.Fetcher._proc_fetch_request.__code__.co_names
    assert hasattr(_DefaultRecordBatchPy, "_read_msg")
