"""The pauses of a partition processor."""

from typing import Final, NamedTuple


class Pace(NamedTuple):
    """The pauses of a partition processor."""

    fetch_s: float = 0.5
    """For commands, before it looks at everything else again."""
    between_s: float = 0.003
    """After a small batch, for the next one to grow."""


PACE: Final = Pace()
