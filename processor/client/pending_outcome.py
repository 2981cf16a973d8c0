"""Match outcomes to pending calls of `send`. No clock, no I/O."""

from asyncio import Future, get_running_loop
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from processor.contract import Outcome, Source
from processor.contract.outcomes import FORGOTTEN

SEEN_MAX: Final = 16
"""Outcomes that one call keeps before it knows where its own record lies."""


class NoLongerRead(Exception):
    """The outcomes are no longer read; the text says why."""


class Pending:
    """One call of `send` that awaits its outcome.

    Exact as long as it can be: the outcome is the one whose source is the record that this
    call produced, so that of two calls with the same command id one gets `accepted` and the
    other `duplicate`. It becomes loose, and takes any final outcome of an equal command on the
    same topic, when its record's place cannot be known: the record was forwarded, or Kafka may
    have it without having said where.
    """

    def __init__(self, key: bytes, command_id: str, digest: str, topic: str) -> None:
        self.key = key
        self.command_id = command_id
        self.future: Future[Outcome] = get_running_loop().create_future()
        self._digest = digest
        self._topic = topic
        self._source: Source | None = None
        self._loose = False
        self._seen: deque[Outcome] = deque(maxlen=SEEN_MAX)

    def written(self, source: Source | None) -> None:
        """Kafka has the record; None: at an unknown place."""
        self._source = source
        self._loose = self._loose or source is None
        self._settle()

    def written_twice(self) -> None:
        """The record is written once more, and may be there already."""
        self._loose = True
        self._settle()

    def offer(self, outcome: Outcome) -> None:
        """An outcome under this key, with this command id or none."""
        self._seen.append(outcome)
        self._settle()

    def at_the_deadline(self) -> Outcome | None:
        """The outcome of another sending of an equal command, if it holds for this one too."""
        if self.future.done() and not self.future.cancelled() and not self.future.exception():
            return self.future.result()
        return next((o for o in self._finals() if o.code not in FORGOTTEN), None)

    def _settle(self) -> None:
        if self.future.done():
            return
        for outcome in self._seen:
            if outcome.source == self._source:
                if outcome.final:
                    self.future.set_result(outcome)
                    return
                self._loose = True
        if self._loose and (final := next(self._finals(), None)) is not None:
            self.future.set_result(final)

    def _finals(self) -> Iterator[Outcome]:
        return (outcome for outcome in self._seen if outcome.final and self._is_equal(outcome))

    def _is_equal(self, outcome: Outcome) -> bool:
        return (
            outcome.command_id == self.command_id
            and outcome.command_digest == self._digest
            and outcome.source.topic == self._topic
        )


class Registry:
    """All pending calls, found by record key first, so that others' outcomes need no parsing."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, dict[str, list[Pending]]] = {}

    def __len__(self) -> int:
        return sum(1 for _ in self._all())

    @contextmanager
    def holding(self, pending: Pending) -> Iterator[None]:
        """`pending` gets outcomes inside the block."""
        pendings = self._by_key.setdefault(pending.key, {}).setdefault(pending.command_id, [])
        pendings.append(pending)
        try:
            yield
        finally:
            pendings.remove(pending)
            if not pendings:
                del self._by_key[pending.key][pending.command_id]
            if not self._by_key[pending.key]:
                del self._by_key[pending.key]
            if pending.future.done() and not pending.future.cancelled():
                pending.future.exception()  # retrieved, so that asyncio does not log it

    def wants(self, key: bytes | None) -> bool:
        return key in self._by_key

    def deliver(self, key: bytes, outcome: Outcome) -> None:
        """Offers `outcome`, found under `key`, to all whom it may concern."""
        by_id = self._by_key.get(key, {})
        if outcome.command_id is None:
            # The processor could not read its command id; the source may identify it.
            for pendings in by_id.values():
                for pending in pendings:
                    pending.offer(outcome)
            return
        for pending in by_id.get(outcome.command_id, ()):
            pending.offer(outcome)

    def fail(self, reason: str) -> None:
        """Ends every call."""
        for pending in self._all():
            if not pending.future.done():
                pending.future.set_exception(NoLongerRead(reason))

    def _all(self) -> Iterator[Pending]:
        return (p for by_id in self._by_key.values() for ps in by_id.values() for p in ps)
