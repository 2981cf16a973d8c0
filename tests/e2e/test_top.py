"""`taskflow top` on a real terminal: it draws, hears keys, and leaves the terminal as it was."""

import asyncio
import os
import pty
import sys
import termios
from pathlib import Path

from tests.support.machine import patience
from tests.support.stub_views import command, showing, story

ROOT = Path(__file__).parents[2]
TIMEOUT_S = patience(30)


class Terminal:
    """A pseudo terminal with a program on it."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        termios.tcsetwinsize(self.theirs, (40, 160))
        os.set_blocking(self.ours, False)
        self.text = ""
        self._more = asyncio.Event()
        asyncio.get_running_loop().add_reader(self.ours, self._read)

    def _read(self) -> None:
        try:
            self.text += os.read(self.ours, 65536).decode("utf-8", "replace")
        except OSError:  # the program is gone
            asyncio.get_running_loop().remove_reader(self.ours)
        self._more.set()

    def type(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    async def until(self, words: str) -> None:
        """Wait until `words` are written, after what was waited for last."""
        async with asyncio.timeout(TIMEOUT_S):
            while words not in self.text:
                self._more.clear()
                await self._more.wait()
        self.text = self.text.partition(words)[2]

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.ours)
        os.close(self.ours)
        os.close(self.theirs)


async def test_it_is_live_and_hears_keys() -> None:
    views = story()
    async with showing(views) as url:
        terminal = Terminal()
        before = termios.tcgetattr(terminal.theirs)
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", "top", "--views", url),
            cwd=ROOT,
            env={**os.environ, "TERM": "xterm-256color"},
            stdin=terminal.theirs,
            stdout=terminal.theirs,
            stderr=terminal.theirs,
        )
        try:
            await terminal.until("\x1b[?1049h")  # a screen of its own
            await terminal.until("flows: ")
            await terminal.until("all, changed last")
            await terminal.until("reindex shard")
            terminal.type("o")
            await terminal.until("wait is over")
            await terminal.until("settle invoice 4711")
            views.send(
                command(7, "resume_external", topic="payments.settled", correlation_id="inv-4711")
            )
            await terminal.until("No flow is like that.")
            terminal.type("q")
            async with asyncio.timeout(TIMEOUT_S):
                assert await program.wait() == 0
            await terminal.until("\x1b[?1049l")
            assert termios.tcgetattr(terminal.theirs) == before
        finally:
            if program.returncode is None:
                program.kill()
                await program.wait()
            terminal.close()


async def test_a_pipe_gets_one_json_line_and_nobody_is_exit_code_1() -> None:
    async def said(url: str) -> tuple[int | None, bytes, bytes]:
        program = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "processor", "top", "--views", url),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(program.communicate(), TIMEOUT_S)
        return program.returncode, out, err

    async with showing(story()) as url:
        code, out, _ = await said(url)
        assert code == 0
        assert out.count(b"\n") == 1
        assert b'"flows_total":82' in out
    code, out, err = await said(url)
    assert (code, out) == (1, b"")
    assert b"taskflow views" in err
    assert b"Traceback" not in err
