"""`taskflow up`: run broker, worker and views on this machine until Ctrl-C."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from processor.cli.common.child_processes import ViewsChild, views_beside, views_installed
from processor.cli.common.output import say
from processor.cli.common.runner import embedded_port, run_until_stopped, settings_and_logs
from processor.embedded.broker import broker_answers, embedded_broker
from processor.embedded.environment import need_extra
from processor.errors import install_line
from processor.runtime import end_tasks
from processor.settings import Settings


def up() -> None:
    """Run an embedded broker, a worker and the views until Ctrl-C. The data is kept.

    If a broker already answers at TASKFLOW_BOOTSTRAP_SERVERS, that one is used. Data lives in
    TASKFLOW_STATE_DIR, the broker's in its folder `broker`.

    Example: `taskflow up`

    Settings: all.
    """
    settings = settings_and_logs()
    run_until_stopped(lambda stop: _serve(settings, stop))


async def _serve(settings: Settings, stop: asyncio.Event) -> None:
    from processor.adapters.kafka.topic_admin import create_topics
    from processor.worker.composition import run_worker

    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(_some_broker(settings))
        await create_topics(settings)
        views: ViewsChild | None = None
        if views_installed():
            views = await stack.enter_async_context(views_beside(settings))
        ready = asyncio.Event()
        working = asyncio.ensure_future(run_worker(settings, stop=stop, ready=ready))
        greeting = asyncio.ensure_future(_greet(settings, address, ready, views))
        try:
            await working
        finally:
            await end_tasks(greeting)


@asynccontextmanager
async def _some_broker(settings: Settings) -> AsyncIterator[str]:
    from processor.adapters.kafka.client_config import connection_options

    options = connection_options(settings)
    addresses = options.pop("bootstrap_servers")
    if await broker_answers(addresses, **options):
        say(f"using the broker at {addresses}")
        yield addresses
        return
    port = embedded_port(settings)
    need_extra()
    say("starting Apache Kafka ...")
    async with embedded_broker(
        data_dir=settings.state_dir / "broker",
        port=port,
        heap=settings.broker_heap,
        cache_dir=settings.cache_dir,
    ) as running:
        yield running.bootstrap


async def _greet(
    settings: Settings, address: str, ready: asyncio.Event, views: ViewsChild | None
) -> None:
    await ready.wait()
    seen = views is not None and await views.ready()
    say(f"taskflow is up: Kafka at {address}, topics {settings.topic_prefix}.*")
    if settings.http is not None:
        say(f"health and metrics: http://{settings.http}/ready and /metrics")
    if views is None:
        say(f"no views: they need {install_line('views')}")
    else:
        say(f"flows, live: {views.url}" if seen else "the views did not start; see above")
    say("Type next, in another terminal:")
    say("  taskflow audit --follow")
    say(f"  echo '{EXAMPLE}' | taskflow send --wait")
    say("  taskflow flow list")
    if seen:
        say("  taskflow top")
    say("Ctrl-C ends it; the data stays.")


EXAMPLE = (
    '{"kind":"create_managed","flow_id":"6f1f3a52-0000-4000-8000-000000000001",'
    '"issued_by":"me","controller_id":"trial","goal":"Try taskflow","requester_origin":"terminal"}'
)
