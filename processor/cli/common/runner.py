"""Run a command: its settings, its event loop, its end by a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, TypeVar

from processor.cli.common.output import say
from processor.errors import TaskflowError
from processor.runtime import end_tasks

if TYPE_CHECKING:
    from processor.settings import Settings

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
CLEAN_UP_MAX_S: Final = 60.0
"""A command that was cancelled and still runs then is cancelled again."""
ORPHAN_MAX_S: Final = 20.0
"""A process whose parent is gone ends within this time; a parent that lives kills it sooner."""


class WrongUse(TaskflowError):
    """The command was not given what it needs; nothing was done."""


class Refused(TaskflowError):
    """The answer was no; the sentence says what was refused."""


class Interrupted(BaseException):
    """A signal ended the command, after it had cleaned up."""


def settings_and_logs(*, quiet: bool = False) -> Settings:
    """The settings from the environment, with logs set up accordingly. Raises BadSetting.

    `quiet`: for a command that ends by itself, where aiokafka's retries are of no concern and
    what fails is said in a sentence.
    """
    from processor.adapters.kafka.reader.record_decoder import read_any_record
    from processor.settings import load_settings
    from processor.telemetry.logging import configure_logs

    settings = load_settings(warn=lambda sentence: say(f"warning: {sentence}"))
    configure_logs(settings)
    read_any_record()
    if quiet:
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    return settings


def quiet_faust() -> None:
    """Log only what is wrong of what Faust does."""
    for library in ("faust", "mode"):
        logging.getLogger(library).setLevel(logging.WARNING)


def run(command: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run it on a new loop; SIGINT and SIGTERM cancel it, and it may clean up.

    A second signal cancels it at once again. Raises Interrupted when a signal came first.
    """

    async def cancellable() -> T:
        interrupted = asyncio.Event()
        task = asyncio.ensure_future(command())
        waiting = asyncio.ensure_future(interrupted.wait())

        def interrupt() -> None:
            if interrupted.is_set():
                task.cancel()
            interrupted.set()

        _on_signals(interrupt)
        try:
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await end_tasks(task, waiting, again_s=CLEAN_UP_MAX_S)
        if task.cancelled() and interrupted.is_set():
            raise Interrupted
        return task.result()

    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(cancellable())


def run_until_stopped(
    service: Callable[[asyncio.Event], Coroutine[Any, Any, None]], *, with_parent: bool = False
) -> None:
    """Run a service on a new loop; SIGINT and SIGTERM set the event that it gets.

    `with_parent`: the end of standard input does, too. A second signal cancels it.
    """

    async def stoppable() -> None:
        stop = asyncio.Event()
        if with_parent:
            stop_with_parent(stop)
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


def stop_with_parent(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends: the parent that holds its other end is gone.

    The process is killed if it lives on for ORPHAN_MAX_S: no parent is left to do that.
    """
    loop = asyncio.get_running_loop()

    def watch() -> None:
        while os.read(0, 4096):
            pass
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        time.sleep(ORPHAN_MAX_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def embedded_port(settings: Settings) -> int:
    """The port at which clients with these settings look for the embedded broker.

    Raises BadSetting if they look elsewhere than on this machine, or want more than it speaks.
    """
    from processor.settings import Address, BadSetting

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


def _on_signals(act: Callable[[], object]) -> None:
    loop = asyncio.get_running_loop()
    for signum in _SIGNALS:
        loop.add_signal_handler(signum, act)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        return None
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
