"""The simulation and `taskflow verify` are worth what they find: a wrong build turns them red."""

import pytest

from tests.simulation.defects import DEFECTS, Defect
from tests.simulation.executor_history import BY_ITS_CLOCK
from tests.simulation.history import Parts, Simulation
from tests.simulation.running import replay, run, simulation
from tests.simulation.verifying import verified
from tests.support.moments import Fault


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str) -> None:
    defect = DEFECTS[name]

    executors = defect.executors
    first = run([defect.likely], defect.parts, executors=executors)
    if not first.red:
        seeds = range(defect.within)
        first = run(seeds, defect.parts, executors=executors, until_red=True)
    assert first.red, f"{name}: not found in {defect.within} histories"
    red = first.red[0]
    print(f"{name}: found in history {red.seed}\n{red.found[0]}")
    print(f'{replay(red.seed, executors=executors)} --defect "{name}"')
    right = run([red.seed], executors=executors)
    assert not right.red, "without the defect, the same history is in order"

    seen = verify_sees(defect, red.seed)
    print(f"taskflow verify: {seen or 'nothing is wrong with the topics and tables'}")
    assert (seen is None) == (defect.verify is None)


def verify_sees(defect: Defect, seed: int) -> str | None:
    """What it says first of the invariant, from the red history `seed` on: not each one leaves
    traces on the topics."""
    for later in range(seed, defect.within if defect.verify else seed + 1):
        seen = verified(ran(later, defect.parts, executors=defect.executors))
        for (invariant, _), violation in seen.first.items():
            if invariant == defect.verify or defect.verify is None:
                return str(violation)
    return None


@pytest.mark.parametrize("executors", [False, True])
@pytest.mark.parametrize(
    "seeds",
    [range(50), pytest.param(range(50, 200), marks=pytest.mark.soak)],
    ids=["soon", "later"],
)
def test_what_verify_sees_of_whole_histories_is_in_order(seeds: range, executors: bool) -> None:
    for seed in seeds:
        history = ran(seed, executors=executors)
        found = [
            violation
            for (_, kind), violation in verified(history).first.items()
            if kind not in BY_ITS_CLOCK or not history.dice.met[Fault.CLOCK_BACK]
        ]
        assert not found, f"{replay(seed, executors=executors)}\n{found[0]}"


def ran(seed: int, parts: Parts | None = None, *, executors: bool = False) -> Simulation:
    history = simulation(seed, parts, executors=executors)
    history.run()
    return history
