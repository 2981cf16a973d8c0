"""The simulation is worth what it finds: each wrong build turns it red."""

import pytest

from tests.simulation.defects import DEFECTS
from tests.simulation.running import replay, run


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_found(name: str) -> None:
    defect = DEFECTS[name]

    ran = run(range(defect.within), defect.parts, until_red=True)

    assert ran.red, f"{name}: not found in {defect.within} histories"
    red = ran.red[0]
    print(f"{name}: found in history {ran.histories}\n{red.found[0]}")
    print(f'{replay(red.seed)} --defect "{name}"')
    assert not run([red.seed]).red, "without the defect, the same history is in order"
