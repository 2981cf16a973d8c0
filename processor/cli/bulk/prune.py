"""Prune flows that ended long ago: one command for each, and a preview."""

from collections.abc import Iterable, Sequence

from processor.adapters.sqlite.readonly.queries import Ended
from processor.cli.bulk.execute import SHOWN, BulkExecution, flows
from processor.cli.common.output import (
    console,
    for_people,
    print_rows,
    say,
    status_text,
    write_json,
)
from processor.contract.outcomes import Code
from processor.ops.bulk import BulkAction, BulkTarget, order


def pruning(ended: Iterable[Ended], *, by: str) -> BulkExecution:
    """A `prune` for each at the revision at which it was seen; one that is gone already is done."""
    targets = [BulkTarget(one.flow_id, one.status, one.updated_at, one.revision) for one in ended]
    return BulkExecution(targets, order(BulkAction.PRUNE, by), done=frozenset({Code.NOT_FOUND}))


def preview(ended: Sequence[Ended], json: bool) -> None:
    if not for_people(json):
        for flow in ended:
            write_json(
                {
                    "flow_id": flow.flow_id,
                    "status": flow.status,
                    "updated_at": flow.updated_at,
                    "revision": flow.revision,
                }
            )
    elif ended:
        rows = [
            (flow.flow_id, status_text(flow.status), flow.updated_at[:19].replace("T", " "))
            for flow in ended[:SHOWN]
        ]
        print_rows(console(), ("id", "status", "updated"), rows)
        if len(ended) > SHOWN:
            say(f"… and {flows(len(ended) - SHOWN)} more; --json shows all.")
