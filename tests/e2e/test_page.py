"""The page, driven in a real Chromium as somebody on call would: by mouse, keyboard and phone."""

import asyncio
import re
import time
from pathlib import Path

import pytest
from playwright.async_api import Browser, Route, expect

from tests.support.browser import needs_chromium, tab
from tests.support.stub_views import (
    KATE,
    ShownViews,
    command,
    create,
    flow_id,
    showing,
    story,
)

# One Chromium for all of them, so they share its loop.
pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="session")]
FIRST_PAGE = re.compile(r"/v1/flows\?limit=50$")


@pytest.fixture(scope="module")
def views() -> ShownViews:
    return story()


async def test_why_a_flow_is_stuck_is_three_clicks_away_and_it_changes_live(
    browser: Browser, tmp_path: Path
) -> None:
    views = story()
    async with showing(views) as address, tab(browser) as seen:
        page = seen.page
        await page.goto(address)  # list
        await expect(page.locator("tbody tr")).to_have_count(50)
        await expect(page.locator("a.count[data-status=failed] .figure")).to_have_text("1")
        await expect(page.locator("#fresh")).to_have_text("no worker for partition 1")

        await page.get_by_role("link", name="Wait is over").click()
        await expect(page.locator("tbody tr")).to_have_count(1)
        await page.get_by_role("link", name="settle invoice 4711").click()
        why = page.locator(".why")
        await expect(why).to_contain_text("payments.settled")
        await expect(why).to_contain_text("inv-4711")
        await expect(why).to_contain_text("Its time was over 5 min")
        await page.screenshot(path=tmp_path / "stuck.png", full_page=True)

        views.send(
            command(7, "resume_external", topic="payments.settled", correlation_id="inv-4711",
                    payload={"paid": True}),
        )  # fmt: skip
        await expect(page.locator("h1 .badge")).to_have_text("running")
        await expect(page.locator(".events > li").first).to_contain_text("by external event")
        await expect(page.locator(".diff")).to_contain_text("resume_event")
        await page.locator(".events > li").last.locator("summary").click()
        await page.get_by_role("button", name="what changed").last.click()
        await expect(page.locator("#state-title + p + p")).to_contain_text("revision 0 of")

        await page.get_by_role("navigation").get_by_role("link", name="Flows").click()
        await page.get_by_label("Search").fill("reindex")
        await page.get_by_role("combobox", name="Status").select_option("running")
        await expect(page.locator("tbody tr")).to_have_count(25)
        views.send(command(93, "finish"))  # in the list, too, without anybody asking
        await expect(page.locator("tbody tr")).to_have_count(24)


async def test_states_and_attempts_of_steps_share_one_axis(
    browser: Browser, tmp_path: Path
) -> None:
    views = story()
    async with showing(views) as address, tab(browser) as seen:
        page = seen.page
        await page.goto(f"{address}/#/flows/{flow_id(5)}")
        lanes = page.locator(".lanes > li")
        await expect(lanes).to_have_count(5)
        third = lanes.filter(has_text="card-3")
        await expect(third.locator(".is")).to_have_text("running 3/3")
        await expect(third.locator(".bar[data-status=failed]")).to_have_count(2)
        await expect(third.locator(".bar.lease")).to_have_count(1)
        await page.locator(".times-panel").screenshot(path=tmp_path / "times.png")

        # The third attempt began 26 of about 40 minutes after the flow, and goes on until now.
        track = await third.locator(".track").bounding_box()
        waiting = await lanes.first.locator(".bar[data-status=waiting]").bounding_box()
        attempts = [await bar.bounding_box() for bar in await third.locator(".bar").all()]
        assert track is not None
        assert waiting is not None
        last = attempts[5]
        assert last is not None
        past = waiting["x"] + waiting["width"] - track["x"]
        assert abs((last["x"] - track["x"]) / past - 26 / 40.1) < 0.01
        assert abs(last["x"] + last["width"] - waiting["x"] - waiting["width"]) < 2
        begun = await page.locator(".axis .tick").first.bounding_box()
        assert begun is not None
        assert abs(begun["x"] - track["x"]) < 1

        await third.locator("summary").click()
        await expect(third.locator(".attempts li")).to_have_count(3)
        await expect(third).to_contain_text("the bank did not answer within 30 s")
        await expect(third).to_contain_text("bank:host-3:5c1e")
        done = {"run_id": "card-3", "attempt": 3, "result_json": {"charged": 7}}
        views.send(command(5, "complete_step", **done) | {"issued_by": "bank:host-3:5c1e"})
        await expect(third.locator(".is")).to_have_text("succeeded 3/3")
        await expect(third.locator(".bar.lease")).to_have_count(0)
        await expect(third).to_contain_text('"charged": 7')  # what was open stays open

        views.send(command(5, "cancel_step", run_id="letter"))
        await expect(page.locator("h1 .badge")).to_have_text("running")
        await lanes.first.locator("summary").click()
        await expect(lanes.first).to_contain_text("for all its steps")
        await expect(lanes.first.locator(".bar")).to_have_count(4)


async def test_one_box_finds_by_id_words_and_owner_and_questions_are_filters_beside_it(
    browser: Browser, tmp_path: Path
) -> None:
    async with showing(story()) as address, tab(browser) as seen:
        page = seen.page
        await page.goto(address)
        rows, box = page.locator("tbody tr"), page.get_by_role("searchbox", name="Search")
        await expect(rows).to_have_count(50)
        overdue = page.get_by_role("link", name="Wait is over")
        await expect(overdue.locator(".counted")).to_have_text("1")
        failed = page.get_by_role("link", name="Failed in the last hour")
        await expect(failed.locator(".counted")).to_have_text("1")
        quiet = page.get_by_role("link", name="Running, quiet for 15 min")
        await expect(quiet.locator(".counted")).to_have_text("26")
        await page.screenshot(path=tmp_path / "questions.png")

        for text in (flow_id(7), flow_id(7)[:8].upper(), "invoice 4711"):
            await box.fill(text)
            await box.press("Enter")
            await expect(rows).to_have_count(1)
            await expect(rows).to_contain_text("settle invoice 4711")
        await box.fill(KATE)
        await box.press("Enter")
        await expect(rows).to_have_count(50)
        await expect(overdue.locator(".counted")).to_have_text("1")

        await quiet.click()
        await expect(rows).to_have_count(26)
        await expect(page.get_by_role("combobox", name="Status")).to_have_value("running")
        await expect(box).to_have_value(KATE)
        await box.fill("reindex")
        await box.press("Enter")
        await expect(quiet).to_have_attribute("aria-current", "true")
        await expect(rows).to_have_count(25)
        assert page.url.partition("?")[2] == "q=reindex&ask=quiet"
        await page.get_by_role("combobox", name="Status").select_option("finished")
        await expect(quiet).not_to_have_attribute("aria-current", "true")
        await expect(rows.first).to_contain_text("finished")
        await box.fill("no such words")
        await box.press("Enter")
        await page.get_by_role("link", name="Show all").click()
        await expect(rows).to_have_count(50)


async def test_pages_of_a_long_list_do_not_move_under_the_reader(browser: Browser) -> None:
    views = story()
    async with showing(views) as address, tab(browser) as seen:
        page = seen.page
        await page.goto(address)
        # Counted last: the first page asks for nothing more before it looks again.
        counted = page.get_by_role("link", name="Failed in the last hour").locator(".counted")
        await expect(counted).to_have_text("1")
        await page.get_by_role("button", name="Older").click()
        await expect(page.locator(".pages")).to_contain_text("page 2")
        first = await page.locator("tbody tr").first.get_attribute("data-flow")
        asked = len(views.asked)
        views.send(create(900, "newest of all"))
        running = str(sum(flow.status == "running" for _, flow in views._rows()))
        figure = page.locator("a.count[data-status=running] .figure")
        await expect(figure).to_have_text(running)
        assert not [url for url in views.asked[asked:] if url.startswith("/v1/flows")]
        assert await page.locator("tbody tr").first.get_attribute("data-flow") == first
        await page.get_by_role("button", name="Newer").click()
        await expect(page.locator("tbody tr").first).to_contain_text("newest of all")


async def test_a_late_look_at_the_first_page_does_not_replace_the_second(browser: Browser) -> None:
    looked, go_on = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        looked.set()
        await go_on.wait()
        await route.continue_()

    async with showing(story()) as address, tab(browser) as seen:
        page, rows = seen.page, seen.page.locator("tbody tr")
        await page.clock.install()
        await page.goto(address)
        await expect(rows).to_have_count(50)
        await page.route(FIRST_PAGE, hold)
        await page.clock.fast_forward(2_000)
        await looked.wait()
        await page.get_by_role("button", name="Older").click()
        await expect(page.locator(".pages")).to_contain_text("page 2")
        await expect(rows).to_have_count(32)
        async with page.expect_response(FIRST_PAGE) as responded:
            go_on.set()
        await (await responded.value).finished()
        await page.evaluate("fetch('/ready').then((response) => response.json())")
        await expect(rows).to_have_count(32)
        await expect(page.get_by_role("button", name="Older")).to_be_disabled()


async def test_what_somebody_wrote_is_harmless(
    browser: Browser, views: ShownViews, tmp_path: Path
) -> None:
    async with showing(views) as address, tab(browser) as seen:
        page = seen.page
        for path in ("/flows?q=img", f"/flows/{flow_id(8)}", "/audit", "/deadletters"):
            await page.goto(f"{address}/#{path}")
            await expect(page.locator("main h1")).to_be_visible()
            for summary in await page.locator("main summary").all():
                await summary.click()
            await expect(page.locator("main img, main script, main iframe")).to_have_count(0)
        await page.goto(f"{address}/#/flows/{flow_id(8)}")
        heading = page.locator("h1")
        await expect(heading).to_contain_text("<img src=x onerror=alert(1)><script>alert(2)")
        text = await heading.inner_text()
        assert not {"\u202e", "\x1b", "\x07"} & set(text)
        assert r"\u202egnp.exe" in text
        # A state at its limit is cut until somebody asks for it.
        await expect(page.locator("#state-title ~ div pre")).to_be_visible()
        sizes = await page.locator("main pre").evaluate_all(
            "all => all.map(o => o.textContent.length)"
        )
        assert max(sizes) <= 30_000
        await page.screenshot(path=tmp_path / "hostile.png")
        await page.get_by_role("button", name="Show all").last.click()
        sizes = await page.locator("main pre").evaluate_all(
            "all => all.map(o => o.textContent.length)"
        )
        assert max(sizes) >= 250_000


async def test_nobody_listens_behind_a_hidden_page(browser: Browser) -> None:
    views = story()
    async with showing(views) as address, tab(browser) as seen:
        page = seen.page
        await page.goto(f"{address}/#/audit")
        await expect(page.locator("tbody tr")).to_have_count(50)
        views.send(create(901, "seen"))
        await expect(page.locator("tbody tr").first).to_contain_text(flow_id(901))
        for hidden, listeners in (("true", 0), ("false", 1)):
            await page.evaluate(
                "Object.defineProperty(document, 'hidden',"
                f" {{ value: {hidden}, configurable: true }});"
                "document.dispatchEvent(new Event('visibilitychange'))"
            )
            await views.until_followed_by(listeners)
            # Newer than the events of each partition: the page orders what it reads by time.
            views.send(create(902 + listeners, "behind it"), at_ms=time.time_ns() // 1_000_000)
        await expect(page.locator("tbody tr").first).to_contain_text(flow_id(903))
        await expect(page.locator("tbody")).to_contain_text(flow_id(902))


async def test_the_keyboard_is_enough(browser: Browser) -> None:
    views = story()
    async with showing(views) as address, tab(browser, reduced_motion="reduce") as seen:
        page = seen.page
        await page.goto(address)
        await expect(page.locator("tbody tr")).to_have_count(50)
        await page.keyboard.press("Tab")
        await expect(page.locator(":focus")).to_have_text("Skip to the content")
        await page.keyboard.press("/")
        await expect(page.get_by_label("Search")).to_be_focused()
        await page.keyboard.type("triage")
        await page.keyboard.press("Enter")
        await expect(page.locator("tbody tr")).to_have_count(1)
        await expect(page.locator("h1")).to_be_focused()
        link = page.get_by_role("link", name="triage inbox")
        await link.focus()
        views.send(command(1, "start_running"))  # a row that changes keeps the focus
        await expect(page.locator("tbody .badge")).to_have_text("running")
        await expect(page.get_by_role("link", name="triage inbox")).to_be_focused()
        animation = await page.locator("tbody tr").evaluate(
            "o => getComputedStyle(o).animationName"
        )
        assert animation == "none"
        await page.keyboard.press("Enter")
        await expect(page.locator("h1")).to_contain_text("triage inbox")
        await page.keyboard.press("j")
        await expect(page.locator(".events summary").first).to_be_focused()
        await page.keyboard.press("?")
        await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
        await page.keyboard.press("Escape")
        await page.goto(address)
        await expect(page.locator("tbody tr")).to_have_count(50)
        first, second = page.locator("tbody tr").nth(0), page.locator("tbody tr").nth(1)
        for key, row in (("j", first), ("j", second), ("k", first), ("j", second)):
            await page.keyboard.press(key)
            await expect(row.get_by_role("link")).to_be_focused()
        flow = await second.get_attribute("data-flow")
        await page.keyboard.press("Enter")
        await expect(page).to_have_url(f"{address}/#/flows/{flow}")
        # Names, roles and levels, as assistive technology has them.
        for role, name in (("banner", None), ("main", None), ("navigation", "Pages")):
            await expect(page.get_by_role(role, name=name)).to_have_count(1)  # type: ignore[arg-type]
        await expect(page.get_by_role("heading", level=1)).to_have_count(1)


async def test_views_that_go_away_are_missed_in_words(browser: Browser, views: ShownViews) -> None:
    async with tab(browser) as seen:
        async with showing(views) as address:
            await seen.page.goto(address)
            await expect(seen.page.locator("#fresh")).to_have_text("no worker for partition 1")
        await expect(seen.page.locator("#fresh")).to_have_text("no answer")
        # Refused, or cut off while they were under way.
        seen.complaints = [one for one in seen.complaints if "net::ERR_" not in one]
