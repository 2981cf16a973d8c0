"""Select the flows or steps of a bulk order, and show them before they are changed."""

from collections.abc import Sequence
from typing import NamedTuple

from processor.cli.bulk.execute import SHOWN, counted_as
from processor.cli.common.output import (
    Row,
    console,
    for_people,
    say,
    short,
    status_text,
    write_json,
)
from processor.cli.common.rows import Column, age, print_rows, short_ids
from processor.cli.flow.lookup import select
from processor.ops.bulk import (
    GOAL_KEPT,
    BulkAction,
    BulkTarget,
    Filter,
    Order,
    StepTarget,
    Target,
    digest,
    order,
    step_order,
)
from processor.ops.step_filter import StepFilter
from processor.runtime import now_ms
from processor.settings import Settings


class BulkSelection(NamedTuple):
    """An action with what it is for: `flows`, or those of their steps that `steps` means.

    `given`: the reason of `fail`, the attempts of `retry_step`.
    """

    action: BulkAction
    flows: Filter
    steps: StepFilter | None
    given: str | int | None

    @property
    def noun(self) -> str:
        return "flow" if self.steps is None else "step"

    async def targets(self, settings: Settings) -> list[Target]:
        """In an order of their own. Raises as `list_flows` does."""
        meant = self.steps
        if meant is None:
            return sorted(await select(settings, "flow", self.flows.target))

        found = await select(
            settings, "step", lambda step: StepTarget.of(step) if meant.matches(step) else None
        )
        named = {step.flow_id for step in found}
        flows = await select(
            settings, "flow", lambda flow: self.flows.target(flow) if flow["id"] in named else None
        )
        open_ids = {flow.flow_id for flow in flows}
        return sorted(
            (step for step in found if step.flow_id in open_ids), key=lambda step: step[:2]
        )

    def digest(self, targets: Sequence[Target]) -> str:
        return digest(self.action, self.given, targets)

    def order(self, by: str) -> Order:
        if self.steps is None:
            return order(self.action, by, None if self.given is None else str(self.given))
        return step_order(self.action, by, None if self.given is None else int(self.given))


def preview(meant: BulkSelection, targets: Sequence[Target], json: bool) -> None:
    """Print what an order is for, and its digest."""
    found, noun = meant.digest(targets), meant.noun
    show_targets(targets, noun, json)
    if not for_people(json):
        where = [str(condition) for condition in meant.flows.where]
        counts = {f"{noun}s": len(targets), "digest": found}
        write_json({"action": meant.action, "where": where, **counts})
        return
    say(f"{meant.action} applies to {counted_as(noun, len(targets))}; digest {found}.")


def show_targets(targets: Sequence[Target], noun: str, json: bool) -> None:
    """Print flows or steps, as `noun` says: all as JSON lines, the first SHOWN for people."""
    if not for_people(json):
        for target in targets:
            write_json(target._asdict())
        return
    columns = _FLOW_COLUMNS if noun == "flow" else _STEP_COLUMNS
    if targets:
        ids, now = short_ids(target.flow_id for target in targets[:SHOWN]), now_ms()
        rows = [_cells(target, ids[target.flow_id], now) for target in targets[:SHOWN]]
        print_rows(console(), columns, rows)
    if len(targets) > SHOWN:
        say(f"… and {counted_as(noun, len(targets) - SHOWN)} more; --json shows all.")


_FLOW_COLUMNS = (
    *(Column("id"), Column("status"), Column("changed"), Column("rev", rank=1)),
    *(Column("owner", 8), Column("goal", 36)),
)
_STEP_COLUMNS = (
    *(Column("flow"), Column("run", 10), Column("status"), Column("changed", rank=2)),
    *(Column("try"), Column("task", 8), Column("holder", 8, rank=1), Column("last failure", 14)),
)


def _cells(target: Target, flow_id: str, now_ms: int) -> Row:
    status, changed = status_text(target.status), age(target.updated_at, now_ms)
    if isinstance(target, BulkTarget):
        goal = short(target.goal, GOAL_KEPT)
        return (flow_id, status, changed, str(target.revision), target.owner, goal)
    tries = f"{target.attempt}/{target.max_attempts}"
    failure, holder = short(target.failure, 200), target.holder or ""
    return (flow_id, target.run_id, status, changed, tries, target.task, holder, failure)
