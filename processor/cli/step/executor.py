"""Do a step with any program: input on its stdin, result from its stdout."""

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import orjson

from processor.client import GiveUp, Step

RESULT_MAX_BYTES: Final = 64 * 1024
ERRORS_KEPT_BYTES: Final = 2_000
TERMINATE_GRACE_S: Final = 5.0


class CommandFailed(Exception):
    """The program ended with an exit code other than 0."""


async def run_program(step: Step, command: Sequence[str]) -> Any:
    """Run `command` for one attempt and return what it printed, as JSON where it is JSON.

    Raises CommandFailed with the exit code and the end of what it wrote to stderr, which is also
    passed on. A program that is cancelled gets SIGTERM, and SIGKILL after TERMINATE_GRACE_S.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **_environment(step)},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_feed(process.stdin, orjson.dumps(step.input)))
            printed = group.create_task(_bounded(process.stdout))
            errors = group.create_task(_passed_on(process.stderr))
        code = await process.wait()
    finally:
        await _end(process)
    if code != 0:
        tail = errors.result().decode(errors="replace").strip()
        how = f"exit code {code}" if code > 0 else f"killed by {signal.Signals(-code).name}"
        raise CommandFailed(f"{how}: {tail}" if tail else how)
    return _value(printed.result())


def _environment(step: Step) -> dict[str, str]:
    names = {
        "STEP_FLOW_ID": step.flow_id,
        "STEP_RUN_ID": step.run_id,
        "STEP_TASK": step.task,
        "STEP_ATTEMPT": str(step.attempt),
        "STEP_MAX_ATTEMPTS": str(step.max_attempts),
        "STEP_KEY": step.step_key,
    }
    if step.traceparent is not None:
        names["TRACEPARENT"] = step.traceparent
    return names


async def _feed(stdin: asyncio.StreamWriter, value: bytes) -> None:
    with suppress(BrokenPipeError, ConnectionResetError):  # it need not read its input
        stdin.write(value + b"\n")
        await stdin.drain()
    with suppress(BrokenPipeError, ConnectionResetError):
        stdin.close()
        await stdin.wait_closed()


async def _bounded(stdout: asyncio.StreamReader) -> bytes:
    printed = bytearray()
    while chunk := await stdout.read(RESULT_MAX_BYTES):
        if len(printed) <= RESULT_MAX_BYTES:
            printed += chunk
    return bytes(printed)


async def _passed_on(stderr: asyncio.StreamReader) -> bytes:
    kept = b""
    while chunk := await stderr.read(RESULT_MAX_BYTES):
        sys.stderr.buffer.write(chunk)
        sys.stderr.buffer.flush()
        kept = (kept + chunk)[-ERRORS_KEPT_BYTES:]
    return kept


def _value(printed: bytes) -> Any:
    """The printed bytes as JSON, else as text; null if there are none."""
    if len(printed) > RESULT_MAX_BYTES:
        raise GiveUp(f"the program printed more than {RESULT_MAX_BYTES // 1024} KiB")
    if not printed.strip():
        return None
    try:
        return orjson.loads(printed)
    except orjson.JSONDecodeError:
        return printed.decode(errors="replace").rstrip("\n")


async def _end(process: asyncio.subprocess.Process) -> None:
    """End the program with all that it started."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signum)
        with suppress(TimeoutError):
            async with asyncio.timeout(TERMINATE_GRACE_S):
                await process.wait()
