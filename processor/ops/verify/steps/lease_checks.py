"""Checks of leases that have expired: I17."""

from collections.abc import Callable
from typing import Final

from processor.contract.values import instant
from processor.ops.verify.contract import Doc
from processor.ops.verify.report import Report

TIMER: Final = "taskflow:timer"

Add = Callable[[str, str, str], None]


class LeaseChecks:
    """Sees to it that no record of `commands` that was appended up to a lease's end is decided
    behind the `wake_step` that ended the lease, in one partition.

    A lease that an operator ended by hand is left out. A record counts as appended no earlier than
    any before it in its topic, whatever its time says: the broker's clock may have been set back.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._expired_ms = -1
        """The latest end of a lease that has expired."""
        self._newest_ms = -1
        """The latest append time of the commands that are decided."""

    def expired(self, wake: Doc, due_ms: int) -> None:
        """Take in that `wake` has ended a lease, whose end was `due_ms`."""
        if wake.get("issued_by") == TIMER:
            self._report.checked["I17"] += 1
            self._expired_ms = max(self._expired_ms, due_ms)

    def decided(self, at_ms: int, add: Add) -> None:
        """Check a record of `commands` that was appended at `at_ms`; they come in the order in
        which they were decided."""
        self._newest_ms = max(self._newest_ms, at_ms)
        if self._newest_ms <= self._expired_ms:
            add(
                "I17",
                "decided_after_lease",
                f"It was appended {instant(at_ms)}, but a lease that lasted until "
                f"{instant(self._expired_ms)} had been ended before it was decided.",
            )
