"""Read a partition's topics back, for the commands that do."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from processor.adapters.kafka.admin.topic_admin import partition_counts
from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import (
    PositionLost,
    ReadFailed,
    TopicsWrong,
    explain,
    explained,
)
from processor.adapters.kafka.reader.log_reader import KafkaLogReader
from processor.cli.common.runner import Refused
from processor.contract.topics import Topics
from processor.ops.verify.ports import LogRange
from processor.settings import Settings

PATIENCE_S: Final = 60.0
"""How long a broker may be away while the topics are read in step."""


@contextmanager
def reading_explained(settings: Settings) -> Iterator[None]:
    """Turn what reading raises into sentences for people. Raises BrokerUnreachable, AccessDenied,
    and Refused if retention was faster."""
    try:
        with explained(settings):
            yield
    except PositionLost as error:
        raise Refused(f"Retention took what was just to be read ({error}); ask again.") from error
    except ReadFailed as error:
        raise explain(error.__cause__ or error, settings) from error


@asynccontextmanager
async def open_history(
    settings: Settings, partition: int, role: str, topics: Topics | None = None
) -> AsyncIterator[KafkaLogReader]:
    """The topics of partition `number`, by default those of the settings' prefix; `role` is the
    client's name. Raises as `reading_explained` also out of the block."""
    history = KafkaLogReader(
        connection_options(settings, role),
        partition,
        topics=[name for name, _ in topics or Topics(settings.topic_prefix)],
    )
    try:
        with reading_explained(settings):
            yield history
    finally:
        await history.close()


class PartitionLog:
    """The topics of one partition number, to be read in step; a broker that goes away is waited for
    until that has been in vain for PATIENCE_S."""

    def __init__(self, settings: Settings, partition: int, topics: Topics | None = None) -> None:
        """`topics`: by default those of the settings' prefix."""
        self._reader = reader = KafkaLogReader(
            connection_options(settings, "verify"),
            partition,
            topics=[name for name, _ in topics or Topics(settings.topic_prefix)],
            patience_s=PATIENCE_S,
            in_step=True,
        )
        self.offset_at = reader.offset_at
        self.read = reader.read
        self.close = reader.close

    async def offset_range(self, topic: str) -> LogRange:
        # The stable end first: it is never behind an end that was asked for before.
        stable = await self._reader.stable_end(topic)
        start, end = await self._reader.offset_range(topic)
        return LogRange(start, stable, end)


@asynccontextmanager
async def open_log(
    settings: Settings, partition: int, topics: Topics | None = None
) -> AsyncIterator[PartitionLog]:
    """A PartitionLog; raises as `reading_explained` also out of the block."""
    log = PartitionLog(settings, partition, topics)
    try:
        with reading_explained(settings):
            yield log
    finally:
        await log.close()


async def partitions_of(settings: Settings, topics: Topics) -> tuple[int, int]:
    """How many partitions the topics have, and how many `steps` has, which may be more. Raises
    TopicsWrong if the others differ, or any is missing."""
    there = await partition_counts(settings, [name for name, _ in topics])
    counts = {name: there.get(name) for name, _ in topics}
    if missing := [name for name, count in counts.items() if count is None]:
        raise TopicsWrong(f"{', '.join(missing)} not there; `taskflow topics check` says more.")
    steps = there[topics.steps]
    partitions = {count for name, count in there.items() if name != topics.steps}
    if len(partitions) > 1 or steps < max(partitions):
        raise TopicsWrong(f"The topics differ in their partitions: {counts}; nothing was verified.")
    return partitions.pop(), steps
