"""Run a JVM as a child process that does not outlive this one."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from processor.embedded.directory import Directory
from processor.embedded.environment import java_environment

SUPERVISOR = Path(__file__).with_name("supervisor.py")
POLL_S = 0.02
TAIL_LINES = 15
SIGNALLED = 128
"""The supervisor's exit code is this and N if signal N ended the JVM."""

Order = Literal[b"T", b"K"]
TERMINATE: Order = b"T"
KILL: Order = b"K"


class JavaProcess:
    """One run of `java` in `directory`, under a supervisor that ends it when we end.

    It has a session of its own: Ctrl-C in the terminal reaches us and not the JVM, so that we
    can finish what needs it. Nothing here is tied to an event loop; start it in one and stop it
    in another.
    """

    def __init__(self, java: Sequence[str], directory: Directory) -> None:
        self._log = directory.log
        with self._log.open("ab") as log:
            self._log_from = log.tell()
            self._supervisor = subprocess.Popen(
                [
                    *(sys.executable, "-I", "-S", str(SUPERVISOR)),
                    *(str(os.getpid()), str(directory.path) if directory.temporary else ""),
                    *java,
                ],
                bufsize=0,
                cwd=directory.path,
                env=java_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=(directory.lock_fd,),
                start_new_session=True,
            )
        self._pid: int | None = None

    @property
    def pid(self) -> int:
        """The JVM's own process id. Blocks for the supervisor's first breath (~30 ms)."""
        if self._pid is None:
            assert self._supervisor.stdout is not None
            self._pid = int(self._supervisor.stdout.readline() or b"-1")
        return self._pid

    @property
    def ended(self) -> bool:
        return self._supervisor.poll() is not None

    @property
    def how_it_ended(self) -> str:
        """What became of the JVM, as in `was killed by SIGKILL`."""
        code = self._supervisor.poll()
        if code is None:
            return "is running"
        if code < 0:
            return "ended with its supervisor"
        if code > SIGNALLED:
            with suppress(ValueError):
                return f"was killed by {signal.Signals(code - SIGNALLED).name}"
        return f"ended with exit code {code}"

    async def end(self, order: Order, *, within_s: float) -> bool:
        """Give the order and await the end; False if it did not come in time."""
        assert self._supervisor.stdin is not None
        if not self._supervisor.stdin.closed:
            with suppress(BrokenPipeError):  # it has ended by itself
                self._supervisor.stdin.write(order)
        deadline = time.monotonic() + within_s
        while not self.ended:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_S)
        self.close()
        return True

    def close(self) -> None:
        """Let go of it. A JVM that still runs gets the supervisor's short grace, then ends."""
        for pipe in (self._supervisor.stdin, self._supervisor.stdout):
            assert pipe is not None
            pipe.close()

    def last_words(self) -> str:
        """The last lines of this run's log."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_from, log.seek(0, os.SEEK_END) - 20_000))
            lines = log.read().decode("utf-8", "replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:]) or "(its log is empty)"
