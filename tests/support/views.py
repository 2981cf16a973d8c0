"""`taskflow views` as a process, beside a test."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession

from processor.settings import Settings
from tests.support.machine import patience
from tests.support.processes import ForkedWorker, WorkerProcess

PARTITIONS = 2
PATIENCE_S = patience(60)
"""For what takes a second or two where nothing else runs."""


class ViewProcess(ForkedWorker):
    """`taskflow views` without its imports, and its answers."""

    def __init__(
        self,
        name: str,
        home: Path,
        bootstrap: str,
        prefix: str,
        port: int,
        session: ClientSession,
        *,
        partitions: int = PARTITIONS,
    ) -> None:
        http = {"VIEWS_HTTP": f"127.0.0.1:{port}", "PARTITIONS": str(partitions)}
        super().__init__(name, home, bootstrap, prefix, **http)
        self.url = f"http://127.0.0.1:{port}"
        self.session = session
        self.command: tuple[str, ...] = ("views",)
        """What it is to run, from its next start on; with "-m", as Python's arguments."""

    def _program(self) -> tuple[str, ...]:
        return self.command

    def _arguments(self) -> tuple[str, ...]:
        return () if self.command[0] == "-m" else self.command

    async def start(self) -> None:
        if self.command[0] == "-m":
            await WorkerProcess.start(self)
        else:
            await super().start()

    async def get(self, path: str, **query: Any) -> tuple[int, Any]:
        """Status and body; 0 while nobody listens."""
        try:
            async with self.session.get(f"{self.url}{path}", params=query) as response:
                return response.status, await response.json(content_type=None)
        except ClientError:
            return 0, None

    async def until(self, right: Callable[[Any], bool], path: str, **query: Any) -> Any:
        """Ask until the answer is right."""
        page: Any = None
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    status, page = await self.get(path, **query)
                    if status == 200 and right(page):
                        return page
                    assert self.running, self.output()[-4000:]
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{path}: {page}\n{self.output()[-4000:]}") from None

    async def pages(self, path: str) -> list[Any]:
        items, cursor = [], None
        while True:
            given: dict[str, str] = {} if cursor is None else {"cursor": cursor}
            page = await self.until(lambda a: a["view"]["complete"], path, limit="100", **given)
            items += page["items"]
            if (cursor := page["next_cursor"]) is None:
                return items


@asynccontextmanager
async def views(
    count: int, home: Path, bootstrap: str, prefix: str, port: Callable[[], int]
) -> AsyncIterator[list[ViewProcess]]:
    """View workers, not started yet; none lives longer than the block."""
    async with ClientSession() as session:
        made = [
            ViewProcess(f"v{n}", home, bootstrap, prefix, port(), session) for n in range(count)
        ]
        try:
            yield made
        finally:
            for view in made:
                if view.running:
                    await view.kill()


@asynccontextmanager
async def running_views(
    settings: Settings, home: Path, port: int, **chosen: str
) -> AsyncIterator[str]:
    """One view worker for these topics, ready; its address. It ends with the block."""
    async with ClientSession() as session:
        view = ViewProcess(
            *("views", home, settings.bootstrap_servers, settings.topic_prefix, port, session),
            partitions=settings.partitions,
        )
        view.choose(**chosen)
        await view.start()
        try:
            await view.until(lambda _: True, "/ready")
            yield view.url
        finally:
            if view.running:
                await view.end()
