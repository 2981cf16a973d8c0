"""`python -m tests.simulation --seed S` replays one history and tells it line by line;
`--histories N` runs N of them, from that seed on, and tells what went wrong in each that did."""

import argparse
import sys

from tests.simulation.defects import DEFECTS
from tests.simulation.history import Parts
from tests.simulation.running import replay, run, simulate, summary


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--histories", type=int, default=1, help="how many seeds, one by one")
    parser.add_argument("--executors", action="store_true", help="histories with managed steps")
    parser.add_argument("--defect", choices=list(DEFECTS), help="with this defect planted")
    given = parser.parse_args()
    parts = DEFECTS[given.defect].parts if given.defect else Parts()
    executors = given.executors
    if given.histories == 1:
        result = simulate(given.seed, parts, executors=executors)
        for at_s, who, what in result.trace:
            print(f"{at_s:10.4f}  {who:8}  {what}")
        print(f"digest {result.digest}")
        for sentence in result.found:
            print(sentence)
        return bool(result.found)
    ran = run(range(given.seed, given.seed + given.histories), parts, executors=executors)
    print(summary(ran))
    for result in ran.red:
        print(f"{replay(result.seed, executors=executors)}\n    {result.found[0]}")
    return bool(ran.red)


if __name__ == "__main__":
    sys.exit(main())
