"""`taskflow views`: run one view worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import typer

from processor.cli.common.options import ENDS_WITH_PARENT
from processor.cli.common.runner import quiet_faust, run_until_stopped, settings_and_logs
from processor.errors import ExtraMissing
from processor.runtime import unless_stopped

if TYPE_CHECKING:
    from processor.settings import Settings


def views(
    rebuild: bool = typer.Option(
        False, "--rebuild", help="Drop the view and project it again from the beginning."
    ),
    with_parent: bool = ENDS_WITH_PARENT,
) -> None:
    """Serve the audit as a page, an HTTP API and live streams. It runs until SIGTERM or Ctrl-C.

    Start as many as there are partitions; they share these out, and each of them answers for
    all. Each needs a state directory and an address TASKFLOW_VIEWS_HTTP of its own; on several
    machines also TASKFLOW_VIEWS_ADVERTISE, where the others find it, and the same
    TASKFLOW_VIEWS_PEER_SECRET as all others. TASKFLOW_VIEWS_READ_TOKEN keeps other readers out.

    Example: `TASKFLOW_VIEWS_HTTP=127.0.0.1:8901 taskflow views`

    Settings: those of Kafka, TASKFLOW_STATE_DIR, TASKFLOW_VIEWS_*.
    """
    settings = settings_and_logs()
    quiet_faust()
    run_until_stopped(lambda stop: _serve(settings, stop, rebuild=rebuild), with_parent=with_parent)


async def _serve(settings: Settings, stop: asyncio.Event, *, rebuild: bool) -> None:
    from processor.adapters.kafka.access.authorization import ensure_startable

    try:
        from processor.views.faust.app import app, role_of
    except ModuleNotFoundError as missing:
        raise ExtraMissing(f"The views need {missing.name} of", "views") from None
    await ensure_startable(settings, role_of(settings))
    app.rebuild = rebuild
    app.loop = asyncio.get_running_loop()
    await app.start()
    try:
        await unless_stopped(app.wait_until_stopped(), stop)
    finally:
        await app.stop()
    if app.crash_reason is not None:
        raise app.crash_reason
