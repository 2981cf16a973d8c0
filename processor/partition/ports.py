"""The ports of one partition."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from processor.engine.ports import (
    Forwarder,
    GroupConsumer,
    LogReader,
    OnWait,
    Table,
    TransactionalProducer,
    WorkItemProducer,
)


@dataclass(frozen=True, slots=True)
class PartitionPorts:
    """What a partition processor works with. `open_table`, `new_writer` and `new_history` make the
    parts that one takeover uses; a history reports what it waits for to what it is given."""

    source: GroupConsumer
    forwarder: Forwarder
    work_items: WorkItemProducer
    open_table: Callable[[], AbstractAsyncContextManager[Table]]
    new_writer: Callable[[], TransactionalProducer]
    new_history: Callable[[OnWait], LogReader]
