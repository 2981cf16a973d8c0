"""The standard streams of the process: what happens when one is closed, full or broken.

- A reader of standard output that has gone (`| head`) is not an error: what is written from then on
  goes nowhere, and `reader_has_gone` says so to a command that would print without end.
- Standard output that cannot be written for another reason raises OutputLost, once.
- Standard error that cannot be written is ignored: there is nowhere to say so.
- A closed descriptor is occupied, so that no file or socket of ours gets its number.
"""

import errno
import io
import os
import select
import sys
from typing import Any, Final

STDIN, STDOUT, STDERR = 0, 1, 2
BUFFER_BYTES: Final = 64 * 1024


class OutputLost(BaseException):
    """Standard output cannot be written. Not an Exception: nothing on the way may handle it."""


class _Guarded(io.FileIO):
    """A descriptor for writing that fails at most once. `needed`: whether a failure is raised."""

    def __init__(self, descriptor: int, *, needed: bool, closed: bool) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.reader_has_gone = False
        self._needed = needed
        self._failure = OSError(errno.EBADF, "it is closed") if closed else None
        self._silent = False

    def write(self, data: Any) -> int:
        """All of `data`, or what the descriptor takes. Raises OutputLost."""
        size = memoryview(data).nbytes
        if self._silent:
            return size
        try:
            if self._failure is not None:
                raise self._failure
            while (written := super().write(data)) is None:
                # Another process that shares the descriptor has made it non-blocking.
                select.select((), (self.fileno(),), ())
            return written
        except BrokenPipeError:
            self.reader_has_gone = True
        except OSError as error:
            if self._needed:
                self._silent = True
                raise OutputLost(
                    f"Standard output cannot be written: {error.strerror or error}."
                ) from None
        self._silent = True
        return size


def guard_standard_streams() -> None:
    """Replace sys.stdout and sys.stderr by ones that behave as this module says; to be called once,
    before anything is opened."""
    closed = [descriptor for descriptor in (STDIN, STDOUT, STDERR) if not _is_open(descriptor)]
    for _ in closed:
        os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
    sys.stdout = _text(STDOUT, sys.stdout, needed=True, closed=STDOUT in closed)
    sys.stderr = _text(STDERR, sys.stderr, needed=False, closed=STDERR in closed)


def reader_has_gone() -> bool:
    """Whether standard output has no reader any more."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return isinstance(raw, _Guarded) and raw.reader_has_gone


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _text(descriptor: int, was: Any, *, needed: bool, closed: bool) -> io.TextIOWrapper:
    raw = _Guarded(descriptor, needed=needed, closed=closed)
    return io.TextIOWrapper(
        io.BufferedWriter(raw, BUFFER_BYTES),
        encoding=getattr(was, "encoding", "utf-8"),
        # A name that is not UTF-8 is shown escaped.
        errors="backslashreplace",
        line_buffering=not needed or raw.isatty(),
    )
