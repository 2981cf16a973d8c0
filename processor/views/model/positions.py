"""Positions that clients hold, checked when they come back: each lies in a partition that there is.

A position that is out of range would make a worker look for events that cannot exist. Pure.
"""

from collections.abc import Collection, Mapping
from typing import Final

from processor.contract.values import EVENTS_PER_PARTITION, parse_timestamp
from processor.views.http.pagination import BadCursor, read_keyset, read_vector
from processor.views.query.queries import BadQuery

_LATEST_MS: Final = parse_timestamp("9999-12-31T23:59:59.999Z")
_FOREIGN: Final = "it is no `next_cursor` of this question"


class Positions:
    """The positions that there are with so many partitions. All checks raise BadQuery."""

    def __init__(self, partitions: int) -> None:
        self._partitions = partitions

    def check_after(self, event_ids: Collection[int]) -> None:
        """The ids are of events that there may be."""
        if not all(self._is_event(event_id) for event_id in event_ids):
            raise BadQuery(
                "after", f"it names no event of the partitions 0 to {self._partitions - 1}"
            )

    def check_flows(self, cursor: str | None, sort: str) -> None:
        """The cursor is (time, first event id)."""
        if cursor is not None:
            at_ms, event_id = self._keyset(cursor, sort, 2)
            self._require(at_ms <= _LATEST_MS and self._is_event(event_id))

    def check_history(self, cursor: str | None, order: str, partition: int) -> None:
        """The cursor is the id of an event of the flow's partition."""
        if cursor is not None:
            (event_id,) = self._keyset(cursor, f"history-{order}", 1)
            self._require(self._is_event(event_id) and _partition_of(event_id) == partition)

    def check_dead_letters(self, cursor: str | None) -> None:
        """The cursor is (time, partition, offset)."""
        if cursor is not None:
            at_ms, partition, _ = self._keyset(cursor, "letters", 3)
            self._require(at_ms <= _LATEST_MS and partition < self._partitions)

    def of_events(self, cursor: str | None) -> dict[int, int] | None:
        """Partition → the id below which to go on, 0 where the partition is done."""
        if cursor is None:
            return None
        try:
            found = read_vector(cursor)
        except BadCursor:
            raise BadQuery("cursor", _FOREIGN) from None
        self._require(
            all(partition < self._partitions for partition in found)
            and all(not at or (self._is_event(at) and _partition_of(at) == p)
                    for p, at in found.items())
        )  # fmt: skip
        return found

    def of_stream(self, last_event_id: str | None) -> dict[int, int]:
        """Partition → the id behind which to go on; partition * 2^40 at its beginning."""
        if last_event_id is None:
            return {}
        try:
            found = read_vector(last_event_id)
        except BadCursor:
            raise BadQuery("last_event_id", "it is no id of an event of a stream") from None
        if not self.holds(found):
            raise BadQuery(
                "last_event_id",
                f"it names events of other partitions than 0 to {self._partitions - 1}",
            )
        return found

    def holds(self, vector: Mapping[int, int]) -> bool:
        """Whether each event id, or beginning, lies in its partition."""
        return all(
            partition < self._partitions and _partition_of(at) == partition
            for partition, at in vector.items()
        )

    def _is_event(self, event_id: int) -> bool:
        partition, sequence = divmod(event_id, EVENTS_PER_PARTITION)
        return sequence > 0 and partition < self._partitions

    def _keyset(self, cursor: str, kind: str, length: int) -> tuple[int, ...]:
        try:
            return read_keyset(cursor, kind, length)
        except BadCursor:
            raise BadQuery("cursor", _FOREIGN) from None

    def _require(self, right: bool) -> None:
        if not right:
            raise BadQuery("cursor", _FOREIGN)


def _partition_of(event_id: int) -> int:
    return event_id // EVENTS_PER_PARTITION
