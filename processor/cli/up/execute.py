"""Run the broker, a worker and the views for `taskflow up`."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import typer

from processor.adapters.kafka.admin.topic_admin import create_signal_topics, create_topics
from processor.adapters.kafka.client_config import connection_options, ensure_reachable
from processor.cli.common.child_processes import (
    ViewsChild,
    signals_kept_running,
    views_installed,
    views_kept_running,
)
from processor.cli.common.output import say, somebody_to_ask
from processor.cli.common.runner import WrongUse, embedded_port
from processor.cli.invocation import program_as_called, settings_to_repeat
from processor.embedded.broker import broker_responds, embedded_broker
from processor.embedded.environment import need_extra
from processor.embedded.keeper import kept_running
from processor.errors import ExtraMissing, install_line
from processor.runtime import end_tasks, unless_stopped
from processor.settings import Settings
from processor.telemetry.health_server import OTHERWISE, SIGNALS_OTHERWISE, VIEWS_OTHERWISE
from processor.telemetry.http.held_address import held
from processor.worker.composition import run_worker


async def serve(
    settings: Settings, stop: asyncio.Event, *, use_broker: bool, signals: bool = False
) -> None:
    """Run all of them until `stop` is set; `signals`: `taskflow signals`, too.

    Raises AddressInUse, WrongUse, BrokerUnreachable, ExtraMissing, and what ends an embedded broker
    or a worker.
    """
    if signals and not views_installed():
        raise ExtraMissing("Signals need Faust of", "views")
    async with AsyncExitStack() as stack:
        holders = _hold_addresses(settings, signals=signals)
        try:
            broker = _some_broker(settings, stop, use_broker=use_broker)
            address = await unless_stopped(stack.enter_async_context(broker), stop)
            if address is None or await unless_stopped(create_topics(settings), stop) is None:
                return
            if signals and await unless_stopped(create_signal_topics(settings), stop) is None:
                return
        finally:
            for holder in holders:
                holder.close()
        views: ViewsChild | None = None
        if views_installed():
            views = await stack.enter_async_context(views_kept_running(settings, say))
        if signals:
            await stack.enter_async_context(signals_kept_running(say))
        ready = asyncio.Event()
        working = asyncio.ensure_future(run_worker(settings, stop=stop, ready=ready))
        greeting = asyncio.ensure_future(_greet(settings, address, ready, views))
        try:
            await working
        finally:
            await end_tasks(greeting)


def _hold_addresses(settings: Settings, *, signals: bool) -> list[socket.socket]:
    """Take the addresses of worker, views and signals before Kafka takes its time to start.

    Raises AddressInUse.
    """
    wanted = [(settings.http, OTHERWISE)]
    if views_installed():
        wanted.append((settings.views_http, VIEWS_OTHERWISE))
    if signals:
        wanted.append((settings.signals_http, SIGNALS_OTHERWISE))
    holders: list[socket.socket] = []
    try:
        for address, otherwise in wanted:
            if address is not None:
                holders.append(held(address, otherwise))
    except BaseException:
        for holder in holders:
            holder.close()
        raise
    return holders


@asynccontextmanager
async def _some_broker(
    settings: Settings, stop: asyncio.Event, *, use_broker: bool
) -> AsyncIterator[str]:
    """Raises BrokerUnreachable, WrongUse, BadSetting, and what ends an embedded broker."""
    options = connection_options(settings)
    addresses = options.pop("bootstrap_servers")
    if use_broker:
        await ensure_reachable(settings)
    elif await broker_responds(addresses, **options):
        await asyncio.to_thread(_ask_to_use, settings)
    else:
        port = embedded_port(settings)
        need_extra()
        say("starting Apache Kafka ...")
        async with (
            embedded_broker(
                data_dir=settings.state_dir / "broker",
                port=port,
                heap=settings.broker_heap,
                cache_dir=settings.cache_dir,
            ) as running,
            kept_running(running, stop, say),
        ):
            yield running.bootstrap
        return
    say(f"using the broker at {addresses}")
    yield addresses


def _ask_to_use(settings: Settings) -> None:
    """Raises WrongUse unless a person agrees to use the broker that is there."""
    there = (
        f"A Kafka broker already answers at {settings.bootstrap_servers}. It may be another "
        f"cluster's, behind a forwarded port: `taskflow up` makes the topics "
        f"{settings.topic_prefix}.* there and takes their partitions"
    )
    choice = (
        "Take `--use-broker` to use it, or set TASKFLOW_BOOTSTRAP_SERVERS to another port, such "
        "as 127.0.0.1:9192, for an embedded one."
    )
    if not somebody_to_ask():
        raise WrongUse(f"{there}. {choice}")
    if not typer.confirm(f"{there}. Use it?", err=True):
        raise WrongUse(f"The broker at {settings.bootstrap_servers} is not used. {choice}")


async def _greet(
    settings: Settings, address: str, ready: asyncio.Event, views: ViewsChild | None
) -> None:
    await ready.wait()
    seen = views is not None and await views.ready()
    page = None if views is None else views.url
    say("\n".join(greeting(settings, address, page, seen=seen)))


def greeting(settings: Settings, address: str, page: str | None, *, seen: bool) -> list[str]:
    """What is said once all is up, the page first; `page` is None without views, and `seen` is
    whether they answer."""
    program = program_as_called()
    if page is None:
        first = f"taskflow is up; the page needs {install_line('views')}"
    elif seen:
        first = f"taskflow is up: {page} shows every flow, live"
    else:
        first = "taskflow is up, but the views did not start; see above"
    health = "" if settings.http is None else f", health http://{settings.http}/ready"
    lines = [
        first,
        f"Kafka at {address}, topics {settings.topic_prefix}.*{health}",
        f"data in {settings.state_dir.absolute()}",
        "Type next, in another terminal:",
    ]
    if (line := settings_to_repeat(settings)) is not None:
        lines.append(f"  {line}")
    lines.append(f"  {program} flow create 'Try taskflow'")
    lines.append(f"  {program} audit --follow")
    lines.append(f"  {program} {'top' if seen else 'flow list'}")
    return [*lines, "Ctrl-C ends it; the data stays."]
