"""Run worker, views and signals as child processes of `up` and `demo`."""

import asyncio
import importlib.util
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import aiohttp

from processor.cli.common.service_address import views_url
from processor.client.http.views_client import read_headers
from processor.runtime import CLEAN_UP_S, end_tasks
from processor.settings import PREFIX, Settings

READY_TIMEOUT_S: Final = 60.0
RESTART_PAUSE_MIN_S: Final = 0.5
RESTART_PAUSE_MAX_S: Final = 30.0
SOUND_AFTER_S: Final = 10.0
"""A process that lived for so long was sound: its end is the first again."""
STOP_TIMEOUT_S: Final = 15.0
LAST_WORDS: Final = 5
WITH_PARENT: Final = "--with-parent"
_ASKED_EVERY_S: Final = 0.2
_KNOCK_S: Final = 2.0


@dataclass(slots=True)
class ChildProcess:
    """The process, and where that goes which it says."""

    process: asyncio.subprocess.Process
    log: Path | None

    @property
    def how_it_ended(self) -> str:
        """As in `was killed by SIGKILL`."""
        code = self.process.returncode
        if code is None:
            return "is running"
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def last_words(self) -> str:
        if self.log is None:
            return "(see above)"
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-LAST_WORDS:]) or "(it said nothing)"


Child = TypeVar("Child", bound=ChildProcess)


@dataclass(slots=True)
class ViewsChild(ChildProcess):
    """A view worker, and where it will answer."""

    settings: Settings

    @property
    def url(self) -> str:
        return views_url(self.settings)

    async def ready(self) -> bool:
        """Once it answers for its partitions, caught up or not; False if it ended, or takes too
        long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S), aiohttp.ClientSession() as session:
                while self.process.returncode is None:
                    if await self._responds(session):
                        return True
                    await asyncio.sleep(_ASKED_EVERY_S)
        return False

    async def _responds(self, session: aiohttp.ClientSession) -> bool:
        timeout = aiohttp.ClientTimeout(total=_KNOCK_S)
        try:
            headers = read_headers(self.settings.views_read_token)
            async with session.get(
                f"{self.url}/ready", timeout=timeout, headers=headers
            ) as response:
                report = await response.json()
                # Another one may sit at this address, and ours is about to find out.
                ours = report["brokers"] == self.settings.bootstrap_servers
                return ours and bool(report["assigned"])
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError):
            return False


def views_installed() -> bool:
    """Whether the extra `views` is."""
    # Once imported, Faust's module has no spec that could be found.
    return sys.modules.get("faust") is not None or importlib.util.find_spec("faust") is not None


def environment_of(settings: Settings) -> dict[str, str]:
    """Ours without the user's settings, which are about other brokers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {
        **kept,
        "TASKFLOW_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "TASKFLOW_STATE_DIR": str(settings.state_dir),
        "TASKFLOW_HTTP": "off",
        "TASKFLOW_VIEWS_HTTP": str(settings.views_http),
        "TASKFLOW_LOG_FORMAT": "json",
    }


@asynccontextmanager
async def child_worker(environment: Mapping[str, str], log: Path) -> AsyncIterator[ChildProcess]:
    """`taskflow worker` with this environment."""
    async with _started(("worker", WITH_PARENT), environment, log) as process:
        yield ChildProcess(process, log)


@asynccontextmanager
async def child_views(
    settings: Settings, environment: Mapping[str, str] | None = None, log: Path | None = None
) -> AsyncIterator[ViewsChild]:
    """`taskflow views` with this environment (ours, if None); what it says goes to our standard
    error if not to `log`."""
    async with _started(("views", WITH_PARENT), environment, log) as process:
        yield ViewsChild(process, log, settings)


def views_kept_running(
    settings: Settings, notify: Callable[[str], None]
) -> AbstractAsyncContextManager[ViewsChild]:
    """`taskflow views` with our environment, started again whenever it ends, with growing pauses.
    `notify` gets a sentence each time.

    The child that is yielded is always the one that was started last.
    """
    return _kept_running(lambda: child_views(settings), "The view worker", notify)


def signals_kept_running(
    notify: Callable[[str], None],
) -> AbstractAsyncContextManager[ChildProcess]:
    """`taskflow signals`; as `views_kept_running`."""
    return _kept_running(_child_signals, "The signals process", notify)


@asynccontextmanager
async def _child_signals() -> AsyncIterator[ChildProcess]:
    async with _started(("signals", WITH_PARENT), None, None) as process:
        yield ChildProcess(process, None)


@asynccontextmanager
async def _kept_running(
    start: Callable[[], AbstractAsyncContextManager[Child]],
    name: str,
    notify: Callable[[str], None],
) -> AsyncIterator[Child]:
    started: asyncio.Future[Child] = asyncio.get_running_loop().create_future()

    async def keep() -> None:
        pause_s = RESTART_PAUSE_MIN_S
        while True:
            async with start() as child:
                if started.done():
                    started.result().process = child.process
                else:
                    started.set_result(child)
                began_s = time.monotonic()
                await child.process.wait()
            if time.monotonic() - began_s >= SOUND_AFTER_S:
                pause_s = RESTART_PAUSE_MIN_S
            notify(f"{name} {child.how_it_ended}; it is started again in {pause_s:g} s.")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RESTART_PAUSE_MAX_S)

    keeping = asyncio.create_task(keep(), name=f"keeper: {name}")
    try:
        first: set[asyncio.Future[Any]] = {started, keeping}
        await asyncio.wait(first, return_when=asyncio.FIRST_COMPLETED)
        if keeping.done():
            keeping.result()
        yield started.result()
    finally:
        await end_tasks(keeping, again_s=CLEAN_UP_S)


@asynccontextmanager
async def child_executor(
    task: str, program: Sequence[str], environment: Mapping[str, str], log: Path
) -> AsyncIterator[ChildProcess]:
    """`taskflow step run` of `program` with this environment."""
    command = ("step", "run", "--task", task, WITH_PARENT, "--", *program)
    async with _started(command, environment, log) as process:
        yield ChildProcess(process, log)


@asynccontextmanager
async def _started(
    command: Sequence[str], environment: Mapping[str, str] | None, log: Path | None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """A command of the program as a child that ends with us, however we end: it watches its input.

    In a session of its own: Ctrl-C is ours, and we end it in good order.
    """
    with ExitStack() as stack:
        sink = None
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            sink = stack.enter_context(log.open("wb"))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", *command),
            env=dict(os.environ if environment is None else environment),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=sink,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        with suppress(TimeoutError):
            try:
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    await process.wait()
            finally:  # a second cancellation ends the wait, and must leave no child behind
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
