"""What the signals' application makes Faust's consumer do: take over, then seek; say of each chunk
from which offset on it is complete."""

import inspect
from types import SimpleNamespace
from typing import Any
from unittest import mock

from faust.transport.consumer import ThreadDelegateConsumer
from faust.types import TP

from processor.signals.transport import RestoredConsumer, RestoredThread
from processor.views.faust import transport as chunks
from processor.views.faust.transport import CommittedThread

AUDIT = TP("taskflow.audit", 1)


def records(*offsets: int) -> list[Any]:
    return [SimpleNamespace(offset=offset, value=b"x") for offset in offsets]


def thread(sought: int) -> RestoredThread:
    made = RestoredThread.__new__(RestoredThread)
    made.fetched, made.sought = {}, {AUDIT: sought}
    return made


def test_a_fetch_is_complete_from_where_the_last_one_ended_or_it_was_sought_to() -> None:
    it = thread(100)
    starts = [it._noted(AUDIT, records(*some)).start for some in ((104, 107), (109,))]  # type: ignore[attr-defined]
    it.fetched.clear()
    it.sought = {AUDIT: 50}
    starts.append(it._noted(AUDIT, records(60)).start)  # type: ignore[attr-defined]

    assert starts == [100, 108, 50]


def test_a_chunk_is_complete_from_where_the_one_before_ended() -> None:
    consumer = RestoredConsumer.__new__(RestoredConsumer)
    fetched = thread(100)._noted(AUDIT, records(104, 107, 108, 115))
    with mock.patch.object(chunks, "CHUNK_MAX_RECORDS", 2):
        cut = consumer._cut(fetched)

    assert [(one.start, [r.offset for r in one.records]) for one in cut] == [
        (100, [104, 107]),
        (108, [108, 115]),
    ]


async def test_partitions_are_taken_over_before_it_seeks(monkeypatch: Any) -> None:
    done: list[Any] = []

    async def restore(assigned: set[TP]) -> None:
        done.append(assigned)

    async def seek(_: Any) -> dict[TP, int]:
        done.append("sought")
        return {AUDIT: 1}

    consumer = RestoredConsumer.__new__(RestoredConsumer)
    consumer.transport = SimpleNamespace(restore=restore)  # type: ignore[assignment]
    monkeypatch.setattr(RestoredConsumer, "assignment", lambda _: {AUDIT})
    monkeypatch.setattr(ThreadDelegateConsumer, "seek_to_committed", seek)

    assert await consumer.seek_to_committed() == {AUDIT: 1}
    assert done == [{AUDIT}, "sought"]


def test_what_is_overridden_is_there() -> None:
    assert RestoredThread._noted is not CommittedThread._noted
    assert "self._noted(" in inspect.getsource(CommittedThread._fetch_records)
    seeks = inspect.getsource(ThreadDelegateConsumer.perform_seek)
    assert "await self.seek_to_committed()" in seeks
