"""Any program does a step: input on stdin, result from stdout, exit code not 0 fails."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from processor.cli.step import executor
from processor.cli.step.executor import CommandFailed, run_program
from processor.client import GiveUp, Step
from processor.client.step import Lease
from processor.contract.steps import WorkItem


def a_step(input_json: Any = None) -> Step:
    item = WorkItem(
        flow_id="0d9f5f2e-7d2b-4c8b-9a51-1c8a8a3f0d11",
        run_id="one",
        task="classify",
        attempt=2,
        max_attempts=3,
        input_json=input_json,
        lease_ms=60_000,
        event_id=3,
        at="2026-01-01T12:00:00.000Z",
    )

    async def report(value: Any) -> None:
        raise AssertionError(value)

    return Step(item, attempt=2, lease=Lease(time.monotonic), report=report)


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


async def test_input_comes_on_stdin_and_what_is_printed_is_the_result() -> None:
    program = "import json, sys; print(json.dumps({'got': json.load(sys.stdin)}))"
    assert await run_program(a_step({"mail": "é"}), python(program)) == {"got": {"mail": "é"}}


async def test_names_of_the_attempt_are_in_the_environment() -> None:
    program = "import os; print(os.environ['STEP_KEY'], os.environ['STEP_ATTEMPT'])"
    found = await run_program(a_step(), python(program))
    assert found == "0d9f5f2e-7d2b-4c8b-9a51-1c8a8a3f0d11/one 2"


@pytest.mark.parametrize(
    ("printed", "result"), [("", None), ("\\n", None), ("12", 12), ("no json\\n", "no json")]
)
async def test_text_that_is_no_json_is_the_result_as_text(printed: str, result: Any) -> None:
    assert await run_program(a_step(), python(f"print('{printed}', end='')")) == result


async def test_an_exit_code_fails_the_attempt_with_the_end_of_stderr(capfd: Any) -> None:
    program = "import sys; sys.stderr.write('no such mail\\n'); sys.exit(3)"
    with pytest.raises(CommandFailed, match="exit code 3: no such mail"):
        await run_program(a_step(), python(program))
    assert "no such mail" in capfd.readouterr().err


async def test_a_signal_fails_the_attempt() -> None:
    with pytest.raises(CommandFailed, match="killed by SIGKILL"):
        await run_program(a_step(), python("import os; os.kill(os.getpid(), 9)"))


async def test_a_result_that_is_too_large_gives_up() -> None:
    with pytest.raises(GiveUp, match="more than 64 KiB"):
        await run_program(a_step(), python("print('x' * 70_000)"))


async def test_a_program_that_reads_no_input_may_end_before_it_is_written() -> None:
    assert await run_program(a_step("x" * 500_000), python("print(1)")) == 1


async def test_a_cancelled_program_ends_with_its_children(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(executor, "TERMINATE_GRACE_S", 0.2)
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    program = (
        "import os, pathlib, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"pathlib.Path({str(ready)!r}).write_text(str(os.getpid())); time.sleep(600)"
    )
    running = asyncio.create_task(run_program(a_step(), python(program)))
    pid = int(await asyncio.to_thread(ready.read_text))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
