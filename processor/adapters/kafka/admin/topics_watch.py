"""A watch over the topics of a running worker: they are there, with all their partitions."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from processor.adapters.kafka.admin.topic_admin import (
    counted_partitions,
    layout_changed,
    open_admin,
)
from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable
from processor.contract.topics import STEPS, Topics
from processor.settings import Settings

log = structlog.get_logger()

EVERY_S: Final = 2.0
"""How often the brokers are asked, by one small request."""


class TopicsWatch:
    """Asks the brokers for the topics as long as `run` runs.

    The group's consumer asks every five minutes by itself: it is given no partition of a topic that
    is missing, and does not learn that the topic is back.
    """

    def __init__(self, settings: Settings, restored: Callable[[], None] = lambda: None) -> None:
        """`restored` is called when no topic is missing any more."""
        self.missing: str | None = None
        """Which topics are missing and what makes them, in a sentence; None: none."""
        self._settings = settings
        self._restored = restored
        self._topics = dict(Topics(settings.topic_prefix))
        self._unseen: frozenset[str] = frozenset()

    async def run(self) -> None:
        """Until cancelled. Raises TopicsWrong once a topic has another number of partitions."""
        while True:
            try:
                async with open_admin(self._settings) as admin:
                    while True:
                        self._found(await counted_partitions(admin, self._settings, self._topics))
                        await asyncio.sleep(EVERY_S)
            except (BrokerUnreachable, AccessDenied) as error:
                log.debug("the brokers were not asked for the topics", error=str(error))
            await asyncio.sleep(EVERY_S)

    def _found(self, counts: dict[str, int]) -> None:
        for name, count in counts.items():
            # Executors may want more partitions of `steps`.
            if self._topics[name] is not STEPS and count != self._settings.partitions:
                raise layout_changed(name, count, self._settings)
        unseen = frozenset(self._topics) - counts.keys()
        # Twice: while a broker starts, some are not seen.
        missing, self._unseen = sorted(unseen & self._unseen), unseen
        if missing:
            exist = "does not exist" if len(missing) == 1 else "do not exist"
            self._say(
                f"{', '.join(missing)} {exist}, so nothing is decided; `taskflow topics create` "
                "makes what is missing"
            )
        elif self.missing is not None and not unseen:
            self.missing = None
            log.info("no topic is missing any more")
            self._restored()

    def _say(self, sentence: str) -> None:
        if sentence != self.missing:
            log.error("topics are missing", error=sentence)
        self.missing = sentence
