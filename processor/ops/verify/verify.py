"""Verify all partitions against the contract, one after another."""

from collections.abc import Sequence
from pathlib import Path

from processor.contract.values import instant
from processor.ops.verify.outcomes.forwards import Range, check_forwards
from processor.ops.verify.partition import PartitionVerification
from processor.ops.verify.ports import Logs, Tables, Watcher
from processor.ops.verify.report import Report
from processor.ops.verify.scope import Scope, left_out
from processor.ops.verify.scratch_store import open_scratch
from processor.ops.verify.steps.item_checks import ItemChecks


async def verify(
    scope: Scope,
    logs: Logs,
    tables: Sequence[Tables],
    *,
    watcher: Watcher | None = None,
    scratch_dir: Path | None = None,
) -> Report:
    """Look at all that `scope` names; `tables` are those of each state directory. Raises
    ScratchFailed, and what `logs` and `tables` raise."""
    watcher = watcher or Watcher()
    report = Report(
        mode="at rest" if scope.at_rest else "live",
        since=None if scope.since_ms is None else instant(scope.since_ms),
        flow_id=scope.flow_id,
        partitions=scope.chosen,
    )
    for sentence in left_out(scope):
        report.uncovered(sentence)
    with open_scratch(scratch_dir) as scratch:
        ranges: dict[tuple[str, int], Range] = {}
        ahead: dict[int, int] = {}
        items = ItemChecks(scope, scratch.managed, report)
        for partition in scope.chosen:
            async with logs(partition) as log:
                one = PartitionVerification(scope, partition, log, tables, scratch, report, watcher)
                ahead[partition] = await one.ahead()
        watcher.expect(sum(ahead.values()))
        for partition in scope.chosen:
            scratch.next_partition()
            async with logs(partition) as log:
                one = PartitionVerification(scope, partition, log, tables, scratch, report, watcher)
                ranges |= await one.verify()
            items.folded(partition, one.cut, one.first_event_id)
            # What came or went since then, and what was not needed.
            watcher.expect(one.expected - ahead[partition])
        if scope.flow_id is None and scope.since_ms is None:
            await check_forwards(scratch, report, logs, ranges)
        await items.read(logs, watcher)
    return report
