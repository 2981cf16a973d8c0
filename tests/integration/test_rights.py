"""Roles at a Kafka that allows only what an ACL says.

It has SASL_SSL with SCRAM, a CA of its own and KRaft's StandardAuthorizer.

`make test` takes away one right of each kind, `make soak` every one.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession

from processor.client import FlowClient
from processor.contract.rights import Role, rights
from processor.contract.topics import Topics
from processor.embedded.broker import free_port
from tests.support.forked_program import shared_program
from tests.support.machine import patience
from tests.support.processes import WorkerProcess, workers
from tests.support.rights_deployment import assert_decided_once, command, deployment
from tests.support.rights_matrix import (
    as_table,
    documented,
    everything,
    matrix,
    one_of_each,
    rights_table,
)
from tests.support.secured_kafka import SecuredKafka


def test_the_documentation_has_the_table_of_rights() -> None:
    assert documented("rights") == rights_table()


def test_the_documented_matrix_has_every_right_of_every_role() -> None:
    rows = [line.split(" | ") for line in documented("matrix").splitlines()[2:]]
    found = {(role.strip("| "), without) for role, without, *_ in rows}
    assert found == {
        (role, str(right)) for role in Role for right in rights(role, Topics(), "taskflow")
    }


@pytest.mark.timeout(300)
async def test_without_a_right_it_says_which_and_loses_nothing(
    secured: SecuredKafka, tmp_path: Path, request: Any
) -> None:
    every = request.config.getoption("--all-rights")

    rows = await matrix(secured, shared_program(), tmp_path, everything if every else one_of_each)

    table = documented("matrix").splitlines()
    found = as_table(rows).splitlines()
    if every:
        assert found == table
    else:
        assert len(found) > 30
        assert [line for line in table if line in set(found)] == found


class Family(WorkerProcess):
    """`taskflow worker --processes 2`."""

    def _arguments(self) -> tuple[str, ...]:
        return ("worker", "--processes", "2")


async def test_processes_and_standbys_need_the_rights_of_a_worker_and_no_more(
    secured: SecuredKafka, tmp_path: Path
) -> None:
    """One worker of two processes; another one follows, and takes over."""
    place = await deployment(secured, Role.WORKER)
    chosen = {n.removeprefix("TASKFLOW_"): value for n, value in place.environment().items()}
    addresses = {name: f"127.0.0.1:{free_port()}" for name in ("family", "follows")}
    family = Family("family", tmp_path, secured.scram, place.prefix)
    follows = WorkerProcess("follows", tmp_path, secured.scram, place.prefix, STANDBY="1")
    async with ClientSession() as session, FlowClient(place.administrator()) as client:

        async def until(worker: WorkerProcess, right: Callable[[dict[str, Any]], bool]) -> None:
            report: dict[str, Any] = {}
            async with asyncio.timeout(patience(60)):
                while not report or not right(report):
                    await asyncio.sleep(0.05)
                    assert worker.running, worker.output()[-3000:]
                    with suppress(ClientError):
                        async with session.get(
                            f"http://{addresses[worker.name]}/ready"
                        ) as response:
                            report = await response.json()
                    assert report.get("denied") is None, report

        def owns(report: dict[str, Any]) -> bool:
            return report["ready"] and [*report["partitions"]] == ["0"]

        try:
            for worker in (family, follows):
                worker.choose(**chosen, HTTP=addresses[worker.name])
            await family.start()
            await until(family, owns)
            assert (await client.send(command())).verdict == "accepted"
            await follows.start()
            await until(
                follows,
                lambda report: owns(report) or report["standby"].get("0", {}).get("lag") == 0,
            )
            await family.kill()
            await until(follows, owns)
            assert (await client.send(command())).verdict == "accepted"
            assert await follows.end() == 0
        finally:
            for worker in (family, follows):
                if worker.running:
                    await worker.kill()
    await assert_decided_once(place, 2)


async def test_a_password_of_a_file_stands_nowhere(secured: SecuredKafka, tmp_path: Path) -> None:
    """Neither in argv and environment, nor in what a worker says, however much that is."""
    place = await deployment(secured, Role.WORKER)
    file = tmp_path / "password"
    file.write_text(place.user.password + "\n")
    address = f"127.0.0.1:{free_port()}"
    chosen = {n.removeprefix("TASKFLOW_"): value for n, value in place.environment().items()}
    del chosen["SASL_PASSWORD"]
    async with (
        workers(1, tmp_path, secured.scram, place.prefix, WorkerProcess) as (worker,),
        ClientSession() as s,
    ):
        worker.choose(**chosen, SASL_PASSWORD_FILE=str(file), HTTP=address, LOG_LEVEL="debug")
        await worker.start()
        await worker.until_ready()
        shown = [worker.output(), *_of_process(worker.process.pid)]
        for path in ("/ready", "/metrics"):
            async with s.get(f"http://{address}{path}") as response:
                shown.append(await response.text())
        assert await worker.end() == 0
    assert '"ready":true' in shown[-2]
    assert not [one for one in [*shown, worker.output()] if place.user.password in one]


def _of_process(pid: int) -> list[str]:
    """Its arguments and its environment, as others of this machine may see them."""
    return [Path(f"/proc/{pid}/{name}").read_text() for name in ("cmdline", "environ")]
