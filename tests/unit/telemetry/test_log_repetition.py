"""What libraries repeat is counted, not written."""

import logging

from processor.telemetry.log_repetition import EVERY_S, RepetitionFilter


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def written(some: RepetitionFilter, name: str, message: str, *values: object) -> str | None:
    """The line as it is written; None if it is not."""
    record = logging.LogRecord(name, logging.ERROR, "", 0, message, values, None)
    return record.getMessage() if some.filter(record) else None


def test_a_message_that_repeats_is_written_once_in_a_while_with_its_count() -> None:
    clock = Clock()
    some = RepetitionFilter(clock)

    def knocks(node: int) -> str | None:
        return written(some, "aiokafka", "Unable connect to node with id %s: %s", node, "100% away")

    assert knocks(1) == "Unable connect to node with id 1: 100% away"
    for _ in range(500):
        clock.now_s += EVERY_S / 1000
        assert knocks(2) is None
    clock.now_s = EVERY_S
    assert knocks(3) == (
        f"Unable connect to node with id 3: 100% away (and 500 times since {EVERY_S:.0f} s)"
    )
    assert knocks(3) is None


def test_other_messages_and_other_loggers_are_written_meanwhile() -> None:
    some = RepetitionFilter(Clock())
    assert written(some, "aiokafka.client", "Unable to update metadata")
    assert written(some, "aiokafka.conn", "Unable to update metadata")
    assert written(some, "aiokafka.client", "Topic %s is not there", "t")
    assert written(some, "aiokafka.client", "Unable to update metadata") is None


def test_what_is_rare_again_is_written_as_it_is() -> None:
    clock = Clock()
    some = RepetitionFilter(clock)
    for _ in range(3):
        assert written(some, "aiokafka", "Heartbeat failed") == "Heartbeat failed"
        clock.now_s += EVERY_S


def test_our_own_lines_are_all_written() -> None:
    some = RepetitionFilter(Clock())
    for _ in range(3):
        assert written(some, "processor.worker.worker", "the consumer failed")
