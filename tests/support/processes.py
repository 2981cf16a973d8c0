"""Workers as processes: started, killed, stopped and continued as the world does it."""

import asyncio
import json
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from tests.support.forked_program import NO_VIEWS, Child, inherited, shared_program
from tests.support.machine import patience, stretched

SESSION_TIMEOUT_S = stretched(2.0)
"""Below it, a busy machine and not the test would make an owner late."""


def environment(bootstrap: str, prefix: str, state_dir: Path, **settings: str) -> dict[str, str]:
    """What a worker sees; `settings` without the `TASKFLOW_`."""
    chosen = {
        "BOOTSTRAP_SERVERS": bootstrap,
        "TOPIC_PREFIX": prefix,
        "STATE_DIR": str(state_dir),
        "HTTP": "off",
        "VIEWS_HTTP": NO_VIEWS,
        "SESSION_TIMEOUT": f"{SESSION_TIMEOUT_S * 1000:.0f}ms",
        "LOG_FORMAT": "json",
        **settings,
    }
    return {**inherited(), **{f"TASKFLOW_{name}": value for name, value in chosen.items()}}


def heeds(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal. One that has just started has none yet, and
    ends by the signal instead of well. Linux says so; elsewhere it is taken for granted."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("ascii", "replace")
    except OSError:
        return True
    (caught,) = re.findall(r"^SigCgt:\s+(\w+)$", status, re.MULTILINE)
    return bool(int(caught, 16) >> (number - 1) & 1)


class WorkerProcess:
    """`python -m processor worker`; what it says goes to a file beside its state directory."""

    def __init__(self, name: str, home: Path, bootstrap: str, prefix: str, **settings: str) -> None:
        self.name = name
        self.state_dir = home / name
        self.log = home / f"{name}.log"
        self.log.touch()
        self._environment = environment(bootstrap, prefix, self.state_dir, **settings)
        self._process: asyncio.subprocess.Process | Child | None = None
        self.clock_ahead_s = 0.0
        """How far off its wall clock is, from its next start on."""

    def choose(self, **settings: str) -> None:
        """Settings of this worker alone, from its next start on."""
        self._environment |= {f"TASKFLOW_{name}": value for name, value in settings.items()}

    @property
    def process(self) -> asyncio.subprocess.Process | Child:
        assert self._process is not None, f"{self.name} was not started"
        return self._process

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self._program(), *self._arguments()),
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _arguments(self) -> tuple[str, ...]:
        return ("worker",)

    def _program(self) -> tuple[str, ...]:
        if self.clock_ahead_s:
            return "-P", str(Path(__file__).with_name("skewed_clock.py")), f"{self.clock_ahead_s}"
        return "-m", "processor"

    async def kill(self) -> None:
        """SIGKILL, and await the end."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def end(self, *, timeout_s: float = patience(20.0)) -> int:
        """SIGTERM, as soon as it heeds it, and the exit code."""
        async with asyncio.timeout(timeout_s):
            while self.running and not heeds(self.process.pid, signal.SIGTERM):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            return await self.process.wait()

    def pause(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def output(self) -> str:
        """What it has said; the last character may be written only half."""
        return self.log.read_text("utf-8", "replace")

    async def until_printed(
        self, words: str, *, times: int = 1, timeout_s: float = patience(30.0)
    ) -> None:
        """Wait until `words` stand `times` times in what it has said."""
        deadline = time.monotonic() + timeout_s
        while self.output().count(words) < times:
            assert self.running, f"{self.name} ended:\n{self.output()[-4000:]}"
            assert time.monotonic() < deadline, f"not told: {words!r}\n{self.output()[-4000:]}"
            await asyncio.sleep(0.02)

    async def until_ready(self, *, times: int = 1) -> None:
        await self.until_printed('"worker ready"', times=times)


class ForkedWorker(WorkerProcess):
    """A worker that starts without its imports: in a quarter of the time, with more memory, and
    with the arguments and environment of the process that forks it, as others see it."""

    async def start(self) -> None:
        if self.clock_ahead_s:
            await super().start()
        else:
            how = (self._arguments(), self._environment, self.log)
            # A call that has its turn may need what runs on this loop.
            self._process = await asyncio.to_thread(shared_program().start, *how)


class ProgramProcess(ForkedWorker):
    """Any command of the program that runs until it is ended."""

    def __init__(
        self,
        name: str,
        home: Path,
        bootstrap: str,
        prefix: str,
        arguments: Sequence[str],
        **settings: str,
    ) -> None:
        super().__init__(name, home, bootstrap, prefix, **settings)
        self._command = tuple(arguments)

    def _arguments(self) -> tuple[str, ...]:
        return self._command


@asynccontextmanager
async def workers(
    count: int,
    home: Path,
    bootstrap: str,
    prefix: str,
    kind: type[WorkerProcess] = ForkedWorker,
    **settings: str,
) -> AsyncIterator[list[WorkerProcess]]:
    """Some workers, not started yet; none of them lives longer than the block."""
    made = [kind(f"w{n}", home, bootstrap, prefix, **settings) for n in range(count)]
    try:
        yield made
    finally:
        for worker in made:
            if worker.running:
                with suppress(ProcessLookupError):  # it has ended meanwhile
                    worker.resume()
                await worker.kill()


def owner_of(partition: int, some: Sequence[WorkerProcess]) -> WorkerProcess:
    """Who has taken the partition over last, by what the workers say."""

    def taken_at(worker: WorkerProcess) -> str:
        return max(
            (
                line["at"]
                for line in log_lines(worker)
                if line["message"] == "the partition is taken over"
                and line["partition"] == partition
            ),
            default="",
        )

    return max(some, key=taken_at)


async def until_assigned(
    partitions: int, some: Sequence[WorkerProcess], *, timeout_s: float = patience(30.0)
) -> None:
    """Wait until the group has dealt each partition to one of them, and that one has taken it over.

    An owner that was late takes over again, for a moment, what the group has given to another:
    who took over last is the owner only where the group says so too.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        dealt = [(assigned_to(worker), worker) for worker in some]
        held = sorted(partition for its, _ in dealt for partition in its)
        if held == list(range(partitions)) and all(
            owner_of(partition, some) is worker for its, worker in dealt for partition in its
        ):
            return
        output = "\n".join(f"{worker.name}:\n{worker.output()[-4000:]}" for worker in some)
        assert time.monotonic() < deadline, f"not settled: {held}\n{output}"
        await asyncio.sleep(0.02)


def assigned_to(worker: WorkerProcess) -> list[int]:
    """By the group's last word to it."""
    assigned: list[int] = []
    for line in log_lines(worker):
        if line["message"] == "the group has assigned partitions":
            assigned = line["partitions"]
    return assigned


def log_lines(worker: WorkerProcess) -> Iterator[dict[str, Any]]:
    """What it has logged. A line that is still being written does not count."""
    return (
        json.loads(line)
        for line in worker.output().splitlines(keepends=True)
        if line.startswith("{") and line.endswith("\n")
    )
