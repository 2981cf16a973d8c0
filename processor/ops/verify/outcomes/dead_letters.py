"""Check dead letters against the quarantined outcomes: I9."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from processor.contract import dead_letters
from processor.contract.headers import ADDED, split_dead_letter
from processor.contract.values import COMMAND_MAX_BYTES, instant
from processor.ops.verify.contract import Doc
from processor.ops.verify.ports import LogRecord
from processor.ops.verify.record_stream import RecordStream
from processor.ops.verify.report import Report

KEPT_BYTES: Final = 2 * 1024 * 1024
"""Of a record with more than this in key and headers, a dead letter repeats less."""


class DeadLetterChecks:
    """`front`: dead letters may have gone, or begin, where outcomes do not."""

    def __init__(self, report: Report, stream: RecordStream, *, front: bool) -> None:
        self.stream = stream
        self._report = report
        self._front = front

    async def check(
        self,
        outcome: Doc,
        record: LogRecord,
        source: LogRecord | None,
        decided_to: Mapping[str, int],
    ) -> None:
        """The letter of a quarantined outcome. `decided_to`: the next offset of each source, this
        outcome's included."""
        place = outcome["source"]["topic"], outcome["source"]["offset"]
        self._report.checked["I9"] += 1
        while (dead_letter := await self.stream.head()) is not None:
            about = _about(dead_letter)
            if about == place:
                await self.stream.take()
                self._front = False
                if source is not None:
                    self._same(dead_letter, outcome, source)
                return
            if about is not None and about[1] >= decided_to.get(about[0], 0):
                break  # a later one's
            await self.stream.take()
            if not self._front:
                self._extra(dead_letter)
        if not self._front:
            self._add(record, "dead_letter_missing", "It was quarantined, but has no dead letter.")

    async def rest(self, cut: Mapping[str, int]) -> None:
        """What no outcome asked for, below the cut."""
        while (dead_letter := await self.stream.take()) is not None:
            about = _about(dead_letter)
            if about is None or (about[1] < cut.get(about[0], 0) and not self._front):
                self._extra(dead_letter)

    def _extra(self, dead_letter: LogRecord) -> None:
        self._add(
            dead_letter,
            "dead_letter_extra",
            "A dead letter of what was not quarantined, or a second one.",
        )

    def _same(self, dead_letter: LogRecord, outcome: Doc, source: LogRecord) -> None:
        value, wrong = source.value, []
        values = (
            *(outcome["code"], outcome["message"], source.topic, str(source.partition)),
            *(str(source.offset), instant(source.timestamp)),
        )
        expected = list(zip(ADDED, values, strict=True))
        if value is not None and len(value) > COMMAND_MAX_BYTES:
            expected.append((dead_letters.TRUNCATED, str(len(value))))
            expected.append((dead_letters.DIGEST, blake2b(value, digest_size=16).hexdigest()))
            value = value[:COMMAND_MAX_BYTES]
        added = [(name, text.encode()) for name, text in expected]
        size = len(source.key or b"") + sum(len(n) + len(v or b"") for n, v in source.headers)
        if size <= KEPT_BYTES:
            added = [*source.headers, *added]
            if dead_letter.key != source.key:
                wrong.append("key")
        if dead_letter.value != value:
            wrong.append("value")
        if list(dead_letter.headers)[-len(added) :] != added or (
            size <= KEPT_BYTES and len(dead_letter.headers) != len(added)
        ):
            wrong.append("headers")
        if wrong:
            what = " and ".join(wrong)
            self._add(dead_letter, "dead_letter_differs", f"Its {what} are not the record's.")

    def _add(self, record: LogRecord, kind: str, message: str) -> None:
        self._report.at(record, "I9", kind, message)


def _about(dead_letter: LogRecord) -> tuple[str, int] | None:
    """Topic and offset of the record that a dead letter is of."""
    _, facts = split_dead_letter(dead_letter.headers)
    if facts is None or facts.source is None:
        return None
    return facts.source.topic, facts.source.offset
