"""The simulation and `taskflow verify` are worth what they find: a wrong build turns them red."""

import pytest

from tests.simulation.defects import DEFECTS, Defect
from tests.simulation.history import Parts, Simulation
from tests.simulation.running import replay, run
from tests.simulation.verifying import verified


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str) -> None:
    defect = DEFECTS[name]

    first = run([defect.likely], defect.parts)
    if not first.red:
        first = run(range(defect.within), defect.parts, until_red=True)
    assert first.red, f"{name}: not found in {defect.within} histories"
    red = first.red[0]
    print(f"{name}: found in history {red.seed}\n{red.found[0]}")
    print(f'{replay(red.seed)} --defect "{name}"')
    assert not run([red.seed]).red, "without the defect, the same history is in order"

    seen = verify_sees(defect, red.seed)
    print(f"taskflow verify: {seen or 'nothing is wrong with the topics and tables'}")
    assert (seen is None) == (defect.verify is None)


def verify_sees(defect: Defect, seed: int) -> str | None:
    """What it says first of the invariant, from the red history `seed` on: not each one leaves
    traces on the topics."""
    for later in range(seed, defect.within if defect.verify else seed + 1):
        for (invariant, _), violation in verified(ran(later, defect.parts)).first.items():
            if invariant == defect.verify or defect.verify is None:
                return str(violation)
    return None


@pytest.mark.parametrize("seeds", [range(100), range(100, 200)])
def test_what_verify_sees_of_whole_histories_is_in_order(seeds: range) -> None:
    for seed in seeds:
        report = verified(ran(seed))
        assert report.ok, f"{replay(seed)}\n{next(iter(report.first.values()))}"


def ran(seed: int, parts: Parts | None = None) -> Simulation:
    simulation = Simulation(seed, parts)
    simulation.run()
    return simulation
