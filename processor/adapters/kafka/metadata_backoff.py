"""Asking for metadata at a bearable pace while there is no broker, or no leader, to be found.

aiokafka 0.14 asks again at once, without a pause, for as long as a partition has no leader. That is
the last thing that a broker tells before it shuts down in good order: from then on each client
knocked about 1,000 times a second at its closed door, and the broker that came back had to start
beside them.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from typing import Any, Final

_log = logging.getLogger(__name__)

PAUSE_MIN_S: Final = 0.1
PAUSE_MAX_S: Final = 1.0


def paced(client: Any, *, monotonic: Callable[[], float] = time.monotonic) -> None:
    """Let `client`, an AIOKafkaClient, pause before it asks for metadata once more: from
    PAUSE_MIN_S, doubled with each time in vain, to PAUSE_MAX_S.

    A private step, since nothing public is asked in between; the version is pinned and a test
    guards the name. It is run by the client's own task, so it ends with the client.
    """
    ask = client._metadata_update
    in_vain = 0
    asked_at = monotonic()

    async def ask_after_a_pause(cluster: Any, topics: Collection[str] | None) -> bool:
        nonlocal in_vain, asked_at
        if in_vain:
            pause_s = min(PAUSE_MAX_S, PAUSE_MIN_S * 2 ** min(in_vain - 1, 10))
            await asyncio.sleep(max(0.0, asked_at + pause_s - monotonic()))
        asked_at = monotonic()
        try:
            answered: bool = await ask(cluster, topics)
        except Exception as error:
            # The client's task would end unseen, and whoever awaits metadata would do so for ever.
            _log.warning("metadata could not be asked for: %r", error)
            answered = False
        in_vain = 0 if answered and _all_led(cluster, topics) else in_vain + 1
        return answered

    client._metadata_update = ask_after_a_pause


def _all_led(cluster: Any, topics: Collection[str] | None) -> bool:
    """Whether each known partition of `topics` (none: of all) has a leader."""
    return all(
        cluster.available_partitions_for_topic(topic) == cluster.partitions_for_topic(topic)
        for topic in topics or cluster.topics(exclude_internal_topics=False)
    )
