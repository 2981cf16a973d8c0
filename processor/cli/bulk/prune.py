"""Prune flows that ended long ago: one command for each, and a preview."""

from collections.abc import Iterable, Sequence

from processor.adapters.sqlite.readonly.queries import Ended
from processor.cli.bulk.execute import BulkExecution
from processor.cli.bulk.selection import print_targets
from processor.cli.common.output import for_people, write_json
from processor.contract.outcomes import Code
from processor.ops.bulk import BulkAction, BulkTarget, order


def pruning(ended: Iterable[Ended], *, by: str) -> BulkExecution:
    """A `prune` for each at the revision at which it was seen; one that is gone already is done."""
    targets = [_target(one) for one in ended]
    return BulkExecution(targets, order(BulkAction.PRUNE, by), done=frozenset({Code.NOT_FOUND}))


def preview(ended: Sequence[Ended], json: bool) -> None:
    """Print what would be pruned: all of it as JSON lines, the first of it for people."""
    if for_people(json):
        print_targets([_target(one) for one in ended], "flow")
        return
    for one in ended:
        write_json(_target(one)._asdict())


def _target(one: Ended) -> BulkTarget:
    return BulkTarget(
        one.flow_id, one.status, one.updated_at, one.revision, owner=one.owner, goal=one.goal
    )
