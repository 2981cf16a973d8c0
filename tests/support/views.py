"""`taskflow views` as a process, beside a test."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from aiohttp import ClientError, ClientSession

from processor.settings import Settings
from tests.support.processes import environment

TIMEOUT_S = 60


@asynccontextmanager
async def running_views(settings: Settings, home: Path, port: int) -> AsyncIterator[str]:
    """One view worker for these topics, ready; its address. It ends with the block."""
    told = home / "views.log"
    url = f"http://127.0.0.1:{port}"
    with told.open("wb") as log:
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", "views"),
            env=environment(
                settings.bootstrap_servers,
                settings.topic_prefix,
                home / "views",
                PARTITIONS=str(settings.partitions),
                VIEWS_HTTP=f"127.0.0.1:{port}",
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        async with ClientSession() as session, asyncio.timeout(TIMEOUT_S):
            while not await _is_ready(session, url):
                assert program.returncode is None, told.read_text()[-4000:]
                await asyncio.sleep(0.05)
        yield url
    finally:
        with suppress(ProcessLookupError):
            program.terminate()
        try:
            await asyncio.wait_for(program.wait(), 20)
        except TimeoutError:
            program.kill()
            await program.wait()
            raise


async def _is_ready(session: ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/ready") as answer:
            return answer.status == 200
    except ClientError:
        return False
