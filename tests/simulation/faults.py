"""How often what goes wrong in one history."""

from collections import Counter
from collections.abc import Mapping
from random import Random
from typing import Final

from tests.support.moments import Fault, Op

AT: Final[Mapping[Op, tuple[Fault, ...]]] = {
    Op.OPEN: (Fault.OPEN_FAILS,),
    Op.CONFIRM: (Fault.CONFIRM_FAILS,),
    Op.FENCE: (Fault.FENCE_LOST, Fault.FENCE_UNANSWERED),
    Op.SETTLE: (Fault.HISTORY_FAILS,),
    Op.READ: (Fault.HISTORY_FAILS,),
    Op.FETCH: (Fault.FETCH_FAILS, Fault.FETCH_REPEATS),
    Op.LOAD: (Fault.TABLE_READ_FAILS, Fault.TABLE_CORRUPT),
    Op.TOUCH: (Fault.OTHER_WRITER,),
    Op.FORWARD: (Fault.FORWARD_FAILS, Fault.FORWARD_UNANSWERED),
    Op.PRODUCE: (Fault.BATCH_LOST, Fault.BATCH_UNANSWERED, Fault.BATCH_SPLIT),
    Op.COMMIT: (
        Fault.COMMIT_LOST,
        Fault.COMMIT_UNANSWERED,
        Fault.COMMIT_LATE,
        Fault.COMMIT_TWICE,
        Fault.MARKERS_LATE,
    ),
    Op.WRITE: (Fault.TABLE_WRITE_FAILS,),
    Op.RECOVER: (Fault.TABLE_WRITE_FAILS,),
    Op.OFFER: (Fault.ITEM_FAILS, Fault.ITEM_UNANSWERED),
}
ANYWHERE: Final = (Fault.KILL, Fault.PAUSE, Fault.SLOW)
WORLD: Final = (
    Fault.REBALANCE,
    Fault.WORKER_LEAVES,
    Fault.BROKER_AWAY,
    Fault.CLOCK_BACK,
    Fault.CLOCK_AHEAD,
    Fault.TIME_PASSES,
    Fault.COMPACTION,
    Fault.RETENTION,
    Fault.FOREIGN_TXN,
    Fault.KILL,
    Fault.PAUSE,
)
STEADY: Final = frozenset(
    {
        Op.FETCHED, Op.TOUCH, Op.LOAD, Op.FORWARD, Op.FORWARDED, Op.BEGIN, Op.PRODUCE, Op.COMMIT,
        Op.COMMITTED, Op.WRITE, Op.WRITTEN, Op.OFFER, Op.OFFERED,
    }
)  # fmt: skip
"""The moments of a batch. Those of a takeover are left in peace more often, or no owner would ever
get to a batch."""
OF_STEPS: Final = frozenset({Op.OFFER, Op.OFFERED})
"""The moments that only histories with executors come to."""
FAULTS_OF_STEPS: Final = (
    *(Fault.ITEM_FAILS, Fault.ITEM_UNANSWERED, Fault.EXECUTOR_KILLED, Fault.EXECUTOR_STOPPED),
    *(Fault.EXECUTOR_LAPSES, Fault.EXECUTOR_LATE, Fault.EXECUTOR_REPEATS, Fault.STEPS_GROW),
)
"""The faults that only they meet."""
RATES: Final = (0.05, 0.15, 0.4)
RATES_TAKEOVER: Final = (0.02, 0.05, 0.15)
RATES_ANYWHERE: Final = (0.01, 0.03, 0.06)
RATES_ANYWHERE_TAKEOVER: Final = (0.002, 0.005, 0.02)


class Dice:
    """Which faults one history knows, and when they come. Few kinds at a time, so that each meets
    what only a calmer one lets happen, and some pairs meet often."""

    def __init__(self, rng: Random, *, executors: bool = False) -> None:
        self._rng = rng
        self.met: Counter[str] = Counter()
        self.calm = False
        density = rng.choice((0.05, 0.2, 0.4, 0.7))
        anywhere = [fault for fault in ANYWHERE if rng.random() < density]
        self._at: dict[Op, list[tuple[Fault, float]]] = {}
        for op in [op for op in Op if executors or op not in OF_STEPS]:
            here = (
                (RATES, RATES_ANYWHERE)
                if op in STEADY
                else (RATES_TAKEOVER, RATES_ANYWHERE_TAKEOVER)
            )
            own = [
                (fault, rng.choice(here[0])) for fault in AT.get(op, ()) if rng.random() < density
            ]
            self._at[op] = own + [(fault, rng.choice(here[1])) for fault in anywhere]
        self._world = [fault for fault in WORLD if rng.random() < density]
        self._world_rate = rng.choice((0.2, 0.5, 0.8))

    def at(self, op: Op) -> Fault | None:
        """What goes wrong now, at this moment of somebody's; counted."""
        chances = self._at.get(op)
        if not chances or self.calm:
            return None
        drawn = self._rng.random()
        for fault, chance in chances:
            if drawn < chance:
                self.met[fault] += 1
                if fault is Fault.KILL:
                    self.met[f"{fault}: {op}"] += 1
                return fault
            drawn -= chance
        return None

    def of_world(self) -> Fault | None:
        """What happens now around the workers; counted by whoever does it."""
        if not self._world or self._rng.random() >= self._world_rate:
            return None
        return self._rng.choice(self._world)
