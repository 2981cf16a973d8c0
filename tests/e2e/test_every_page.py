"""What holds on every page: it fits, it can be read, and it says what needs an operator."""

import re
from pathlib import Path
from typing import Literal

import pytest
from playwright.async_api import Browser, expect

from tests.support.axe import needs_axe, violations
from tests.support.browser import DESKTOP, PHONE, needs_chromium, tab
from tests.support.recorded_deployment import Recorded
from tests.support.stub_views import ShownViews, command, create, flow_id, showing, story

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="session")]
NOON_MS = 1_795_694_400_000


@pytest.fixture(scope="module")
def views() -> ShownViews:
    return story()


CONTRAST = """() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
  const lum = (c) => { const [r, g, b] = c.map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }); return .2126 * r + .7152 * g + .0722 * b; };
  const found = new Set();
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || !element.checkVisibility({ opacityProperty: true }) || element.closest("noscript, .unseen, .skip, :disabled, option")) continue;
    let back = element;
    while (back && parse(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
    const [a, b] = [parse(getComputedStyle(element).color), back ? parse(getComputedStyle(back).backgroundColor) : [255, 255, 255]].map((c) => lum(c.slice(0, 3))).sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) found.add(`${element.className || element.tagName} ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
  }
  return [...found];
}"""  # noqa: E501


PAGES = {
    "flows": ("/flows", "tbody tr"),
    "flow": (f"/flows/{flow_id(7)}", ".events > li"),
    "steps": (f"/flows/{flow_id(5)}", ".lanes > li:nth-child(5)"),
    "audit": ("/audit", "tbody tr"),
    "statistics": ("/statistics", ".chart"),
    "deadletters": ("/deadletters", "tbody tr"),
    "partitions": ("/partitions", ".grave"),
}
"""Path, and what stands on the page once it is there."""

SIZES_AND_SCHEMES = [
    pytest.param(DESKTOP, "light", id="desktop-light"),
    pytest.param(PHONE, "dark", id="phone-dark"),
    pytest.param(DESKTOP, "dark", id="desktop-dark", marks=pytest.mark.soak),
    pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("size", "scheme"), SIZES_AND_SCHEMES)
async def test_every_page_fits_and_can_be_read(
    browser: Browser,
    views: ShownViews,
    size: tuple[int, int],
    scheme: Literal["light", "dark"],
    tmp_path: Path,
) -> None:
    async with showing(views) as address, tab(browser, size=size, scheme=scheme) as seen:
        for name, (path, awaited) in PAGES.items():
            await seen.page.goto(f"{address}/#{path}")
            await expect(seen.page.locator(f"main {awaited}").first).to_be_visible()
            for lane in await seen.page.locator(".lanes summary").all():
                await lane.click()
            await seen.page.mouse.move(0, 0)
            await seen.page.screenshot(path=tmp_path / f"{name}.png")
            too_wide = await seen.page.evaluate(
                "document.scrollingElement.scrollWidth - document.documentElement.clientWidth"
            )
            assert too_wide <= 0, name
            assert await seen.page.evaluate(CONTRAST) == [], name


@needs_axe
@pytest.mark.parametrize(
    ("size", "scheme"),
    [
        pytest.param(DESKTOP, "light", id="desktop-light"),
        pytest.param(PHONE, "dark", id="phone-dark", marks=pytest.mark.soak),
        *SIZES_AND_SCHEMES[2:],
    ],
)
async def test_assistive_technology_stumbles_over_nothing(
    browser: Browser, size: tuple[int, int], scheme: Literal["light", "dark"]
) -> None:
    views = story()
    views.actions = True
    async with showing(views) as address, tab(browser, size=size, scheme=scheme) as seen:
        page = seen.page
        for path, awaited in PAGES.values():
            await page.goto(f"{address}/#{path}")
            await expect(page.locator(f"main {awaited}").first).to_be_visible()
            for summary in (await page.locator("main summary").all())[:8]:
                await summary.click()
            assert await violations(page) == [], path
        await page.goto(f"{address}/#/flows/{flow_id(7)}")
        await page.get_by_role("button", name="Resume …").click()
        assert await violations(page) == [], "resume"
        await page.keyboard.press("Escape")
        await page.get_by_role("button", name="Keys (?)").click()
        assert await violations(page) == [], "keys"


async def test_what_needs_somebody_stands_on_every_page(browser: Browser) -> None:
    views = story()
    async with showing(views) as address, tab(browser) as seen:
        page, banner = seen.page, seen.page.locator("#banner")
        for path, _ in PAGES.values():
            if path != "/deadletters":
                await page.goto(f"{address}/#{path}")
                await expect(banner).to_contain_text("No worker has partition 1. 1,200 commands")
                await expect(banner).to_contain_text("1 new dead letter")
        await expect(
            page.get_by_role("link", name=re.compile(r"Partitions \(1 without a worker\)"))
        ).to_be_visible()
        await page.get_by_role("link", name=re.compile(r"Dead letters \(1 new\)")).click()
        await expect(page.locator("[data-letter]")).to_be_visible()
        await expect(page.locator("#badge-deadletters")).to_be_hidden()
        fresh = page.locator("#fresh")
        await expect(fresh).to_have_text("no worker for partition 1")
        await expect(fresh).to_have_attribute("data-state", "bad")
        views.orphaned = None
        await expect(banner).to_be_hidden()
        await expect(fresh).to_have_text("up to date")
        assert await page.locator("#badge-partitions").is_hidden()


async def test_a_partition_that_stands_and_views_that_lag_are_said(browser: Browser) -> None:
    views = story()
    views.orphaned = None
    async with showing(views) as address, tab(browser) as seen:
        page, banner = seen.page, seen.page.locator("#banner")
        await page.clock.install()
        await page.goto(address)
        await expect(page.locator("#fresh")).to_have_text("up to date")
        views.backlog = {0: 7}
        # The page looks again only once it has seen what it got: the second time is 16 s later.
        for _ in range(2):
            async with page.expect_response(re.compile("/v1/partitions")):
                await page.clock.fast_forward(16_000)
        stands = "The worker of partition 0 has decided nothing for 15 s, and commands wait."
        await expect(banner).to_contain_text(stands)
        await expect(page.locator("#badge-partitions")).to_contain_text("that do not go on")
        views.backlog = {}
        await page.clock.fast_forward(16_000)
        await expect(banner).not_to_contain_text("decided nothing")

        behind = "What is shown here is more than 10 s behind."
        await expect(banner).not_to_contain_text(behind)
        views.lag_ms = 10_001
        await expect(banner).to_contain_text(behind)
        views.missing = [1]
        await expect(banner).to_contain_text("No view worker shows partition 1: flows there are")
        await expect(banner).not_to_contain_text(behind)
        views.missing, views.lag_ms = [], 0
        await expect(banner).not_to_contain_text("No view worker")


async def test_a_search_that_did_not_look_at_all_flows_says_so(browser: Browser) -> None:
    views = story()
    async with showing(views) as address, tab(browser) as seen:
        page, limit = seen.page, seen.page.get_by_text("looked for in 20,000 flows")
        await page.goto(f"{address}/#/flows?q=status+%3D+running")
        await expect(page.locator("tbody tr").first).to_be_visible()
        await expect(limit).to_be_hidden()
        views.searched_all = False
        await expect(limit).to_be_visible()


async def test_the_way_back_leads_to_the_same_place(browser: Browser) -> None:
    async with showing(story()) as address, tab(browser) as seen:
        page, rows = seen.page, seen.page.locator("tbody tr")
        await page.goto(address)
        await page.get_by_role("button", name="Older").click()
        await expect(page.locator(".pages")).to_contain_text("page 2")
        row = rows.nth(20)
        flow = await row.get_attribute("data-flow")
        await row.scroll_into_view_if_needed()
        await seen.until("history.state?.scroll > 100")
        place = await page.evaluate("scrollY")
        await row.locator("td").first.click()  # the whole row opens its flow
        await expect(page).to_have_url(f"{address}/#/flows/{flow}")
        await expect(page.locator(".events > li").first).to_be_visible()
        assert await page.evaluate("scrollY") == 0
        await page.go_back()
        await expect(rows.nth(20)).to_have_attribute("data-flow", flow or "")
        await expect(page.locator(".pages")).to_contain_text("page 2")
        assert await page.evaluate("scrollY") == place


async def test_what_is_long_keeps_its_lines_and_can_be_copied(browser: Browser) -> None:
    views = ShownViews(Recorded(now=NOON_MS))
    goal = "Settle the invoices of May:\n- 4711\n- 4712"
    reason = "Traceback:\n  line 1\n  line 2"
    views.send(create(1, goal), at_ms=NOON_MS + 123)
    views.send(command(1, "fail", reason=reason), at_ms=NOON_MS + 1_373)
    async with (
        showing(views) as address,
        tab(browser, permissions=["clipboard-read", "clipboard-write"]) as seen,
    ):
        page = seen.page
        await page.goto(f"{address}/#/flows/{flow_id(1)}")
        goals = page.locator(".facts-panel .text")
        assert await goals.inner_text() == goal
        await page.get_by_text("The whole reason").click()
        assert await page.locator(".why-panel .text").inner_text() == reason
        last = page.locator(".events > li").first
        await expect(last).to_contain_text("+1 s")
        await expect(last).to_contain_text("Traceback:")
        assert len(await last.locator("summary").inner_text()) < 80
        await last.locator("summary").click()
        await expect(last.locator("time")).to_have_text("2026-11-26 12:00:01.373")
        await page.get_by_role("button", name=f"Copy {flow_id(1)}").click()
        assert await page.evaluate("navigator.clipboard.readText()") == flow_id(1)


async def test_an_empty_deployment_and_a_wrong_address_say_what_to_do(browser: Browser) -> None:
    async with showing(ShownViews(Recorded())) as address, tab(browser) as seen:
        page = seen.page
        await page.goto(address)
        await expect(page.get_by_role("heading", name="No flows yet")).to_be_visible()
        await expect(page.locator("main pre")).to_contain_text("taskflow send --wait")
        await page.goto(f"{address}/#/nowhere")
        await expect(page.get_by_role("heading", name="No such page")).to_be_visible()
        await page.get_by_role("link", name="Show the flows").click()
        await expect(page.get_by_role("heading", name="No flows yet")).to_be_visible()
