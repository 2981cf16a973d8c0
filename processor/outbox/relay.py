"""OutboxRelay: the service of `taskflow outbox`."""

import asyncio
from typing import Any

import structlog

from processor.adapters.postgres.connection import connected
from processor.adapters.postgres.service import DatabaseService
from processor.client.connection import connect
from processor.contract.rights import Operation
from processor.contract.topics import Topics
from processor.outbox.database import OutboxDatabase, outbox_database
from processor.outbox.exchange import OutboxExchange
from processor.outbox.metrics import OutboxMetrics
from processor.runtime import unless_stopped
from processor.settings import Settings

log = structlog.get_logger()


class OutboxRelay(DatabaseService):
    """Sends the rows of a producer's outbox as commands, in the order of each flow, and writes
    their outcomes back. A second relay of the same schema waits until this one ends."""

    def __init__(self, settings: Settings, dsn: str, *, follow: bool = True) -> None:
        """`follow`: run until stopped; else end when all rows have outcomes."""
        self.metrics = OutboxMetrics()
        super().__init__("relay", self.metrics.failures.inc)
        self._settings = settings
        self._topics = Topics(settings.topic_prefix)
        self._database = outbox_database(dsn, settings.outbox_schema)
        self._follow = follow
        self._connection = connect(settings)
        self.metrics.ready.set_function(lambda: float(self.ready))

    @property
    def ready(self) -> bool:
        """Whether it sends commands and awaits outcomes."""
        return self.state == "relaying" and self.failing is None

    def report(self) -> dict[str, Any]:
        """The report of `/ready`."""
        return {
            "ready": self.ready,
            "state": self.state,
            "failing": self.failing,
            "brokers": self._settings.bootstrap_servers,
            "topic": self._topics.commands,
            "schema": self._database.schema,
        }

    async def _work_while_connected(self, stop: asyncio.Event) -> None:
        commands, outcomes = self._topics.commands, self._topics.outcomes
        partitions = (await self._connection.count_partitions([outcomes]))[outcomes]
        await self._connection.count_partitions([commands], Operation.WRITE)
        async with connected(self._database) as connection:
            database = OutboxDatabase(connection, self._database)
            await database.prepare()
            if not await self._alone(database.lock, stop):
                return
            exchange = OutboxExchange(
                self._settings, self._connection, database, self.metrics, self._progressed
            )
            try:
                await unless_stopped(exchange.resume(partitions), stop)
                if stop.is_set():
                    return
                self.state, self.failing = "relaying", None
                log.info("outbox ready", schema=self._database.schema)
                await exchange.run(stop, once=not self._follow)
            finally:
                await exchange.close()
