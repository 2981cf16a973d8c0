"""Directories that cannot be used: what a command says, whose names they are."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from processor.cli.main import DONE, REFUSED, UNREACHABLE, WRONG_USE
from processor.embedded.broker import free_port
from tests.support.forked_program import ForkedProgram, inherited, shared_program
from tests.support.machine import patience

NOT_UTF8 = os.fsdecode(b"\xff")
NOWHERE = "127.0.0.1:1"
WITH_TABLES = {
    **dict.fromkeys(("flow list", "topics check", "verify", "doctor", "export x.db"), UNREACHABLE),
    "rebuild --check": DONE,
}
"""Commands that look into the state directory, and how each ends without a broker."""


@pytest.fixture(scope="module")
def taskflow() -> ForkedProgram:
    addresses = {"TASKFLOW_HTTP": "off", "TASKFLOW_VIEWS_HTTP": f"127.0.0.1:{free_port()}"}
    return shared_program().where({"TASKFLOW_BOOTSTRAP_SERVERS": NOWHERE, **addresses})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


@pytest.mark.parametrize("command", ["broker", "up"])
@pytest.mark.parametrize("variable", ["STATE_DIR", "CACHE_DIR"])
@pytest.mark.parametrize("name", ["file/inner", NOT_UTF8])
def test_the_embedded_broker_names_a_directory_that_it_cannot_use(
    command: str, variable: str, name: str, taskflow: ForkedProgram, file: Path
) -> None:
    place = {"STATE_DIR": str(file.parent / "state")} | {variable: str(file.parent / name)}

    done = taskflow(command, **place)

    assert done.code == REFUSED
    assert "Traceback" not in done.err
    assert f"name another directory in TASKFLOW_{variable}." in done.err
    assert ("not UTF-8" if name == NOT_UTF8 else "not a directory") in done.err


def test_a_worker_names_a_directory_that_it_cannot_use(taskflow: ForkedProgram, file: Path) -> None:
    done = taskflow("worker", STATE_DIR=str(file))
    assert (done.code, "name another in TASKFLOW_STATE_DIR" in done.err) == (REFUSED, True)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file system knows no such names")
async def test_a_state_directory_may_have_any_name(taskflow: ForkedProgram, tmp_path: Path) -> None:
    """Beside each other: all but one of them hope for a broker for seconds."""
    environment = {
        **inherited(),
        "TASKFLOW_BOOTSTRAP_SERVERS": NOWHERE,
        "TASKFLOW_STATE_DIR": str(tmp_path / NOT_UTF8),
    }
    logs = {line: tmp_path / f"{line.split()[0]}.log" for line in WITH_TABLES}

    running = [taskflow.start(line.split(), environment, log) for line, log in logs.items()]
    async with asyncio.timeout(patience(120)):
        codes = await asyncio.gather(*(one.wait() for one in running))

    said = {line: log.read_text("utf-8", "surrogateescape") for line, log in logs.items()}
    assert dict(zip(logs, codes, strict=True)) == WITH_TABLES, said
    assert not [line for line in said if "Traceback" in said[line]], said


@pytest.mark.parametrize("arguments", [["flow", "show", NOT_UTF8], [NOT_UTF8], ["send", NOT_UTF8]])
def test_an_argument_that_is_not_utf_8_is_refused(
    arguments: list[str], taskflow: ForkedProgram
) -> None:
    assert taskflow(*arguments) == (WRONG_USE, "", "The argument '\\udcff' is not UTF-8.\n")
