"""A real terminal as standard output and standard error."""

import os
import pty
import re
import sys
import threading
import tty
from collections.abc import Callable
from typing import Final

import pytest

END: Final = b"<the end of what was written>"


def on_a_terminal(monkeypatch: pytest.MonkeyPatch, write: Callable[[], object]) -> str:
    """What `write` writes to a real terminal, by standard output and by standard error."""
    leader, pseudo_terminal = pty.openpty()
    tty.setraw(pseudo_terminal)  # bytes come out as they were written
    read = bytearray()

    def take() -> None:
        while not read.endswith(END):
            read.extend(os.read(leader, 65_536))

    taking = threading.Thread(target=take, daemon=True)
    taking.start()
    try:
        with (
            os.fdopen(os.dup(pseudo_terminal), "w", encoding="utf-8") as out,
            os.fdopen(os.dup(pseudo_terminal), "w", encoding="utf-8") as err,
            monkeypatch.context() as patched,
        ):
            patched.setenv("TERM", "xterm-256color")
            patched.setattr(sys, "stdout", out)
            patched.setattr(sys, "stderr", err)
            write()
        os.write(pseudo_terminal, END)
        taking.join()
        return read.removesuffix(END).decode()
    finally:
        os.close(pseudo_terminal)
        os.close(leader)


def without_styles(text: str) -> str:
    """Without the escape sequences by which colours are set and bars are drawn, and line ends."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n\t]", "", text)
