"""Run a plan of faults for `taskflow torture`, and print what came of it."""

import os
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from processor.cli.common.output import console, for_people, plain, say, write_json
from processor.cli.common.rows import print_rows
from processor.cli.common.runner import run
from processor.testing.chaos.plan import ChaosPlan, ChaosResult
from processor.testing.chaos.run import torture


def break_everything(plan: ChaosPlan, *, json: bool) -> bool:
    """Print the report; whether nothing was violated."""
    say(f"seed {plan.seed}")
    result = run(lambda: torture(plan, environ=os.environ, notify=say))
    if for_people(json):
        _show(console(), result)
    else:
        write_json(result.as_json())
    return result.ok


def _show(out: Console, result: ChaosResult) -> None:
    rows: list[Sequence[str | Text]] = []
    rows += [(name, f"{count:,}") for name, count in sorted(result.faults.items())]
    rows += [(f"of them kill -9: {what}", f"{n:,}") for what, n in sorted(result.kills.items())]
    rows += [(f"outcomes: {name}", f"{count:,}") for name, count in result.verdicts.most_common()]
    rows += [(f"steps: {name}", f"{count:,}") for name, count in sorted(result.steps.items())]
    print_rows(out, ("what", "how often"), rows)
    healed = ", ".join(f"{name} {value:g} s" for name, value in result.as_json()["heal_s"].items())
    out.print(plain(f"Healed within: {healed or 'there was nothing to heal'}."))
    for sentence in result.repaired:
        out.print(plain(f"A flipped bit, found by verify and gone with its table: {sentence}"))
    for sentence in result.violations:
        out.print(plain(sentence), style="red")
    if result.ok:
        say(
            f"{result.faults.total():,} faults, {result.acknowledged:,} commands, 0 violations; "
            f"seed {result.plan.seed}."
        )
    else:
        say(
            f"{len(result.violations)} violations; seed {result.plan.seed}. Logs, tables and the "
            f"broker's data are in {result.kept}."
        )
