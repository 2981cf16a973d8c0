"""The read side's HTTP server in this process, over a view without Kafka."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession

from processor.runtime import end_tasks
from processor.settings import Address, Settings
from processor.telemetry.http.hosts import HostPolicy
from processor.testing.fake import TaskflowFake
from processor.views.access.peer_key import PeerKey
from processor.views.access.readers import Readers
from processor.views.consumer_group import WorkerGroup
from processor.views.http.api import Api
from processor.views.http.command_endpoint import CommandEndpoint
from processor.views.http.server import limits_of, serve
from processor.views.model.read_model import ReadModel
from processor.views.query.peers import Peers
from tests.support.read_model_harness import messages, view_of
from tests.support.recorded_deployment import TOPICS, Recorded

SECRET = "a secret of the view workers"
NOWHERE = "127.0.0.1:1"


@dataclass(frozen=True)
class ServedView:
    """A view worker's server, its view, and a client of it."""

    client: ClientSession
    view: ReadModel
    peers: Peers
    address: Address

    @property
    def url(self) -> str:
        return f"http://{self.address}"


@asynccontextmanager
async def serving(
    folder: Path,
    recorded: Recorded,
    *,
    shared_out: Callable[[], Mapping[str, set[int]]] = dict,
    secret: str | None = SECRET,
    brokers: str = NOWHERE,
    **options: Any,
) -> AsyncIterator[ServedView]:
    """A server for what was recorded; `shared_out`: the addresses of the group's members, and
    `secret`: what they share; `brokers`: where commands go to."""
    settings = Settings(
        partitions=recorded.partitions,
        state_dir=folder,
        bootstrap_servers=brokers,
        **options,
    )
    async with view_of(folder / "views", recorded) as view:
        limits, hosts = limits_of(settings), HostPolicy(settings.http_hosts)
        peers = Peers("http://here", shared_out, None if secret is None else PeerKey(secret))
        group = WorkerGroup(settings.model_copy(update={"bootstrap_servers": NOWHERE}))
        commands = CommandEndpoint(settings, limits)
        readers = Readers(settings.views_read_token, peers)
        api = Api(settings, view, peers, group=group, commands=commands, readers=readers)

        async def report() -> dict[str, Any]:
            return {"ready": view.ready(), "prefix": settings.topic_prefix}

        async def scraped() -> bytes:
            return view.metrics.text()

        try:
            async with serve(
                Address("127.0.0.1", 0),
                api,
                limits=limits,
                hosts=hosts,
                report=report,
                metrics=scraped,
            ) as address:
                peers.own = f"http://{address}"
                async with ClientSession(peers.own) as client:
                    yield ServedView(client, view, peers, address)
        finally:
            await commands.close()
            await group.close()
            await peers.close()


@asynccontextmanager
async def acting(folder: Path, fake: TaskflowFake, **options: Any) -> AsyncIterator[ServedView]:
    """A server whose commands the engine of `fake` decides, and which shows what came of them."""
    nothing = Recorded(partitions=fake.settings.partitions)
    brokers = fake.settings.bootstrap_servers
    async with serving(folder, nothing, brokers=brokers, **options) as here:
        following = asyncio.ensure_future(_follow(here.view, fake))
        try:
            yield here
        finally:
            await end_tasks(following)


async def _follow(view: ReadModel, fake: TaskflowFake) -> None:
    topics = (TOPICS.audit, TOPICS.dead_letters)
    while True:
        came = fake.kafka.watch((topic, 0) for topic in topics)
        there = fake.deployment()
        await view.project(messages(there))
        await view.project_dead_letters(messages(there, "deadletters"))
        await came
