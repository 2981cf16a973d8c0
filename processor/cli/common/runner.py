"""Running a command: its settings, its event loop, its end by a signal."""

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from processor.adapters.kafka.record_decoder import read_any_record
from processor.cli.common.output import say
from processor.errors import TaskflowError
from processor.settings import Address, BadSetting, Settings, load_settings
from processor.telemetry.logging import configure_logs

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WrongUse(TaskflowError):
    """The command was not given what it needs; nothing was done."""


class Refused(TaskflowError):
    """The answer was no; the sentence says what was refused."""


class Interrupted(BaseException):
    """A signal ended the command, after it had cleaned up."""


def settings_and_logs(*, quiet: bool = False) -> Settings:
    """The settings from the environment, with logs set up accordingly. Raises BadSetting.

    `quiet`: for a command that ends by itself, where aiokafka's retries are nobody's concern and
    what fails is said in a sentence.
    """
    settings = load_settings(warn=lambda sentence: say(f"warning: {sentence}"))
    configure_logs(settings)
    read_any_record()
    if quiet:
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return settings


def run(command: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it on a new loop; SIGINT and SIGTERM cancel it, and it may clean up.

    Raises Interrupted when such a signal came first.
    """

    async def cancellable() -> T:
        task = asyncio.ensure_future(command())
        signalled = _on_signals(lambda: task.cancel())
        try:
            return await task
        except asyncio.CancelledError:
            if signalled():
                raise Interrupted from None
            raise
        finally:
            task.cancel()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(cancellable())


def run_until_stopped(service: Callable[[asyncio.Event], Coroutine[Any, Any, None]]) -> None:
    """Run a service on a new loop; SIGINT and SIGTERM set the event that it gets.

    A second signal cancels it.
    """

    async def stoppable() -> None:
        stop = asyncio.Event()
        task = asyncio.ensure_future(service(stop))

        def again_or_stop() -> None:
            if stop.is_set():
                task.cancel()
            stop.set()

        _on_signals(again_or_stop)
        try:
            await task
        except asyncio.CancelledError:
            raise Interrupted from None

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(stoppable())


async def first_of(work: Awaitable[T], stop: asyncio.Event) -> T | None:
    """What `work` gives, or None when `stop` is set before; `work` is then cancelled."""
    working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.wait({working, stopping})


def stop_with_parent(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends: whoever started us holds its other end and is gone."""
    loop = asyncio.get_running_loop()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def embedded_port(settings: Settings) -> int:
    """The port at which clients with these settings look for the embedded broker.

    Raises BadSetting if they look elsewhere than on this machine, or want more than it speaks.
    """
    host, _, port = settings.bootstrap_servers.rpartition(":")
    if host not in ("127.0.0.1", "localhost"):
        raise BadSetting(
            f"TASKFLOW_BOOTSTRAP_SERVERS is {settings.bootstrap_servers!r}, but the embedded "
            "broker listens on 127.0.0.1 only; name an address such as 127.0.0.1:9092, or none."
        )
    if settings.security_protocol != "PLAINTEXT":
        raise BadSetting(
            f"TASKFLOW_SECURITY_PROTOCOL is {settings.security_protocol!r}, but the embedded "
            "broker speaks PLAINTEXT only."
        )
    return Address(host, int(port)).port


def _on_signals(act: Callable[[], object]) -> Callable[[], bool]:
    loop = asyncio.get_running_loop()
    came = False

    def hear() -> None:
        nonlocal came
        came = True
        act()

    for number in _SIGNALS:
        loop.add_signal_handler(number, hear)
    return lambda: came


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
