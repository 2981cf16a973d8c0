"""Report the progress of the first run in lines."""

import sys
import threading
import time
from collections.abc import Callable, Mapping

from processor.embedded.maven import KAFKA_VERSION

Progress = Callable[[str], None]
"""Hears one line at a time, from whatever thread does the work. What it raises ends the work."""

EVERY_S = 0.5


def to_stderr(line: str) -> None:
    """The usual `Progress`: a terminal sees one line that changes, a log file sees a few lines."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if line.endswith("done") else ""))
    else:
        sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Meter:
    """Counts what came of `sizes` (name -> bytes), from several threads; prints it at most every
    EVERY_S seconds.

    What `progress` raises once, every later call raises: all fetches end.
    """

    def __init__(self, sizes: Mapping[str, int], progress: Progress) -> None:
        self._sizes = dict(sizes)
        self._progress = progress
        self._came = dict.fromkeys(sizes, 0)
        self._complete = 0
        self._printed_at = float("-inf")
        self._given_up: BaseException | None = None
        self._lock = threading.Lock()

    def begin(self, name: str) -> None:
        """A file is fetched, or once more from its start."""
        with self._lock:
            self._came[name] = 0
            self._print()

    def add(self, name: str, size_bytes: int) -> None:
        """So much more of a file came."""
        with self._lock:
            self._came[name] += size_bytes
            self._print()

    def end(self, name: str) -> None:
        """A file is complete; the last one ends the line."""
        with self._lock:
            self._complete += 1
            if self._complete == len(self._sizes):
                self._progress(f"fetching Apache Kafka {KAFKA_VERSION}: {self._how_far()}, done")

    def _print(self) -> None:
        if self._given_up is not None:
            raise self._given_up
        if time.monotonic() - self._printed_at < EVERY_S:
            return
        self._printed_at = time.monotonic()
        first = "this first time only"
        try:
            self._progress(f"fetching Apache Kafka {KAFKA_VERSION}, {first}: {self._how_far()}")
        except BaseException as error:
            self._given_up = error
            raise

    def _how_far(self) -> str:
        came, total = sum(self._came.values()) / 1e6, sum(self._sizes.values()) / 1e6
        return f"{self._complete} of {len(self._sizes)} jars, {came:.1f} of {total:.1f} MB"
