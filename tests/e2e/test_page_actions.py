"""The page acts: a real Chromium, the real views, and the real engine on Kafka in memory."""

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, Page, expect

from processor.client import FlowClient, flow_id_for
from processor.contract import FlowEvent
from processor.testing.fake import TaskflowFake
from tests.support.browser import DESKTOP, PHONE, needs_chromium, tab
from tests.support.recorded_deployment import kinds
from tests.support.served_views import acting

pytestmark = [needs_chromium, pytest.mark.asyncio(loop_scope="session")]
TOKEN = "a-token-of-the-operators"
REVIEW = {
    "type": "object",
    "properties": {
        "tone": {"title": "Tone", "oneOf": [{"const": "w", "title": "Warm"}, {"const": "c"}]},
        "copies": {"title": "Copies", "type": "integer", "minimum": 1},
        "urgent": {"title": "Urgent", "type": "boolean", "description": "Today, by courier."},
        "remark": {"title": "Remark", "type": "string", "maxLength": 500},
    },
    "required": ["tone", "copies"],
}


async def act(page: Page, button: Any, confirm: str, **fields: str) -> None:
    """Preview what the dialog of `button` does, confirm it, and close the dialog."""
    await button.click()
    dialog = page.locator("dialog.act")
    for label, text in {"Your name": "kate", "Reason": "the customer called", **fields}.items():
        field = dialog.get_by_label(label)
        if await field.evaluate("field => field.tagName") == "SELECT":
            await field.select_option(index=1)
        else:
            await field.fill(text)
    await expect(dialog.get_by_role("button", name=confirm, exact=True)).to_be_disabled()
    await dialog.get_by_role("button", name="Preview").click()
    await expect(dialog.locator(".found.good")).to_contain_text("ould be")
    await dialog.get_by_role("button", name=confirm, exact=True).click()
    await expect(dialog.locator(".found.good")).to_contain_text("Accepted")
    await dialog.get_by_role("button", name="Close").click()
    await expect(dialog).to_have_count(0)


def last(fake: TaskflowFake, flow_id: str) -> FlowEvent:
    return fake.events(flow_id)[-1]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(DESKTOP, id="desktop"),
        pytest.param(PHONE, id="phone", marks=pytest.mark.soak),
    ],
)
async def test_a_flow_is_found_and_acted_on_and_the_audit_says_by_whom(
    browser: Browser, taskflow_fake: TaskflowFake, tmp_path: Path, size: tuple[int, int]
) -> None:
    fake = taskflow_fake
    async with FlowClient() as client:
        paid = await client.create(
            "注文4711の在庫を確認する", state={"priority": "high", "tries": 3}
        )
        await paid.start()
        question = {"question": "Has it been paid?", "options": ["yes", "no"]}
        await paid.wait_for("payments", "4711", prompt=question, timeout=timedelta(days=1))
        draft = await client.create("write the letter", running=True)
        await draft.wait_for_resume(prompt={"question": "May it be sent?", "schema": REVIEW})
        cards = await client.create("charge the cards of May", running=True)
        await cards.schedule("card-1", "charge")
        await cards.cancel_step("card-1")
        idle = await client.create("write the weekly report")
        for shard in range(30):
            await client.create(f"reindex shard {shard}", state={"priority": "low"})
    order = flow_id_for("order-17")
    create = {
        **{"kind": "create_managed", "flow_id": order, "issued_by": "kate", "goal": "hoist"},
        **{"controller_id": "crane", "requester_origin": "web", "command_id": flow_id_for("c")},
    }
    fake.kafka.append("taskflow.commands", 0, order.encode(), json.dumps(create)[:-1].encode())
    async with (
        acting(tmp_path, fake, views_operator_token=TOKEN) as here,
        tab(browser, size=size, refusals=True) as seen,
    ):
        page = seen.page
        await page.goto(here.url)
        box, rows = page.get_by_role("searchbox", name="Search"), page.locator("tbody tr")
        await expect(rows).to_have_count(34)
        if size == PHONE:
            first = await rows.first.bounding_box()
            assert first is not None
            assert first["y"] + first["height"] < size[1], "the first flow is below the fold"
        for text in (paid.id, "在庫", "state.priority=high", "state.tries > 2"):
            await box.fill(text)
            await box.press("Enter")
            await expect(rows).to_have_count(1)
            await expect(rows).to_contain_text("注文4711")
        await page.screenshot(path=tmp_path / "found.png")

        await page.get_by_role("link", name="注文4711").click()
        resume = page.get_by_role("button", name="Resume …")
        await resume.click()
        token = page.locator("dialog#token")
        dialog = page.locator("dialog.act")
        await expect(dialog).to_contain_text("Has it been paid?")
        await dialog.get_by_role("button", name="yes", exact=True).click()
        await expect(dialog).to_contain_text('Merged into the state: {"answer":"yes"}')
        await dialog.get_by_label("Your name").fill("kate")
        await dialog.get_by_label("Reason").fill("the customer called")
        await page.screenshot(path=tmp_path / "resume.png")
        await dialog.get_by_role("button", name="Preview").click()
        await token.get_by_label("Token").fill(TOKEN)
        await token.get_by_label("Token").press("Enter")
        await expect(dialog.locator(".found.good")).to_contain_text("Would be accepted")
        assert last(fake, paid.id).kind == "waiting"
        await dialog.get_by_role("button", name="Resume", exact=True).click()
        await expect(dialog.locator(".found.good")).to_contain_text("is running, revision 3")
        await page.screenshot(path=tmp_path / "resumed.png")
        await dialog.get_by_role("button", name="Close").click()
        await expect(page.locator("h1 .badge")).to_have_text("running")
        resumed = last(fake, paid.id)
        assert (resumed.kind, resumed.actor) == ("resumed", "operator:kate")
        now = fake.flow(paid.id)
        assert now is not None
        assert now.state_json["answer"] == "yes"

        await act(page, page.get_by_role("button", name="Cancel …", exact=True), "Cancel")
        await expect(page.locator("h1 .badge")).to_have_text("cancelled")
        await expect(page.get_by_role("button", name="Cancel …", exact=True)).to_have_count(0)
        assert (last(fake, paid.id).kind, last(fake, paid.id).actor) == (
            "cancelled",
            "operator:kate",
        )

        await page.goto(f"{here.url}/#/flows/{draft.id}")
        asked = page.locator(".facts-panel dd", has_text="May it be sent?")
        await expect(asked).to_have_text("May it be sent?Answered by: Tone, Copies, Urgent, Remark")
        await page.get_by_role("button", name="Resume …").click()
        await expect(dialog).to_contain_text("May it be sent?")
        await expect(dialog.locator("pre")).to_have_count(0)
        await dialog.get_by_role("button", name="Preview").click()
        await expect(dialog.locator(".found")).to_be_empty()  # the browser wants what is required
        await dialog.get_by_label("Tone").select_option(label="Warm")
        await dialog.get_by_label("Copies").fill("2")
        await dialog.get_by_label("Urgent").check()
        await expect(dialog).to_contain_text('{"tone":"w","copies":2,"urgent":true}')
        await page.screenshot(path=tmp_path / "form.png")
        await dialog.get_by_role("button", name="Close").click()
        button = page.get_by_role("button", name="Resume …")
        await act(page, button, "Resume", Remark="thank him", Copies="3", Tone="w")
        now = fake.flow(draft.id)
        assert now is not None
        expected = {"tone": "w", "copies": 3, "urgent": False, "remark": "thank him"}
        assert expected.items() <= now.state_json.items()

        await page.goto(f"{here.url}/#/flows/{cards.id}")
        await page.locator(".lanes > li", has_text="card-1").locator("summary").click()
        await act(page, page.get_by_role("button", name="Retry step …"), "Retry step")
        assert fake.steps(cards.id)["card-1"].status == "pending"
        assert last(fake, cards.id).actor == "operator:kate"
        await page.screenshot(path=tmp_path / "steps.png", full_page=True)

        await page.goto(f"{here.url}/#/flows/{idle.id}")
        await act(page, page.get_by_role("button", name="Ask to cancel …"), "Ask to cancel")
        assert last(fake, idle.id).kind == "cancel_requested"

        await expect(page.locator("#badge-deadletters")).to_contain_text("1")
        await page.get_by_role("link", name="Dead letters").click()
        dead_letter = page.locator('[data-letter="0/0"]')
        await dead_letter.get_by_role("button", name="Edit and send back …").click()
        await expect(dialog.locator(".found.grave")).to_contain_text("It stays: would still be")
        await page.screenshot(path=tmp_path / "letter.png")
        await dialog.get_by_role("button", name="Close").click()
        await act(
            page,
            dead_letter.get_by_role("button", name="Edit and send back …"),
            "Edit and send back",
            Value=json.dumps(create),
        )
        assert (last(fake, order).kind, last(fake, order).revision) == ("created", 0)
        await expect(page.locator("#badge-deadletters")).to_be_hidden()
        assert await page.evaluate("document.cookie") == ""
    assert kinds(await fake.verify()) == set()
