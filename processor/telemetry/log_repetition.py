"""Log lines of libraries that repeat: the first is written, the others are counted.

While a broker is away, each client of aiokafka logs each attempt to connect: 70 lines a second.
"""

import logging
import time
from collections.abc import Callable
from typing import Final

LIBRARIES: Final = ("aiokafka", "faust", "mode")
EVERY_S: Final = 30.0
"""A message that repeats is written this often, with how often it came meanwhile."""


class RepetitionFilter(logging.Filter):
    """Lets a message of a library through once in EVERY_S, by its text without its values."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._written_at: dict[tuple[str, str], float] = {}
        self._held_back: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in LIBRARIES:
            return True
        if record.exc_info and (error := record.exc_info[1]) is not None:
            # What it means to us is logged by us; a traceback of a library's insides does not help.
            record.msg, record.args = f"{record.getMessage()}: {error!r}", ()
            record.exc_info = None
        key = record.name, str(record.msg)
        now = self._monotonic()
        written_at = self._written_at.get(key)
        if written_at is not None and now - written_at < EVERY_S:
            self._held_back[key] = self._held_back.get(key, 0) + 1
            return False
        self._written_at[key] = now
        if count := self._held_back.pop(key, 0):
            assert written_at is not None, "what was held back was written before"
            record.msg = f"{record.getMessage()} (and {count} times since {now - written_at:.0f} s)"
            record.args = ()
        return True
