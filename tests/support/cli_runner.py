"""The program's commands in this process, beside a real worker in a thread of its own.

A process for each command would cost a second of CPU time each, all of it for imports.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from processor.cli.main import main
from processor.client import FlowClient
from processor.settings import VARIABLES, Settings
from tests.support.forked_program import NO_VIEWS
from tests.support.machine import patience
from tests.support.worker import running_worker


class Shell:
    """`taskflow` with the settings of one prefix; `told` is what the last command said on standard
    error."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
        self.errors = ""
        self._monkeypatch = monkeypatch
        self.capsys = capsys
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        self.set(
            BOOTSTRAP_SERVERS=settings.bootstrap_servers,
            TOPIC_PREFIX=settings.topic_prefix,
            STATE_DIR=str(settings.state_dir),
            PARTITIONS=str(settings.partitions),
            HTTP="off",
            VIEWS_HTTP=NO_VIEWS,
        )

    def set(self, **settings: str) -> None:
        """From now on; without the `TASKFLOW_`."""
        for name, value in settings.items():
            self._monkeypatch.setenv(f"TASKFLOW_{name}", value)

    def __call__(self, *arguments: str, code: int | None = 0) -> list[dict[str, Any]]:
        """The JSON lines that it prints; `code` None: whatever its exit code."""
        return [json.loads(line) for line in self.lines(*arguments, code=code)]

    def lines(self, *arguments: str, code: int | None = 0) -> list[str]:
        """What it prints."""
        self.capsys.readouterr()
        found = main(arguments)
        out, self.errors = self.capsys.readouterr()
        assert code in (None, found), (arguments, found, out, self.errors)
        # Not by splitlines: what a sender wrote may hold other line ends, as it is.
        return out.removesuffix("\n").split("\n") if out else []


@contextmanager
def child_worker(settings: Settings) -> Iterator[None]:
    """Topics and a worker that is ready, on a loop in another thread."""
    ready, loops = threading.Event(), []
    stop = asyncio.Event()
    errors: list[BaseException] = []

    async def work() -> None:
        loops.append(asyncio.get_running_loop())
        async with running_worker(settings):
            ready.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=run, name="worker beside")
    thread.start()
    try:
        assert ready.wait(patience(60)), "the worker is not ready"
        if not errors:
            yield
    finally:
        if loops and not loops[0].is_closed():
            loops[0].call_soon_threadsafe(stop.set)
        thread.join(patience(60))
    if errors:
        raise errors[0]


def send(settings: Settings, *commands: dict[str, Any]) -> None:
    """Each answered before the flow's next."""

    async def of(client: FlowClient, flow_id: str) -> None:
        for command in commands:
            if command["flow_id"] == flow_id:
                await client.send(command)

    async def all_of_them() -> None:
        async with FlowClient(settings) as client:
            flows = {command["flow_id"] for command in commands}
            await asyncio.gather(*(of(client, flow) for flow in flows))

    asyncio.run(all_of_them())


def create(flow_id: str, **fields: Any) -> dict[str, Any]:
    about = {"controller_id": "tests", "goal": "Be repaired", "requester_origin": "pytest"}
    command = {"kind": "create_managed", "flow_id": flow_id, "issued_by": "me", **about}
    return command | fields
