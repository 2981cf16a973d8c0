"""Check that a command counts once within the dedupe window: I2."""

from typing import Any, Final

from processor.ops.verify.contract import FORGOTTEN, Doc, canonical, hash16
from processor.ops.verify.report import Report
from processor.ops.verify.scratch_store import ScratchStore, SeenOutcome
from processor.ops.verify.steps.checks import Add

_REPEATED: Final = ("code", "message", "revision", "status", "event_ids", "details")
"""What a duplicate takes over from the first outcome."""


class ResendChecks:
    """Keeps the first outcome of each command of a partition, and holds resends against it."""

    def __init__(self, scratch: ScratchStore, report: Report, *, window_ms: int) -> None:
        self._scratch = scratch
        self._report = report
        self._window_ms = window_ms
        self._front_ms: int | None = None

    def begin(self, front_ms: int) -> None:
        """Note that the outcomes read begin at `front_ms`: earlier first outcomes are unknown."""
        if self._front_ms is None:
            self._front_ms = front_ms

    def forget(self, before_ms: int) -> None:
        """No command appended before `before_ms` comes any more. Kept twice as long as needed, for
        a broker's clock that was set back."""
        self._scratch.forget_outcomes(before_ms - 2 * self._window_ms)

    def check(self, outcome: Doc, at_ms: int, add: Add) -> None:
        """Check the outcome of a command appended at `at_ms`."""
        verdict, code = outcome["verdict"], outcome["code"]
        if verdict in ("quarantined", "forwarded"):
            return
        self._report.checked["I2"] += 1
        key = hash16(f"{outcome['flow_id']}{outcome['command_id']}".encode())
        first = self._scratch.outcome(key)
        if first is not None and at_ms - first.at_ms > self._window_ms:
            first = None
        resent = verdict == "duplicate" or code == "idempotency_conflict"
        if first is None:
            unknown = self._front_ms is not None and at_ms - self._window_ms <= self._front_ms
            if resent and not unknown:
                add(
                    "I2",
                    "first_taken_for_resend",
                    f"{verdict}, but it was sent for the first time within the window.",
                )
        elif first.command != outcome["command_digest"]:
            if code != "idempotency_conflict":
                add("I2", "conflict_not_seen", f"{verdict}, but its id stands for another command.")
        elif verdict != "duplicate":
            add(
                "I2",
                "accepted_twice" if verdict == "accepted" else "resend_not_seen",
                f"Sent again within the window, and {verdict} again.",
            )
        elif first.repeated != _repeated_hash(outcome, outcome["original"]):
            add("I2", "another_answer", "The resend got another outcome than the first.")
        if first is None and not resent and not outcome["dry_run"] and code not in FORGOTTEN:
            seen = SeenOutcome(at_ms, outcome["command_digest"], _repeated_hash(outcome, verdict))
            self._scratch.put_outcome(key, seen)


def _repeated_hash(outcome: Doc, verdict: Any) -> bytes:
    return hash16(canonical([verdict, *(outcome[name] for name in _REPEATED)]))
