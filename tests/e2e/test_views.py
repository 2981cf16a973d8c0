"""The view worker as a program: rebuilt, restarted amid streams, under Faust's own command, and as
a door for commands."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from processor.adapters.kafka.admin.topic_admin import create_topics
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Settings
from tests.support.audit import assert_equal, audit_of, complete
from tests.support.processes import workers
from tests.support.raw_http import ask, get
from tests.support.views import PARTITIONS, PATIENCE_S, ViewProcess, views

TOKEN = "a token of thirty-two characters."

Port = Callable[[], int]


def damage(view: ViewProcess) -> None:
    """Its file says of all flows that they are finished, and knows but one event."""
    with sqlite3.connect(view.state_dir / "views" / "views.sqlite") as file:
        file.execute("UPDATE flow SET status = 'finished'")
        file.execute("DELETE FROM event WHERE id > 1")
    file.close()


async def test_a_view_is_dropped_and_rebuilt(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port_factory: Port
) -> None:
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        views(1, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as (view,),
    ):
        await audit.write(audit.decide(80))
        await view.start()
        await assert_equal(view, audit)
        assert await view.end() == 0
        damage(view)
        await audit.write(audit.decide(20))

        await view.start()
        await view.until(complete, "/v1/statistics", after=audit.last())
        assert len(await view.pages("/v1/events")) < len(audit.events), "it goes on from its file"
        assert await view.end() == 0

        view.command = (*view.command, "--rebuild")
        await view.start()
        await assert_equal(view, audit)


async def test_faust_runs_the_application_with_its_own_command(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port_factory: Port
) -> None:
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        views(1, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as (view,),
    ):
        view.command = (
            "-m",
            "faust",
            "-A",
            "processor.views.faust.app",
            "worker",
            "--loglevel",
            "warn",
        )
        await audit.write(audit.decide(80))
        await view.start()
        await view.until(lambda ready: len(ready["partitions"]) == PARTITIONS, "/ready")
        await audit.write(audit.decide(20))
        await assert_equal(view, audit)
        assert await view.end() == 0


class Stream:
    """Server-sent events: their ids, and the FlowEvents."""

    def __init__(self, lines: AsyncIterator[bytes]) -> None:
        self._lines = lines
        self.last_id = ""

    async def events(self, count: int) -> list[dict[str, Any]]:
        """The next ones."""
        found: list[dict[str, Any]] = []
        name = ""
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < count:
                field, _, value = (await anext(self._lines)).decode().rstrip("\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "id":
                    self.last_id = value
                elif field == "data" and name == "event":
                    found.append(json.loads(value)["event"])
        return found


@asynccontextmanager
async def streaming(view: ViewProcess, last_id: str | None, **query: str) -> AsyncIterator[Stream]:
    headers = {} if last_id is None else {"Last-Event-ID": last_id}
    url = f"{view.url}/v1/stream"
    async with view.session.get(url, headers=headers, params=query) as response:
        assert response.status == 200
        yield Stream(aiter(response.content))


def in_order(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each partition's as they came: a stream promises no more."""
    return sorted(events, key=lambda event: event["id"] >> 40)


async def test_a_stream_goes_on_over_a_restart_and_what_was_written_meanwhile_is_awaited(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port_factory: Port
) -> None:
    async with (
        audit_of(broker.bootstrap, prefix) as audit,
        views(1, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as (view,),
    ):
        await view.start()
        await view.until(lambda ready: ready["ready"], "/ready")
        await audit.write(audit.decide(60))
        first = len(audit.events)
        # It leaves in the middle: what follows is on its way to it, and it never says so.
        async with streaming(view, None, since="beginning") as stream:
            seen = await stream.events(first // 2)
            last_id = stream.last_id
        await view.kill()
        await audit.write(audit.decide(60))
        await view.start()
        # Neither the group nor the disk has said yet what this worker has, unless we come late.
        status, page = await view.get("/v1/flows", after=audit.last(), wait="0")
        assert status in (0, 503) or complete(page)
        response = await view.until(complete, "/v1/events", after=audit.last(), wait="30000")
        assert response["items"]

        async with streaming(view, last_id) as stream:
            seen += await stream.events(len(audit.events) - len(seen))
            assert in_order(seen) == in_order(audit.events)
            # Read your writes, asked for before it is written.
            later = audit.decide(5)
            newest = max(json.loads(record.value or b"")["id"] for record in later)
            status, problem = await view.get("/v1/statistics", after=str(newest), wait="0")
            assert (status, problem["code"]) == (503, "not_yet")
            asked = asyncio.create_task(
                view.get("/v1/statistics", after=str(newest), wait="30000", minutes="1440")
            )
            await audit.write(later)
            status, response = await asked
            assert status == 200
            assert response["view"]["complete"]
            seen += await stream.events(len(later))
            assert in_order(seen) == in_order(audit.events)


async def test_commands_by_http_are_decided_and_answered_and_only_with_the_token(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port_factory: Port
) -> None:
    def create(**fields: Any) -> dict[str, Any]:
        about = {"controller_id": "kate/inbox", "goal": "say hello", "requester_origin": "user-1"}
        made = {"kind": "create_mirrored", "flow_id": str(uuid4()), "issued_by": "session-1"}
        return {**made, **about, **fields}

    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with (
        workers(1, tmp_path, broker.bootstrap, prefix, PARTITIONS=str(PARTITIONS)) as (worker,),
        views(2, tmp_path, broker.bootstrap, prefix, unused_tcp_port_factory) as (closed, view),
    ):
        await worker.start()
        await worker.until_ready()
        view.choose(VIEWS_TOKEN=TOKEN)
        await asyncio.gather(closed.start(), view.start())
        for each in (closed, view):
            await each.until(lambda ready: len(ready["partitions"]) == 1, "/ready")

        async def post(
            to: ViewProcess, command: dict[str, Any], token: str | None = TOKEN, wait: int = 30_000
        ) -> tuple[int, Any]:
            headers = {} if token is None else {"Authorization": f"Bearer {token}"}
            url = f"{to.url}/v1/commands?wait={wait}"
            async with to.session.post(url, json=command, headers=headers) as response:
                return response.status, await response.json()

        refused = create()
        assert (await post(closed, refused))[0] == 403
        assert (await post(view, refused, token=None))[0] == 401
        assert (await post(view, refused, token=TOKEN[:-1]))[0] == 401

        command = create(command_id=str(uuid4()))
        status, body = await post(view, command)
        assert status == 200
        outcome = body["outcome"]
        assert (outcome["verdict"], outcome["revision"]) == ("accepted", 1)
        assert body["command_id"] == command["command_id"] == outcome["command_id"]
        # Whichever worker is asked has it.
        after = ",".join(map(str, outcome["event_ids"]))
        path = f"/v1/flows/{command['flow_id']}"
        for each in (closed, view):
            found = await each.until(complete, path, after=after)
            assert found["flow"]["status"] == "running"
            assert found["last_event_id"] == outcome["event_ids"][-1]
        # Sent again, and refused: both are answers.
        status, body = await post(view, command)
        assert (status, body["outcome"]["verdict"]) == (200, "duplicate")
        finish = {"kind": "finish", "flow_id": command["flow_id"], "issued_by": "somebody else"}
        status, body = await post(view, finish)
        assert (status, body["outcome"]["code"]) == (200, "not_owner")
        # Without waiting it says where the command stands.
        status, body = await post(view, {**finish, "issued_by": "session-1"}, wait=0)
        assert (status, body["outcome"]) == (202, None)
        assert (body["topic"], body["offset"] >= 0) == (f"{prefix}.commands", True)
        await view.until(lambda response: response["flow"]["status"] == "finished", path)
        statistics = await closed.until(complete, "/v1/statistics")
        assert statistics["flows_total"] == 1, "what was refused at the door was never published"
        assert TOKEN not in view.output()


async def test_a_worker_answers_for_the_hosts_that_it_is_told(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    where = ("127.0.0.1", unused_tcp_port)
    http = f"127.0.0.1:{unused_tcp_port}"
    await create_topics(
        Settings(bootstrap_servers=broker.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    )
    async with workers(
        *(1, tmp_path, broker.bootstrap, prefix),
        PARTITIONS=str(PARTITIONS),
        HTTP=http,
        HTTP_HOSTS="worker-1, *.svc",
    ) as (worker,):
        await worker.start()
        await worker.until_ready()
        for host, status in (
            *(("localhost", 200), ("worker-1:8900", 200), ("worker.prod.svc", 200)),
            *(("worker-2", 421), ("evil.example", 421)),
        ):
            for path in ("/live", "/ready", "/metrics"):
                response = await ask(where, get(path, host=host))
                assert response.status == status
