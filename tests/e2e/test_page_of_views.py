"""The page, `taskflow top` and `flow list` with the real views behind them, and a real Kafka."""

import asyncio
import json
import sys
import time
from pathlib import Path
from uuid import uuid4

from aiohttp import ClientSession
from playwright.async_api import expect

from processor.cli.flow.view_lookup import shown_flow, shown_flows, shown_history
from processor.client import FlowClient
from processor.contract.values import instant
from processor.embedded.broker import EmbeddedBroker
from processor.settings import Address, Settings
from tests.support.browser import chromium, needs_chromium, tab
from tests.support.builders import DAY_MS
from tests.support.rights_deployment import publish_rubbish
from tests.support.views import running_views
from tests.support.worker import running_worker

KATE = "agent:kate:session:abc"
TOKEN = "a-token-of-the-operators"


def create(goal: str) -> dict[str, str]:
    return {
        "kind": "create_mirrored",
        "flow_id": str(uuid4()),
        "issued_by": KATE,
        "controller_id": "kate/inbox",
        "goal": goal,
        "requester_origin": "user-1",
    }


@needs_chromium
async def test_a_flow_is_found_opened_and_watched_while_it_changes(
    broker: EmbeddedBroker, prefix: str, tmp_path: Path, unused_tcp_port: int
) -> None:
    settings = Settings(
        bootstrap_servers=broker.bootstrap,
        topic_prefix=prefix,
        partitions=2,
        state_dir=tmp_path / "state",
        http=None,
        views_http=Address("127.0.0.1", unused_tcp_port),
    )
    idle_flow = create("settle invoice 4711")
    usual = {"flow_id": idle_flow["flow_id"], "issued_by": KATE}
    wait = {"kind": "external_event", "topic": "payments.settled", "correlation_id": "inv-4711"}
    async with running_worker(settings), FlowClient(settings) as client:
        await asyncio.gather(*(client.send(create(f"reindex shard {n}")) for n in range(60)))
        await client.send(idle_flow)
        await publish_rubbish(settings)
        await client.send({**usual, "kind": "update_state", "patch": {"tries": 1}})
        tomorrow = instant(time.time_ns() // 1_000_000 + DAY_MS)
        await client.send(
            {**usual, "kind": "set_waiting", "wait": {**wait, "timeout_at": tomorrow}}
        )
        async with (
            running_views(settings, tmp_path, unused_tcp_port, VIEWS_OPERATOR_TOKEN=TOKEN) as url,
            chromium() as browser,
            tab(browser) as seen,
        ):
            page = seen.page
            await page.goto(url)
            await expect(page.locator("a.count[data-status=running] .figure")).to_have_text("60")
            await expect(page.locator("tbody tr")).to_have_count(50)
            await page.get_by_role("link", name="Wait ends soon").click()
            await page.get_by_role("link", name="settle invoice 4711").click()
            await expect(page.locator(".why")).to_contain_text("payments.settled")
            await expect(page.locator(".events > li")).to_have_count(4)

            event = {"topic": wait["topic"], "correlation_id": wait["correlation_id"]}
            await client.send(
                {**usual, **event, "kind": "resume_external", "payload": {"paid": True}}
            )
            await expect(page.locator("h1 .badge")).to_have_text("running")
            await expect(page.locator(".events > li")).to_have_count(5)
            await expect(page.locator(".diff")).to_contain_text("resume_event")
            await page.get_by_role("button", name="Revision before").click()
            await expect(page.locator(".state-panel")).to_contain_text("At revision 3 of 4")
            await page.get_by_role("link", name="Statistics").click()
            await expect(page.locator(".chart")).to_be_visible()
            await page.get_by_role("link", name="Partitions").click()
            await expect(page.locator("main")).to_contain_text("Every partition has a worker")

            top = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "processor", "top", "--views", url),
                stdout=asyncio.subprocess.PIPE,
            )
            out, _ = await top.communicate()
            assert json.loads(out)["statistics"]["flows_total"] == 61
            flows = await shown_flows(settings, owner=KATE, status=None, waiting=False, limit=100)
            found = await shown_flow(settings, idle_flow["flow_id"])
            past = await shown_history(settings, idle_flow["flow_id"])
            assert len(flows or ()) == 61
            assert found is not None
            assert found.flow["state_json"]["resume_event"] == {"paid": True}
            assert past is not None
            assert past[-1]["id"] == found.last_event_id
            await _acted(url, idle_flow["flow_id"])


async def _acted(url: str, flow_id: str) -> None:
    """A dead letter goes back edited, and what it commands is done; by HTTP alone."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    by = {"issued_by": "operator:kate", "reason": "the customer called"}
    fail = {"command_id": str(uuid4()), "flow_id": flow_id, "issued_by": KATE}
    async with ClientSession(url, headers=headers) as session:
        async with session.get("/v1/deadletters") as response:
            (dead_letter,) = (await response.json())["items"]
        place = f"/v1/deadletters/{dead_letter['partition']}/{dead_letter['offset']}/redrive"
        for body, code in (({"dry_run": True}, "malformed"), ({}, None)):
            value = {} if code else {"value": json.dumps({**fail, "kind": "fail", "reason": "no"})}
            async with session.post(f"{place}?wait=20s", json=by | body | value) as response:
                found = await response.json()
                assert (response.status, found["code"]) == (200, code), found
        assert found["outcome"]["verdict"] == "accepted"
        order = {**by, "kind": "cancel", "flow_id": flow_id}
        async with session.post("/v1/control?wait=20s", json=order) as response:
            found = await response.json()
            assert (response.status, found["outcome"]["code"]) == (200, "already_terminal"), found
