"""The status of a partition processor, as others see it."""

from dataclasses import dataclass
from enum import StrEnum


class PartitionPhase(StrEnum):
    WAITING = "waiting for assignment"
    FENCING = "fencing the last owner"
    RECOVERING = "bringing the table up to date"
    RUNNING = "running"
    BLOCKED = "waiting until work items can be written"
    FAILED = "failed, trying again"
    RELEASED = "released"


@dataclass(slots=True)
class PartitionStatus:
    """How far a partition processor is."""

    progressed_at: float
    """When it last did something, by its monotonic clock."""
    phase: PartitionPhase = PartitionPhase.WAITING
    error: str | None = None
    """What went wrong last; None since the partition runs again."""
    waits: str | None = None
    """What a takeover or the next commands wait for, in a sentence; None: for nothing."""

    def wait_for(self, sentence: str | None) -> None:
        self.waits = sentence
