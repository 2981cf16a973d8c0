"""A view worker beside what `up` and `demo` run: a process of its own that ends with us."""

import asyncio
import importlib.util
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any, Final

import aiohttp

from processor.program.asking import views_url
from processor.settings import Settings

READY_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 15.0
_ASKED_EVERY_S: Final = 0.2
_KNOCK_S: Final = 2.0


@dataclass(slots=True)
class ViewsBeside:
    """The process, and where it will answer."""

    process: asyncio.subprocess.Process
    url: str

    async def ready(self) -> bool:
        """Once it answers for its partitions, caught up or not; False if it ended, or takes too
        long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(READY_TIMEOUT_S), aiohttp.ClientSession() as session:
                while self.process.returncode is None:
                    if await _answers(session, self.url):
                        return True
                    await asyncio.sleep(_ASKED_EVERY_S)
        return False


def views_installed() -> bool:
    """Whether the extra `views` is."""
    return importlib.util.find_spec("faust") is not None


@asynccontextmanager
async def views_beside(
    settings: Settings, environment: Mapping[str, str] | None = None, log: IO[Any] | None = None
) -> AsyncIterator[ViewsBeside]:
    """`taskflow views` with this environment (ours, if None); what it says goes to `log`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "processor", "views", "--with-parent"),
        env=dict(os.environ if environment is None else environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield ViewsBeside(process, views_url(settings))
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        timeout = aiohttp.ClientTimeout(total=_KNOCK_S)
        async with session.get(f"{url}/ready", timeout=timeout) as answer:
            return bool((await answer.json())["assigned"])
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError):
        return False
