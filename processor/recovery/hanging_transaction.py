"""End a hanging transaction of an earlier owner that fencing did not end.

A coordinator may take a transaction for ended of which it wrote no marker. Kafka 4.3 does so for
the partitions that have no leader at that moment (KAFKA-20734), as when a broker stops or comes
back: none of what was written is ever visible then, and neither is what comes later. A marker of
the same producer's next transaction ends it.
"""

from collections.abc import Sequence

import structlog

from processor.engine.batch import PartitionConfig
from processor.engine.ports import LogReader, TransactionalProducer
from processor.recovery.checkpoint import whole

log = structlog.get_logger()


async def end_left_open(
    place: PartitionConfig, history: LogReader, writer: TransactionalProducer, hidden: Sequence[str]
) -> None:
    """Abort what is open under our own transactional id; `writer` has fenced. `hidden`: topics
    whose newest records are hidden by a transaction of any producer.

    Each of our transactions writes to `state`. One that is open there and visible nowhere may be
    aborted, whatever its coordinator had decided: no reader has seen of it, a table that has is
    restored, and its commands are decided again. Of one that is committed on some topics and
    open on others, an abort would leave half: it is left to an operator.
    """
    if place.topics.state in hidden and await whole(place, history):
        log.warning(
            "a transaction stays open after the fence; if it is our own, it is aborted",
            partition=place.partition,
            topics=list(hidden),
        )
        await writer.abort_open()
