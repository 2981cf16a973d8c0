"""A real Chromium, of the machine's own; what it complains of, and what it asks for, is kept."""

import asyncio
import re
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    async_playwright,
    expect,
)

from tests.support.machine import patience

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1280, 900), (390, 844)
TIMEOUT_MS = 1000 * patience(15)
"""Of what a page is to show; some of it comes only when the page looks again, after 10 s."""

# Playwright's own five seconds grow with nothing.
expect.set_options(timeout=TIMEOUT_MS)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no Chromium here (on Debian: apt-get install chromium)"
)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """With a profile of its own, which is gone afterwards."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            yield browser
        finally:
            await browser.close()


@dataclass
class Seen:
    """A tab. `complaints`: what stood on its console, and errors that nobody caught."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def text(self, selector: str) -> str:
        return (await self.page.inner_text(selector)).strip()

    async def until(self, holds: str) -> None:
        """Wait until the expression is true there. Playwright's own `wait_for_function` looks again
        by `eval`, which the page's content security policy refuses."""
        deadline = time.monotonic() + patience(15)
        while not await self.page.evaluate(holds):
            assert time.monotonic() < deadline, f"never true: {holds}"
            await asyncio.sleep(0.02)


@asynccontextmanager
async def tab(
    browser: Browser,
    *,
    size: tuple[int, int] = DESKTOP,
    scheme: Literal["light", "dark"] = "light",
    refusals: bool = False,
    **options: Any,
) -> AsyncIterator[Seen]:
    """A tab that has not been anywhere; what the page complains of fails the test, save for
    requests that need a token, with `refusals`."""
    width, height = size
    context = await browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, **options
    )
    context.set_default_timeout(TIMEOUT_MS)
    seen = Seen(await context.new_page())

    def on_message(message: ConsoleMessage) -> None:
        if refusals and "status of 401" in message.text:
            return
        if message.type in ("error", "warning"):
            seen.complaints.append(message.text)

    def note(request: Request) -> None:
        seen.asked.append(request.url)

    seen.page.on("console", on_message)
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("dialog", lambda dialog: seen.complaints.append(f"dialog {dialog.message}"))
    seen.page.on("request", note)
    try:
        yield seen
        assert seen.complaints == []
        origins = {re.sub(r"^(\w+://[^/]+).*", r"\1", url) for url in seen.asked}
        assert len(origins) <= 1, f"it asked elsewhere: {origins}"
    finally:
        await context.close()
