"""The scope of a verification."""

from dataclasses import dataclass

from processor.contract.topics import Topics
from processor.contract.values import instant
from processor.ops.verify.contract import home_of


@dataclass(frozen=True, slots=True)
class Scope:
    """What is to be verified.

    `at_rest`: no load and no lag is expected, after `grace_s` seconds at most; otherwise what is
    under way is left alone. `grace_s` is also how long a transaction may hide what others show.
    `punctual_ms`: how late a wake may be at rest; one that came too early is tried again after a
    minute. `steps_partitions`: how many `steps` has; None: as many as the others.
    """

    topics: Topics
    partitions: int
    window_ms: int
    since_ms: int | None = None
    flow_id: str | None = None
    at_rest: bool = False
    grace_s: float = 30.0
    punctual_ms: int = 90_000
    steps_partitions: int | None = None

    @property
    def chosen(self) -> list[int]:
        """The partitions that are looked at."""
        if self.flow_id is None:
            return [*range(self.partitions)]
        return [home_of(self.flow_id.encode(), self.partitions)]


def left_out(scope: Scope) -> list[str]:
    """What these options, or a consumer's means, do not look at, in sentences."""
    parts = [
        "I8: no consumer can see which producer wrote a record. What two writers would leave "
        "behind is looked for: ids twice or missing, a cursor that goes back, a key twice in one "
        "transaction, an outcome twice.",
        "A table's ledger and its times of waits.",
    ]
    if scope.since_ms is not None:
        parts.append(
            f"Before {instant(scope.since_ms)}: each flow's past, its chain up to the first event "
            "seen, and outcomes that later resends get, are taken as given; flows that "
            "did not change since, and steps in state and tables, are not compared."
        )
    if scope.flow_id is not None:
        parts.append("Other flows; dead letters; records of the flow on other partitions.")
    if scope.flow_id is not None or scope.since_ms is not None:
        parts.append("Copies of what was forwarded.")
    if not scope.at_rest:
        parts.append("I10: commands that are not decided yet may be under way.")
    return parts
