"""Start the JVM, and end it when the process that asked for it ends.

Run as a script, by path and without site-packages: `supervisor.py PARENT_PID REMOVE JAVA...`.
It prints the JVM's pid, then obeys single bytes on stdin: `T` terminates, `K` kills. The end of
stdin means that the parent is gone, however it went: no handler of its own has to run for that,
which is why this also holds for kill -9 and on systems without a parent-death signal.
REMOVE is a directory to delete in that case, or empty.
"""

import contextlib
import ctypes
import os
import select
import shutil
import signal
import sys
import types
from typing import NoReturn

GRACE_S = 3.0
PARENT_CHECK_S = 1.0
PR_SET_PDEATHSIG = 1


def exec_java(java: list[str], supervisor_pid: int) -> NoReturn:
    """Become the JVM. Runs between fork and exec; there are no threads here that could mind."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != supervisor_pid:
        os._exit(1)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    os.dup2(2, 1)
    os.execv(java[0], java)


def obey(jvm_pid: int, jvm_ended_fd: int, parent_pid: int) -> bool:
    """Carry out orders until the JVM has ended; False: the parent has gone."""
    while True:
        ready, _, _ = select.select([0, jvm_ended_fd], [], [], PARENT_CHECK_S)
        if jvm_ended_fd in ready:
            return True
        if 0 in ready:
            order = os.read(0, 1)
            if not order:
                return False
            os.kill(jvm_pid, signal.SIGKILL if order == b"K" else signal.SIGTERM)
        # A child that the parent forked may still hold the other end of our stdin open.
        if os.getppid() != parent_pid:
            return False


def end(jvm_pid: int, jvm_ended_fd: int) -> None:
    """Let the JVM close its logs within the grace period, then end it."""
    os.kill(jvm_pid, signal.SIGTERM)
    ended, _, _ = select.select([jvm_ended_fd], [], [], GRACE_S)
    if not ended:
        os.kill(jvm_pid, signal.SIGKILL)


def on_sigterm(_signum: int, _frame: types.FrameType | None) -> None:
    raise SystemExit(128 + signal.SIGTERM)


def main(parent_pid: int, remove: str, java: list[str]) -> int:
    signal.signal(signal.SIGTERM, on_sigterm)
    # The JVM alone holds the writing end, so its end of file is the JVM's own end.
    jvm_ended_fd, held_by_jvm_fd = os.pipe()
    os.set_inheritable(held_by_jvm_fd, True)
    supervisor_pid = os.getpid()
    jvm_pid = os.fork()
    if jvm_pid == 0:
        exec_java(java, supervisor_pid)
    os.close(held_by_jvm_fd)
    with contextlib.suppress(BrokenPipeError):
        os.write(1, f"{jvm_pid}\n".encode())

    parent_lives = False
    try:
        parent_lives = obey(jvm_pid, jvm_ended_fd, parent_pid)
    finally:
        if not parent_lives:
            end(jvm_pid, jvm_ended_fd)
        _, status = os.waitpid(jvm_pid, 0)
        if not parent_lives and remove:
            shutil.rmtree(remove, ignore_errors=True)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
