"""Ask the views, and show what they say for `taskflow top`."""

import asyncio
import os
import re
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from pydantic import SecretStr
from rich.live import Live

from processor.cli.common.output import console, for_people, somebody_to_ask, write_json
from processor.cli.common.runner import Refused, run
from processor.cli.common.service_address import views_url
from processor.cli.top.screen import EVENTS, FLOWS, HISTORY, QUESTIONS, Shown, screen
from processor.client.http.views_client import NoViews, ViewsClient, asking
from processor.runtime import now_ms
from processor.settings import Settings

EVERY_S: Final = 1.0
_KEY: Final = re.compile(r"\x1b[\[O][A-Za-z]|.", re.DOTALL)
ARROWS: Final = {"\x1b[A": "k", "\x1b[B": "j", "\x1bOA": "k", "\x1bOB": "j"}
"""What terminals send for them, as the keys that do the same."""
END, BACK = ("q", "Q", "\x03", "\x04"), ("\r", "\n", "\x1b")


def show(settings: Settings, views: str | None, *, once: bool, json: bool) -> None:
    """Show the views at the address `views`, or at that of the settings."""
    url, token = views_url(settings, views), settings.views_read_token
    if not for_people(json):
        write_json(run(lambda: _snapshot(url, token)).document)
    elif once or not somebody_to_ask():
        out = console()
        out.print(screen(run(lambda: _snapshot(url, token)), out.width, out.height, now_ms()))
    else:
        run(lambda: _live(url, token))


async def _snapshot(url: str, token: SecretStr | None = None) -> Shown:
    async with asking(url, token) as views:
        shown = Shown(url)
        await refresh(views, shown, now_ms())
        if shown.trouble is not None:
            raise _nobody(shown.trouble)
        return shown


async def _live(url: str, token: SecretStr | None) -> None:
    """Until q is typed. Raises Refused if there is no answer in the beginning."""
    shown = await _snapshot(url, token)
    out = console()
    typed: asyncio.Queue[str] = asyncio.Queue()
    with (
        _keys(typed.put_nowait),
        Live(console=out, screen=True, auto_refresh=False, transient=True) as live,
    ):
        async with asking(url, token) as views:
            while True:
                live.update(screen(shown, out.width, out.height, now_ms()), refresh=True)
                try:
                    async with asyncio.timeout(EVERY_S):
                        key = await typed.get()
                except TimeoutError:
                    key = ""
                if key in END:
                    return
                if press(shown, key):
                    await refresh(views, shown, now_ms())


def press(shown: Shown, key: str) -> bool:
    """Do what a key is for, none (an empty text) included; whether to ask the views again."""
    if key and shown.helps:
        shown.helps = False
        return False
    match key:
        case "?":
            shown.helps = True
            return False
        case "j" | "k":
            shown.select(1 if key == "j" else -1)
            return shown.opened
        case _ if key in BACK:
            if shown.selected is None and key != "\x1b":
                shown.select(0)
            shown.opened = not shown.opened and key != "\x1b" and shown.selected is not None
            shown.history = {}
        case _ if key in QUESTIONS:
            shown.asked, shown.selected, shown.opened = key, None, False
    return True


async def refresh(views: ViewsClient, shown: Shown, now_ms: int) -> None:
    """Ask for all of it; what could not be had leaves what was there, and says so."""
    _, query = QUESTIONS[shown.asked]
    try:
        (
            shown.statistics,
            shown.partitions,
            shown.flows,
            shown.events,
        ) = await asyncio.gather(
            views.get("statistics", minutes=60),
            views.get("partitions"),
            views.get("flows", limit=FLOWS, **query(now_ms)),
            views.get("events", limit=EVENTS),
        )
        if shown.opened and shown.selected is not None:
            path = f"flows/{shown.selected}/history"
            shown.history = await views.get(path, order="desc", limit=HISTORY)
        shown.trouble = None
    except NoViews as missing:
        shown.trouble = str(missing)


def _nobody(trouble: str) -> Refused:
    return Refused(
        f"{trouble} Start them with `taskflow views`, or say where they are with --views. "
        "`taskflow flow list` reads the topics and needs none."
    )


@contextmanager
def _keys(on_key: Callable[[str], None]) -> Iterator[None]:
    """Read each key as it is typed; the terminal is as it was afterwards."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    loop = asyncio.get_running_loop()

    def read() -> None:
        typed = os.read(descriptor, 32)
        if not typed:
            loop.remove_reader(descriptor)
        for key in _KEY.findall(typed.decode("ascii", "ignore")):
            on_key(ARROWS.get(key, key))

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
