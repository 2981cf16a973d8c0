"""The program in processes that are forked from one that has imported everything.

A process that restarts takes half a second for its imports; this one takes none, and may have
its standard streams closed, full or broken like any other.

    python forked_program.py < calls > results

A call is a JSON line: `arguments`, `environment` (variables to set), `stdout` (one of STREAMS, or
null to have it captured), `stdin` what it reads, or null for a closed one. A result is one, too:
`code`, `out`, `err`. With `log` it is not waited for: its output goes to that file, `environment`
is all that it has, its result is its `pid`, and its exit code goes to the file `code` in the end.
"""

import asyncio
import atexit
import gc
import json
import os
import pkgutil
import signal
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
from uuid import uuid4

from tests.support.machine import patience

STREAMS = ("closed", "full", "broken")
DEADLINE_S = patience(60.0)
NO_VIEWS = "127.0.0.1:1"
"""Where views are by default, another test's may answer, or a developer's own."""


def inherited() -> dict[str, str]:
    """Our environment without settings, but for what makes embedded brokers start soon."""
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TASKFLOW_") or name.startswith("TASKFLOW_BROKER_")
    }


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
        made = ForkedProgram(self._process, {**self._environment, **environment})
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
        return Result(**self._call(call))

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> "Child":
        """Start it with this environment; what it says is added to `log`."""
        code = log.with_name(f"{log.name}-{uuid4().hex}.code")
        call = {
            "arguments": arguments,
            "environment": dict(environment),
            "log": str(log),
            "code": str(code),
        }
        return Child(self._call(call)["pid"], code)

    def _call(self, call: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._turn:
            self._process.stdin.write(json.dumps(call) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        assert line, f"the forking process ended at {call['arguments']}"
        return json.loads(line)


class Child:
    """A program that was started, as much of `asyncio.subprocess.Process` as tests need."""

    def __init__(self, pid: int, code: Path) -> None:
        self.pid = pid
        self._code = code

    @property
    def returncode(self) -> int | None:
        return int(self._code.read_bytes()) if self._code.exists() else None

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    async def wait(self) -> int:
        while (code := self.returncode) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return code


@cache
def shared_program() -> ForkedProgram:
    """The process that forks, for all that this process calls; with its environment's settings."""
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(forked_program({}))


async def program(environment: Mapping[str, str], *arguments: str) -> Result:
    """What the program says and how it ends with the settings of an environment."""
    settings = {name: value for name, value in environment.items() if name not in inherited()}
    return await asyncio.to_thread(shared_program().where(settings), *arguments)


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
    import processor.views

    for package in (processor.cli, processor.views):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name != "processor.views.faust.app":  # it takes settings when imported
                import_module(module.name)
    import_module("processor.worker.composition")
    import_module("typer.rich_utils")  # what lays out help, which is most of what help takes
    assert threading.active_count() == 1, "a process with threads must not fork"
    # The collector would look at all that is imported again in each child, which copies its pages.
    gc.collect()
    gc.freeze()
    children: dict[int, str] = {}
    signal.signal(signal.SIGCHLD, lambda *_: reap(children))
    for line in calls:
        call = json.loads(line)
        if "log" in call:
            code = call.pop("code")
            pid = _start(**call)
            children[pid] = code
            reap(children)
            result = {"pid": pid}
        else:
            result = _call(**call)
        results.write(json.dumps(result) + "\n")
        results.flush()


def reap(children: dict[int, str]) -> None:
    """Write the exit codes of those that have ended. The signal of one may come amid the loop for
    another: the inner call then reaps both."""
    for pid, path in [*children.items()]:
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue
        if ended and children.pop(pid, ""):
            # Bytes: a codec is imported at its first use, and half imported for a call within.
            Path(f"{path}.new").write_bytes(b"%d" % os.waitstatus_to_exitcode(status))
            Path(f"{path}.new").rename(path)


def _start(arguments: Sequence[str], environment: Mapping[str, str], log: str) -> int:
    child = os.fork()
    if child == 0:
        try:
            os.environ.clear()
            out = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.dup2(out, 1)
            null = os.open(os.devnull, os.O_RDONLY)
            _become(arguments, environment, None, null, out, out, deadline_s=None)
        finally:
            os._exit(99)
    return child


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
    deadline_s: float | None = DEADLINE_S,
) -> None:
    """The program, with the standard streams that Python gives to a process that starts so."""
    import faulthandler

    os.dup2(err, 2)
    sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if deadline_s is not None:
        faulthandler.dump_traceback_later(deadline_s, exit=True, file=2)
    os.environ.update(environment)
    sys.argv[1:] = arguments
    os.close(0)
    sys.stdin = None
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
    sys.stdout = None if stdout == "closed" else os.fdopen(1, "w", closefd=False)

    from processor.cli.main import entry_point

    # As a script does: what is left is flushed, and an error that nothing handles is shown.
    try:
        code = entry_point()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.stdin, sys.stdout)
