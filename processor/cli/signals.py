"""`taskflow signals`: deliver signals to the flows that wait for them.

What the command needs is imported when it runs.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import typer

from processor.cli.common.runner import run_until_stopped, settings_and_logs, stop_with_parent
from processor.errors import ExtraMissing
from processor.runtime import unless_stopped

if TYPE_CHECKING:
    from processor.settings import Settings


def signals(
    with_parent: bool = typer.Option(
        False, "--with-parent", hidden=True, help="Stop when standard input ends."
    ),
) -> None:
    """Deliver signals to the flows that wait for them. It runs until SIGTERM or Ctrl-C.

    A signal is an event that names a topic and a correlation id, as the flow's wait does. Signals
    arrive on the topic `signals`: from `taskflow signal send`, `POST /v1/signals` of the views, or
    any Kafka client. An early signal is kept for TASKFLOW_SIGNAL_TTL. A signal that no flow takes
    in time goes to `signals.deadletters`. All state is in Kafka: start up to one process for each
    partition, and stop any of them at any time.

    It needs the topics of `taskflow topics create --signals`, the extra `views`, and the rights of
    `taskflow topics acls --role signals`.

    Example: `TASKFLOW_SIGNAL_TTL=7d taskflow signals`

    Settings: those of Kafka, TASKFLOW_SIGNAL_TTL, TASKFLOW_SIGNALS_HTTP, TASKFLOW_HTTP_HOSTS,
    TASKFLOW_STATE_DIR.
    """
    settings = settings_and_logs()
    for chatty in ("faust", "mode"):
        logging.getLogger(chatty).setLevel(logging.WARNING)

    async def serve(stop: asyncio.Event) -> None:
        if with_parent:
            stop_with_parent(stop)
        await _serve(settings, stop)

    run_until_stopped(serve)


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    from processor.adapters.kafka.access.authorization import ensure_rights
    from processor.contract.rights import Role
    from processor.telemetry import health_server

    try:
        from processor.signals.service import SignalService
    except ModuleNotFoundError as missing:
        raise ExtraMissing(f"Signals need {missing.name} of", "views") from None

    async def started() -> bool:
        await ensure_rights(settings, Role.SIGNALS)
        return True

    if not await unless_stopped(started(), stop):
        return
    service = SignalService(settings)

    async def report() -> dict[str, Any]:
        return service.report()

    async def scraped() -> bytes:
        return service.metrics.text()

    async with health_server.serve(
        settings.signals_http,
        report=report,
        metrics=scraped,
        hosts=settings.http_hosts,
        otherwise=health_server.SIGNALS_OTHERWISE,
    ):
        await service.run(stop)
