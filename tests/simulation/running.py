"""Many histories, one after the other, and what they met."""

import gc
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.simulation.executor_history import ExecutorSimulation
from tests.simulation.history import Parts, Result, Simulation


@dataclass(slots=True)
class Ran:
    """What came of some histories; `red` are those in which something did not hold."""

    histories: int = 0
    commands: int = 0
    outcomes: int = 0
    cpu_s: float = 0.0
    virtual_s: float = 0.0
    met: Counter[str] = field(default_factory=Counter)
    red: list[Result] = field(default_factory=list)


def simulation(seed: int, parts: Parts | None = None, *, executors: bool = False) -> Simulation:
    """A history to be run: that of `seed` without executors, or that with them."""
    return (ExecutorSimulation if executors else Simulation)(seed, parts)


def simulate(seed: int, parts: Parts | None = None, *, executors: bool = False) -> Result:
    """What came of the history of `seed`."""
    return simulation(seed, parts, executors=executors).run()


def run(
    seeds: Iterable[int],
    parts: Parts | None = None,
    *,
    executors: bool = False,
    until_red: bool = False,
) -> Ran:
    """The histories of `seeds`; `until_red`: not beyond the first in which something is wrong."""
    ran = Ran()
    started_s = time.process_time()
    with _seldom_collected():
        for seed in seeds:
            result = simulate(seed, parts, executors=executors)
            ran.histories += 1
            ran.commands += result.commands
            ran.outcomes += result.outcomes
            ran.virtual_s += result.virtual_s
            ran.met += result.met
            if result.found:
                ran.red.append(result)
                if until_red:
                    break
    ran.cpu_s = time.process_time() - started_s
    return ran


def summary(ran: Ran) -> str:
    """The figures, and the faults by kind, the most frequent first."""
    lines = [
        f"{ran.histories} histories, {ran.commands} commands, {ran.virtual_s / 3600:.1f} virtual "
        f"hours in {ran.cpu_s:.1f} s of CPU ({ran.histories / ran.cpu_s * 60:.0f} a minute), "
        f"{sum(ran.met.values())} faults, {len(ran.red)} histories red"
    ]
    lines += [f"{count:8}  {fault}" for fault, count in ran.met.most_common()]
    return "\n".join(lines)


def replay(seed: int, *, executors: bool = False) -> str:
    """The command that shows one history again."""
    return f"python -m tests.simulation --seed {seed}" + " --executors" * executors


def report(result: Result) -> str:
    """What a person needs who has a red history."""
    found = "\n".join(result.found[:10])
    tail = "\n".join(f"{s:10.4f}  {who:8}  {what}" for s, who, what in result.trace[-30:])
    return f"{replay(result.seed, executors=result.executors)}\n{found}\n…\n{tail}"


@contextmanager
def _seldom_collected() -> Iterator[None]:
    """A history makes many objects, and cycles only at its end."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)
