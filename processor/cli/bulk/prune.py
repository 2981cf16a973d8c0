"""Prune flows that ended long ago: one command for each, and a preview."""

from collections.abc import Iterable, Sequence

from processor.adapters.sqlite.readonly.queries import Ended
from processor.cli.bulk.execute import SHOWN, BulkExecution, flows
from processor.cli.common.output import (
    console,
    for_people,
    say,
    status_text,
    write_json,
)
from processor.cli.common.rows import age, moment, print_rows, short_ids
from processor.contract.outcomes import Code
from processor.ops.bulk import BulkAction, BulkTarget, order
from processor.runtime import now_ms


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
        ids, now = short_ids(flow.flow_id for flow in ended[:SHOWN]), now_ms()
        rows = [
            (
                ids[flow.flow_id],
                status_text(flow.status),
                age(flow.updated_at, now),
                moment(flow.updated_at),
            )
            for flow in ended[:SHOWN]
        ]
        print_rows(console(), ("id", "status", "changed", "at (UTC)"), rows)
        if len(ended) > SHOWN:
            say(f"… and {flows(len(ended) - SHOWN)} more; --json shows all.")
