"""Pause between requests for metadata while a broker or a leader is missing.

aiokafka 0.14 asks again at once for as long as a partition has no leader. A broker that shuts down
in good order says so last: each client would then ask about 1,000 times a second.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any, Final

from processor.adapters.kafka.internals import AskForMetadata, pace_metadata
from processor.runtime import backoff_s

_log = logging.getLogger(__name__)

PAUSE_MIN_S: Final = 0.1
PAUSE_MAX_S: Final = 1.0


def back_off_metadata(client: Any, *, monotonic: Callable[[], float] = time.monotonic) -> None:
    """Let `client`, an AIOKafkaClient, pause before it asks for metadata once more.

    From PAUSE_MIN_S, doubled each time that a leader is missing, to PAUSE_MAX_S.
    """
    failures = 0
    asked_at = monotonic()

    def wrap(ask: AskForMetadata) -> AskForMetadata:
        async def ask_after_a_pause(cluster: Any, topics: Collection[str] | None) -> bool:
            nonlocal failures, asked_at
            if failures:
                pause_s = backoff_s(failures - 1, PAUSE_MIN_S, PAUSE_MAX_S)
                await asyncio.sleep(max(0.0, asked_at + pause_s - monotonic()))
            asked_at = monotonic()
            try:
                updated = await ask(cluster, topics)
            except Exception as error:
                # The client's task would end unseen, and what awaits metadata would wait for ever.
                _log.warning("metadata could not be asked for: %r", error)
                updated = False
            failures = 0 if updated and _all_led(cluster, topics) else failures + 1
            return updated

        return ask_after_a_pause

    pace_metadata(client, wrap)


def _all_led(cluster: Any, topics: Collection[str] | None) -> bool:
    """Whether each known partition of `topics` (none: of all) has a leader."""
    return all(
        cluster.available_partitions_for_topic(topic) == cluster.partitions_for_topic(topic)
        for topic in topics or cluster.topics(exclude_internal_topics=False)
    )
