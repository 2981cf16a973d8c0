"""A watch for records of the sources that stay hidden behind an open transaction."""

from collections.abc import Sequence
from typing import Final

from processor.engine.ports import HiddenRecords

NOTICED_AFTER_S: Final = 5.0
"""A producer's transaction that is open for less hides records for a moment, as it should."""


class HiddenRecordsWatch:
    """What stands in the way of deciding, in a sentence, once it has stood there for a while."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[int, float]] = {}

    def look(self, hidden: Sequence[HiddenRecords], at_s: float) -> str | None:
        """Take in what is hidden at `at_s` by a monotonic clock; return what has been so for
        NOTICED_AFTER_S, or None."""
        before, self._since = self._since, {}
        for one in hidden:
            start, since_s = before.get(one.topic, (one.start, at_s))
            self._since[one.topic] = (one.start, since_s if start == one.start else at_s)
        reported = [one for one in hidden if at_s - self._since[one.topic][1] >= NOTICED_AFTER_S]
        return "; ".join(map(str, reported)) or None
