"""Run workers and executors as processes: start, kill, stop and starve them."""

import asyncio
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from processor.errors import TaskflowError
from processor.runtime import sleep_unless
from processor.settings import PREFIX
from processor.testing.chaos.load import TASK

KEPT_BYTES: Final = 256 * 1024
"""Of what a worker has said, in memory; its log has all of it."""
READY: Final = '"worker ready"'
AT_A_POINT: Final = '"a crash point is reached"'
EXECUTING: Final = "doing steps of "
LANDMARKS: Final = (READY, AT_A_POINT, EXECUTING)
"""What is listened for, in a worker's log of JSON lines, and in what an executor says."""

GROUP: Final = "torture-executors"
FAILING_S: Final = 0.25

CAN_LIMIT_FILES: Final = hasattr(resource, "prlimit")
"""Linux lets us change the limits of a child that runs."""


class WorkerEnded(TaskflowError):
    """A worker ended by itself."""


class WorkerSilent(TaskflowError):
    """A worker did not come so far in time."""


class WorkerProcess:
    """`taskflow worker` with a state directory of its own, below `home`.

    It ends with us, however we end: it holds the other end of its standard input.
    """

    command: tuple[str, ...] = ("worker", "--with-parent")

    def __init__(self, name: str, home: Path, environment: Mapping[str, str]) -> None:
        self.name = name
        self.state_dir = home / name
        self.log = home / f"{name}.log"
        self._environment = {**environment, f"{PREFIX}STATE_DIR": str(self.state_dir)}
        self._process: asyncio.subprocess.Process | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._output = ""
        self._seen: set[str] = set()
        self._spoke = asyncio.Event()
        self._ended_by_us = True

    @property
    def process(self) -> asyncio.subprocess.Process:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    @property
    def output(self) -> str:
        """What it has said since its last start, the newest of it."""
        return self._output

    async def start(self, **settings: str) -> None:
        """`settings`, without the `TASKFLOW_`: for this run alone."""
        own = {f"{PREFIX}{name}": value for name, value in settings.items()}
        self._output = ""
        self._seen.clear()
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", *self.command),
            env={**self._environment, **own},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches us, and we end it
        )
        self._ended_by_us = False
        self._hearing = asyncio.create_task(self._read_output(self._process))

    async def _read_output(self, process: asyncio.subprocess.Process) -> None:
        """We write its log: it could not any more, where its files may not grow."""
        assert process.stdout is not None
        with self.log.open("ab") as log:
            while some := await process.stdout.read(65_536):
                log.write(some)
                log.flush()
                self._output = (self._output + some.decode("utf-8", "replace"))[-KEPT_BYTES:]
                self._seen.update(words for words in LANDMARKS if words in self._output)
                self._spoke.set()
        await process.wait()
        self._spoke.set()

    async def until_printed(self, landmark: str, *, timeout_s: float) -> None:
        """Wait until it has said one of LANDMARKS in this run.

        Raises WorkerSilent, and WorkerEnded if it can say nothing any more.
        """
        deadline = time.monotonic() + timeout_s
        while landmark not in self._seen:
            if not self.running and self._hearing is not None and self._hearing.done():
                raise WorkerEnded(f"{self.name} ended with code {self.process.returncode}.")
            self._spoke.clear()
            await sleep_unless(self._spoke, 0.5)
            if time.monotonic() > deadline:
                raise WorkerSilent(f"{self.name} did not say {landmark} within {timeout_s:g} s.")

    def check(self) -> None:
        """Raises WorkerEnded unless it runs, or we have ended it."""
        if not self.running and not self._ended_by_us:
            raise WorkerEnded(
                f"{self.name} ended by itself, with code {self.process.returncode}; "
                f"its last words: {self._output[-2000:]}"
            )

    async def kill(self) -> None:
        """SIGKILL, and await the end."""
        self._ended_by_us = True
        self._signal(signal.SIGKILL)
        await self._end()

    async def ended(self, *, timeout_s: float) -> int:
        """Wait for an end that we have brought about. Raises WorkerSilent."""
        self._ended_by_us = True
        try:
            async with asyncio.timeout(timeout_s):
                await self.process.wait()
        except TimeoutError:
            raise WorkerSilent(f"{self.name} did not end within {timeout_s:g} s.") from None
        return await self._end()

    async def end(self, *, timeout_s: float = 20.0) -> int:
        """SIGTERM, and the exit code. Raises WorkerSilent."""
        self._ended_by_us = True
        self._signal(signal.SIGTERM)
        return await self.ended(timeout_s=timeout_s)

    async def _end(self) -> int:
        code = await self.process.wait()
        if self._hearing is not None:
            await self._hearing
        return code

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, signum: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signum)

    def limit_files(self, size_bytes: int | None) -> None:
        """No file of it may grow beyond that from now on: writing fails, as on a disk that cannot
        any more. None: they may again. On Linux only; needs no privilege."""
        _, hard = resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE)
        soft = hard if size_bytes is None else size_bytes
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (soft, hard))

    def tables(self) -> list[Path]:
        """Its table files, the largest first."""
        return sorted(self.state_dir.glob("*.db"), key=lambda path: -path.stat().st_size)


class ExecutorProcess(WorkerProcess):
    """`taskflow step run`: does the steps of the load, each with a program of its own that sleeps
    for as long as the input says, and fails where that is FAILING_S."""

    command = (
        *("step", "run", "--with-parent", "--task", TASK, "--group", GROUP),
        *("--concurrency", "16", "--drain", "5s", "--", "sh", "-c"),
        f'read s; sleep "$s"; case "$s" in {FAILING_S}) exit 1;; esac; echo "$s"',
    )

    @property
    def holder(self) -> str:
        """Its `issued_by` in this run, once it has said what it does."""
        found = re.search(rf"{EXECUTING}{TASK} as (\S+);", self.output)
        return "" if found is None else found[1]


def remove_table(path: Path) -> None:
    """Remove a table's files, as an operator may whose worker is stopped."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def flip(path: Path, at: int, mask: int) -> None:
    """Change bits of one byte of a file."""
    with path.open("r+b") as file:
        file.seek(at)
        (old,) = file.read(1)
        file.seek(at)
        file.write(bytes([old ^ mask]))
        file.flush()
        os.fsync(file.fileno())
