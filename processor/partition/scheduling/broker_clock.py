"""The broker's clock, as append times show it."""

from typing import Final

CLOCK_WINDOW_S: Final = 60.0


class BrokerClock:
    """The broker's clock, measured by append times against a monotonic clock of this process.

    A record was appended before its append time is known here, so each append time is a lower bound
    of the broker's clock. The highest bound of the last one to two minutes counts. A clock that
    an operator sets on this machine therefore never decides when a flow is woken.
    """

    def __init__(self) -> None:
        self._window_began_s = 0.0
        self._observed_s: float | None = None
        self._ahead_ms: float | None = None
        self._ahead_before_ms: float | None = None

    def observe(self, at_ms: int, at_s: float) -> None:
        """Take in that the broker's clock had reached `at_ms` by `at_s` of ours."""
        ahead_ms = at_ms - at_s * 1000
        if at_s - self._window_began_s > CLOCK_WINDOW_S:
            self._ahead_before_ms, self._ahead_ms = self._ahead_ms, None
            self._window_began_s = at_s
        if self._ahead_ms is None or ahead_ms > self._ahead_ms:
            self._ahead_ms = ahead_ms
        self._observed_s = at_s

    def set_back(self, at_ms: int, at_s: float) -> None:
        """Begin again from this: the broker's clock is not as far as the bounds said."""
        self._ahead_ms = self._ahead_before_ms = None
        self._window_began_s = at_s
        self.observe(at_ms, at_s)

    def now_ms(self, at_s: float) -> int | None:
        """A lower bound of what the broker's clock says at `at_s`; None before the first one."""
        known = [ms for ms in (self._ahead_ms, self._ahead_before_ms) if ms is not None]
        return int(max(known) + at_s * 1000) if known else None

    @property
    def latest_ms(self) -> int:
        """What the broker's clock last said; 0 before that."""
        return 0 if self._observed_s is None else self.now_ms(self._observed_s) or 0

    def age_s(self, at_s: float) -> float:
        """How long ago an append time was last taken in."""
        return float("inf") if self._observed_s is None else at_s - self._observed_s
