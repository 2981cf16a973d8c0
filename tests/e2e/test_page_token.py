"""The page of views that want a read token, in a real Chromium."""

from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.support.browser import needs_chromium, tab
from tests.support.read_model_harness import messages
from tests.support.recorded_deployment import Recorded
from tests.support.served_views import serving
from tests.support.stub_views import command, create

TOKEN = "a-read-token-of-the-views"


@needs_chromium
@pytest.mark.asyncio(loop_scope="session")
async def test_the_page_asks_for_the_token_once_and_keeps_it_for_the_tab(
    browser: Browser, tmp_path: Path
) -> None:
    recorded = Recorded()
    recorded.send(("commands", create(1, "settle invoice 4711")))
    async with (
        serving(tmp_path, recorded, views_read_token=TOKEN) as here,
        tab(browser, refusals=True) as seen,
    ):
        page = seen.page
        await page.goto(here.url)
        field = page.get_by_role("textbox", name="Token")
        await expect(field).to_be_visible()
        await expect(page.locator("tbody tr")).to_have_count(0)

        await field.fill("another token than that")
        await field.press("Enter")
        await expect(page.get_by_role("alert")).to_be_visible()
        await field.fill(TOKEN)
        await page.get_by_role("button", name="Show the flows").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.locator("dialog#token")).to_be_hidden()
        assert TOKEN not in page.url

        # The stream has it too, and so has the tab when it is loaded again.
        await page.get_by_role("link", name="settle invoice 4711").click()
        await expect(page.locator("h1 .badge")).to_have_text("running")
        await page.reload()
        await expect(page.locator("h1 .badge")).to_have_text("running")
        recorded.send(("commands", command(1, "finish")))
        await here.view.project(messages(recorded))
        await expect(page.locator("h1 .badge")).to_have_text("finished")
        assert await page.evaluate("sessionStorage.length") == 1
        assert await page.evaluate("localStorage.length") == 0
        assert await page.evaluate("document.cookie") == ""

        # Another tab has to ask again.
        other = await page.context.new_page()
        await other.goto(here.url)
        await expect(other.get_by_role("textbox", name="Token")).to_be_visible()
