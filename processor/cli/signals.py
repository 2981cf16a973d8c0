"""`taskflow signals`: deliver signals to the flows that wait for them.

What the command needs is imported when it runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from processor.cli.common.options import ENDS_WITH_PARENT
from processor.cli.common.runner import quiet_faust, run_until_stopped, settings_and_logs
from processor.errors import ExtraMissing

if TYPE_CHECKING:
    from processor.settings import Settings


def signals(with_parent: bool = ENDS_WITH_PARENT) -> None:
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
    quiet_faust()
    run_until_stopped(lambda stop: _serve(settings, stop), with_parent=with_parent)


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    from processor.cli.common.service import run_service
    from processor.contract.rights import Role

    try:
        from processor.signals.service import SignalService
    except ModuleNotFoundError as missing:
        raise ExtraMissing(f"Signals need {missing.name} of", "views") from None
    await run_service(
        SignalService(settings),
        settings,
        stop,
        role=Role.SIGNALS,
        http=settings.signals_http,
        variable="TASKFLOW_SIGNALS_HTTP",
    )
