"""The program in processes that are forked from one that has imported everything.

A process that starts anew takes half a second for its imports; this one takes none, and may have
its standard streams closed, full or broken like any other.

    python forked_program.py < calls > results

A call is a JSON line: `arguments`, `environment` (variables to set), `stdout` (one of STREAMS, or
null to have it captured), `stdin` what it reads, or null for a closed one. A result is one, too:
`code`, `out`, `err`.
"""

import atexit
import json
import os
import pkgutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

from tests.support.machine import patience
from tests.support.processes import inherited

STREAMS = ("closed", "full", "broken")
DEADLINE_S = patience(60.0)


class Result(NamedTuple):
    """How a call ended; `out` is empty unless it was captured."""

    code: int
    out: str
    err: str


class ForkedProgram:
    """`taskflow` with the variables of an environment."""

    def __init__(self, process: "subprocess.Popen[str]", environment: Mapping[str, str]) -> None:
        self._process = process
        self._environment = dict(environment)
        self._turn = threading.Lock()

    def where(self, environment: Mapping[str, str]) -> "ForkedProgram":
        """The same with these variables too; taken by turns."""
        made = ForkedProgram(self._process, self._environment | environment)
        made._turn = self._turn
        return made

    def __call__(
        self, *arguments: str, stdout: str | None = None, stdin: str | None = "", **more: str
    ) -> Result:
        """Run it once; `stdin` None: closed; `more` are variables without their `TASKFLOW_`."""
        named = {f"TASKFLOW_{name}": value for name, value in more.items()}
        call = {
            "arguments": arguments,
            "environment": self._environment | named,
            "stdout": stdout,
            "stdin": stdin,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn:
            self._process.stdin.write(json.dumps(call) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, f"the forking process ended at {arguments}"
        return Result(**json.loads(line))


@cache
def shared_program() -> ForkedProgram:
    """The process that forks, for all that this process calls; with its environment's settings."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(forked_program({}))


@contextmanager
def forked_program(environment: Mapping[str, str]) -> Iterator[ForkedProgram]:
    """The process that forks, until the block ends."""
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.forked_program"],
        cwd=root,
        env={**inherited(), "PYTHONPATH": str(root)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield ForkedProgram(process, environment)
        assert process.stdin is not None
        process.stdin.close()


def _serve(calls: IO[str], results: IO[str]) -> None:
    import processor.cli

    for module in pkgutil.walk_packages(processor.cli.__path__, "processor.cli."):
        import_module(module.name)
    assert threading.active_count() == 1, "a process with threads must not fork"
    for line in calls:
        results.write(json.dumps(_call(**json.loads(line))) + "\n")
        results.flush()


def _call(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    stdout: str | None,
    stdin: str | None,
) -> dict[str, Any]:
    with (
        tempfile.TemporaryFile() as read,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        if stdin is not None:
            read.write(stdin.encode())
            read.seek(0)
        child = os.fork()
        if child == 0:
            try:
                read_fd = None if stdin is None else read.fileno()
                _become(arguments, environment, stdout, read_fd, out.fileno(), err.fileno())
            finally:
                os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        shown = []
        for file in (out, err):
            file.seek(0)
            shown.append(file.read().decode("utf-8", "replace"))
    return {"code": code, "out": shown[0], "err": shown[1]}


def _become(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    stdout: str | None,
    stdin: int | None,
    out: int,
    err: int,
) -> None:
    """The program, with the standard streams that Python gives to a process that starts so."""
    import faulthandler

    os.dup2(err, 2)
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
    faulthandler.dump_traceback_later(DEADLINE_S, exit=True, file=2)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    os.close(0)
    sys.stdin = None  # type: ignore[assignment]
    if stdin is not None:
        os.dup2(stdin, 0)
        sys.stdin = os.fdopen(0, closefd=False)
    match stdout:
        case "closed":
            os.close(1)
        case "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
        case "broken":
            reader, writer = os.pipe()
            os.dup2(writer, 1)
            os.close(reader)
        case _:
            os.dup2(out, 1)
    sys.stdout = None if stdout == "closed" else os.fdopen(1, "w", closefd=False)  # type: ignore[assignment]

    from processor.cli.main import entry_point

    # As a script does: what is left is flushed, and an error that nothing handles is shown.
    try:
        code = entry_point()
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
