"""The Faust application of `taskflow views`.

Also run by Faust's own program: `faust -A processor.views.faust.app worker`.

Agents read `audit` and `deadletters` in batches; what they make of them is in view.py. Everything
that outlives a run is in one SQLite file under TASKFLOW_STATE_DIR/views.
"""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any, Final, cast

import faust
from faust.types import TP
from yarl import URL

from processor.adapters.kafka.access.rights_watch import RightsWatch
from processor.adapters.kafka.reader.record_decoder import read_any_record
from processor.adapters.sqlite.lock import state_dir_lock
from processor.contract import Topics
from processor.contract.rights import Role
from processor.runtime import end_tasks, private_directory, tune_interpreter
from processor.settings import Address, Settings, load_settings
from processor.telemetry.http.hosts import HostPolicy, is_loopback
from processor.views.access.peer_key import PeerKey, address_of
from processor.views.access.peer_secret import peer_secret
from processor.views.access.readers import Readers
from processor.views.consumer_group import WorkerGroup
from processor.views.faust.sensor import ViewSensor
from processor.views.faust.tables import ViewTable, ViewTables
from processor.views.faust.transport import (
    CommittedConsumer,
    CommittedTransport,
    ConsumesOnly,
)
from processor.views.http.api import Api
from processor.views.http.command_endpoint import CommandEndpoint
from processor.views.http.server import limits_of, serve
from processor.views.metrics import ViewMetrics
from processor.views.model.database import open_database, remove
from processor.views.model.read_model import ReadModel, ReadModelState
from processor.views.query.peers import Peers

BATCH_CHUNKS: Final = 4
BATCH_WITHIN_S: Final = 0.02
BUFFERED_CHUNKS: Final = 16
"""Of all partitions, ready for the next batches."""
MEASURED_EVERY_S: Final = 0.2
WINDOW_S: Final = 60.0
KEPT_S: Final = 25 * 3600.0
"""Windows older than that go; the longest look back is a day."""
FETCH_MAX_BYTES: Final = 4 * 1024 * 1024

_log = logging.getLogger(__name__)


class ViewsApp(faust.App):
    """Faust's application, with the view and its server around it."""

    BootStrategy = ConsumesOnly

    def __init__(self, settings: Settings, *, rebuild: bool = False, **options: Any) -> None:
        self.settings_ = settings
        self.rebuild = rebuild
        self.topics_ = Topics(settings.topic_prefix)
        self.metrics_ = ViewMetrics()
        self._rights = RightsWatch(settings, role_of(settings))
        self._open: AsyncExitStack | None = None
        self._view: ReadModel | None = None
        super().__init__(
            f"{settings.group_id}.views",
            broker=[URL(f"kafka://{address}") for address in _addresses(settings)],
            datadir=settings.state_dir / "views" / "faust",
            autodiscover=False,
            web_enabled=False,
            topic_allow_declare=False,
            topic_disable_leader=True,
            TableManager=ViewTables,
            Table=ViewTable,
            Monitor=ViewSensor,
            broker_session_timeout=settings.session_timeout_ms / 1000,
            broker_request_timeout=max(40.0, settings.session_timeout_ms / 1000),
            consumer_auto_offset_reset="earliest",
            consumer_max_fetch_size=FETCH_MAX_BYTES,
            stream_buffer_maxsize=BUFFERED_CHUNKS,
            stream_wait_empty=False,
            table_cleanup_interval=60.0,
            **options,
        )

    @property
    def view(self) -> ReadModel:
        assert self._view is not None, "the application has not started"
        return self._view

    def _new_transport(self) -> CommittedTransport:
        transport = CommittedTransport(self.conf.broker_consumer, self)
        transport.settings = self.settings_
        transport.position_of = self._position_of
        return transport

    def _position_of(self, topic: str, partition: int) -> int:
        return self.view.next_offset(topic, partition)

    async def on_first_start(self) -> None:
        read_any_record()
        private_directory(self.settings_.state_dir)
        private_directory(self.conf.datadir.parent)
        await super().on_first_start()

    async def on_start(self) -> None:
        """The view and its server are there before Kafka gives us anything."""
        await super().on_start()
        tune_interpreter()
        settings = self.settings_
        folder = settings.state_dir / "views"
        async with AsyncExitStack() as stack:
            stack.enter_context(state_dir_lock(folder))
            if self.rebuild:
                remove(folder)
                self.rebuild = False
            database = await stack.enter_async_context(open_database(folder))
            self._view = view = ReadModel(
                database,
                self.topics_,
                minutes=minutes,
                totals=totals,
                metrics=self.metrics_,
                reseek=self._read_again,
            )
            await view.load()
            limits, hosts = limits_of(settings), HostPolicy(settings.http_hosts)
            secret = peer_secret(settings)
            peers = Peers("", self._shared_out, None if secret is None else PeerKey(secret))
            stack.push_async_callback(peers.close)
            group, commands = WorkerGroup(settings), CommandEndpoint(settings, limits)
            stack.push_async_callback(group.close)
            stack.push_async_callback(commands.close)
            readers = Readers(settings.views_read_token, peers)
            api = Api(settings, view, peers, group=group, commands=commands, readers=readers)
            address = await stack.enter_async_context(
                serve(
                    settings.views_http,
                    api,
                    limits=limits,
                    hosts=hosts,
                    report=self._report,
                    metrics=self._scraped,
                )
            )
            stack.push_async_callback(end_tasks, asyncio.create_task(self._rights.run()))
            peers.own = address_of(settings.views_advertise or f"http://{_reachable(address)}")
            hosts.allow(URL(peers.own).authority)
            self.conf.canonical_url = URL(peers.own)
            _log.info("views answer at %s", peers.own)
            if settings.views_read_token is None and not is_loopback(address.host):
                _log.warning(
                    "every client that reaches %s can read all flows, with their prompts, and with "
                    "the correlation ids by which anyone may resume them; "
                    "TASKFLOW_VIEWS_READ_TOKEN keeps others out",
                    address,
                )
            self._open = stack.pop_all()

    async def on_stop(self) -> None:
        await super().on_stop()
        if self._open is not None:
            await self._open.aclose()
            self._open = None

    def _shared_out(self) -> dict[str, set[int]]:
        """By the metadata that Faust's assignor gives to every member of the group."""
        return {
            str(url): set(topics.get(self.topics_.audit, ()))
            for url, topics in self.router.external_topics_metadata().items()
        }

    async def _read_again(self, partition: int) -> None:
        tp = TP(self.topics_.audit, partition)
        await self.consumer.seek(tp, self.view.next_offset(*tp))

    async def measure(self) -> None:
        consumer = self.consumer
        assert isinstance(consumer, CommittedConsumer)
        levels = await consumer.levels()
        self.view.measure(
            {
                tp.partition: ReadModelState(*level)
                for tp, level in levels.items()
                if tp.topic == self.topics_.audit
            }
        )

    async def _scraped(self) -> bytes:
        return self.metrics_.text()

    async def _report(self) -> dict[str, Any]:
        view = self.view
        partitions = {
            str(partition): {
                "event_id": view.position(partition).event_id,
                "behind": view.behind(partition),
                "lag_ms": view.lag_ms(partition),
                "caught_up": view.caught_up(partition),
                "broken": view.broken.get(partition),
            }
            for partition in sorted(view.own_partitions)
        }
        return {
            "ready": view.ready() and self._rights.denied is None,
            "denied": self._rights.denied,
            "assigned": view.assigned,
            "failing": view.failing,
            "brokers": self.settings_.bootstrap_servers,
            "prefix": self.topics_.prefix,
            "address": str(self.conf.canonical_url),
            "peers": sorted(self._shared_out()),
            "partitions": partitions,
        }


def role_of(settings: Settings) -> Role:
    """The role whose rights a view worker needs."""
    return Role.VIEWS if settings.views_operator_token is None else Role.VIEWS_ACTING


def _reachable(address: Address) -> Address:
    """Who listens everywhere is found by this machine's name."""
    if address.host in ("0.0.0.0", "::"):
        return Address(socket.gethostname(), address.port)
    return address


def _addresses(settings: Settings) -> Iterator[str]:
    yield from settings.bootstrap_servers.split(",")


app: Final = ViewsApp(load_settings())
minutes: Final[Any] = app.Table("minutes", default=None).tumbling(WINDOW_S, expires=KEPT_S).table
totals: Final[Any] = app.Table("totals", default=None)


def _raw(name: str) -> Any:
    return app.topic(
        name, key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"
    )


@app.agent(_raw(app.topics_.audit), name="audit")
async def audit(stream: Any) -> None:
    """Projects what was committed, in transactions of up to BATCH_CHUNKS chunks of events."""
    async for chunks in stream.take(BATCH_CHUNKS, within=BATCH_WITHIN_S):
        await app.view.project([record for chunk in chunks for record in chunk])


@app.agent(_raw(app.topics_.dead_letters), name="deadletters")
async def deadletters(stream: Any) -> None:
    """Keeps the newest dead letters."""
    async for chunks in stream.take(BATCH_CHUNKS, within=BATCH_WITHIN_S):
        await app.view.project_dead_letters([record for chunk in chunks for record in chunk])


async def _assigned(_: Any, partitions: set[TP], **__: Any) -> None:
    app.view.assign(tp.partition for tp in partitions if tp.topic == app.topics_.audit)


app.on_partitions_assigned.connect(cast(Any, _assigned))
app.timer(MEASURED_EVERY_S)(app.measure)
