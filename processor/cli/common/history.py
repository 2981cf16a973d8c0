"""Open a partition's topics for a command that reads them back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiokafka.errors import OffsetOutOfRangeError

from processor.adapters.kafka.client_config import connection_options
from processor.adapters.kafka.errors import explained
from processor.adapters.kafka.log_reader import KafkaLogReader
from processor.cli.common.runner import Refused
from processor.contract.topics import Topics
from processor.settings import Settings


@asynccontextmanager
async def open_history(
    settings: Settings, number: int, role: str, topics: Topics | None = None
) -> AsyncIterator[KafkaLogReader]:
    """The topics of partition `number`, those of the settings' prefix unless told; `role` is the
    client's name. Raises BrokerUnreachable also out of the block, and Refused if retention was
    faster."""
    history = KafkaLogReader(
        connection_options(settings, role),
        number,
        topics=[name for name, _ in topics or Topics(settings.topic_prefix)],
    )
    try:
        with explained(settings):
            yield history
    except OffsetOutOfRangeError as error:
        raise Refused(f"Retention took what was just to be read ({error}); ask again.") from error
    finally:
        await history.close()
