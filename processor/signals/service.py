"""Run `taskflow signals` until stopped, and restart its Faust application after an error."""

import asyncio
from typing import Any, Final

import structlog

from processor.adapters.kafka.access.rights_watch import RightsWatch
from processor.adapters.kafka.admin.topic_admin import count_partitions
from processor.client import FlowClient
from processor.contract.rights import Operation, Role
from processor.contract.topics import SignalTopics, Topics
from processor.runtime import backoff_s, end_tasks, private_directory, sleep_unless, unless_stopped
from processor.settings import Settings
from processor.signals.app import FOLDER, SignalsApp
from processor.signals.metrics import SignalMetrics

BACKOFF_MIN_S: Final = 0.5
BACKOFF_MAX_S: Final = 10.0
HEALTHY_S: Final = 30.0
"""Seconds after which an application counts as healthy: the back-off begins anew."""

log = structlog.get_logger()


class SignalService:
    """The service of `taskflow signals`: matches signals with waits while `run` runs."""

    def __init__(self, settings: Settings) -> None:
        self.metrics = SignalMetrics()
        self.metrics.ready.set_function(lambda: float(self.ready))
        self._settings = settings
        self._app: SignalsApp | None = None
        self._failing: str | None = None
        self._rights = RightsWatch(settings, Role.SIGNALS)

    @property
    def ready(self) -> bool:
        """Whether all assigned partitions are taken over and served."""
        app = self._app
        return (
            app is not None and app.assigned and app.failure is None and self._rights.denied is None
        )

    def report(self) -> dict[str, Any]:
        """The report of `/ready`."""
        return {
            "ready": self.ready,
            "failing": self._failing,
            "denied": self._rights.denied,
            "brokers": self._settings.bootstrap_servers,
            "prefix": self._settings.topic_prefix,
            "next_offsets": {} if self._app is None else self._app.report(),
        }

    async def run(self, stop: asyncio.Event) -> None:
        """Match until `stop` is set, also after brokers were away.

        Raises BrokerUnreachable if no broker responds at the start, and TopicsWrong, AccessDenied.
        """
        settings = self._settings
        private_directory(settings.state_dir)
        private_directory(settings.state_dir / FOLDER)
        names = [Topics(settings.topic_prefix).audit]
        names += [name for name, _ in SignalTopics(settings.topic_prefix)]
        counts = await count_partitions(settings, names, Operation.DESCRIBE)
        watching = asyncio.create_task(self._rights.run())
        try:
            async with FlowClient(settings, session="taskflow:signals", expire=False) as client:
                await self._run_apps(stop, counts, client)
        finally:
            await end_tasks(watching)

    async def _run_apps(
        self, stop: asyncio.Event, counts: dict[str, int], client: FlowClient
    ) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while not stop.is_set():
            began_s = loop.time()
            failure = await self._run_app(stop, counts, client)
            if failure is None:
                return
            self._failing = f"{type(failure).__name__}: {failure}"
            self.metrics.failures.inc()
            log.warning("signals start again", error=self._failing)
            failures = 0 if loop.time() - began_s > HEALTHY_S else failures
            await sleep_unless(stop, backoff_s(failures, BACKOFF_MIN_S, BACKOFF_MAX_S))
            failures += 1

    async def _run_app(
        self, stop: asyncio.Event, counts: dict[str, int], client: FlowClient
    ) -> BaseException | None:
        """Run one application. Returns the error that ended it; None if it was stopped."""
        app = self._app = SignalsApp(self._settings, counts, client, self.metrics)
        app.loop = asyncio.get_running_loop()
        ended = asyncio.ensure_future(self._until_it_ends(app))
        try:
            await app.start()
            await unless_stopped(asyncio.shield(ended), stop)
        finally:
            await end_tasks(ended)
            await app.stop()
            await app.release()
        if stop.is_set():
            return None
        return app.failure or app.crash_reason or RuntimeError("Faust ended the application")

    async def _until_it_ends(self, app: SignalsApp) -> None:
        stopped = asyncio.ensure_future(app.wait_until_stopped())
        failed = asyncio.ensure_future(app.failed.wait())
        try:
            await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(stopped, failed)
