"""Report the progress of the first run in lines."""

import sys
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
    """Counts what came of `sizes` (name -> bytes); prints it at most every EVERY_S seconds."""

    def __init__(self, sizes: Mapping[str, int], progress: Progress) -> None:
        self._sizes = dict(sizes)
        self._progress = progress
        self._began: dict[str, int] = {}
        self._now = ""
        self._printed_at = float("-inf")

    def begin(self, name: str) -> None:
        """The next file, or the same one again from its start."""
        self._now = name
        self._began[name] = 0
        self._print()

    def add(self, size_bytes: int) -> None:
        self._began[self._now] += size_bytes
        self._print()

    def end(self) -> None:
        if self._began:
            self._progress(f"fetching Apache Kafka {KAFKA_VERSION}: {self._how_far()}, done")

    def _print(self) -> None:
        if time.monotonic() - self._printed_at >= EVERY_S:
            self._printed_at = time.monotonic()
            self._progress(
                f"fetching Apache Kafka {KAFKA_VERSION}, this first time only: "
                f"{self._how_far()}, {self._now}"
            )

    def _how_far(self) -> str:
        came, total = sum(self._began.values()) / 1e6, sum(self._sizes.values()) / 1e6
        return f"{len(self._began)} of {len(self._sizes)} jars, {came:.1f} of {total:.1f} MB"
