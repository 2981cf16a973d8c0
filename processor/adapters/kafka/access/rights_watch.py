"""Watch whether a running process still has the rights of its role."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from processor.adapters.kafka.access.authorization import rights_probe
from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable, NotAuthorized
from processor.contract.rights import Right, Role, rights
from processor.contract.topics import Topics
from processor.settings import Settings

log = structlog.get_logger()

EVERY_S: Final = 2.0
"""How often the brokers are asked: one small request for the topics, and two for the others."""


class RightsWatch:
    """Asks the brokers as long as `run` runs. A right that was taken away shows in the first record
    that needs it, and then as an error that names neither of them: here it shows by itself."""

    def __init__(
        self, settings: Settings, role: Role, restored: Callable[[], None] = lambda: None
    ) -> None:
        """`restored` is called when nothing is missing any more."""
        self.denied: str | None = None
        """What is missing, in a sentence; None: nothing, as far as a broker has said."""
        self._settings = settings
        self._role = role
        self._restored = restored
        self._wanted = rights(role, Topics(settings.topic_prefix), settings.group_id)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                async with rights_probe(self._settings) as probe:
                    while True:
                        self._found(await probe.missing(self._wanted))
                        await asyncio.sleep(EVERY_S)
            except AccessDenied as error:
                self._say(str(error))
            except BrokerUnreachable as error:
                log.debug("the brokers were not asked for our rights", error=str(error))
            await asyncio.sleep(EVERY_S)

    def _found(self, missing: list[Right]) -> None:
        if missing:
            self._say(str(NotAuthorized.by(self._settings, missing, self._role)))
        elif self.denied is not None:
            self.denied = None
            log.info("no right is missing any more")
            self._restored()

    def _say(self, sentence: str) -> None:
        if sentence != self.denied:
            log.error("Kafka denies what is needed", denied=sentence)
        self.denied = sentence
