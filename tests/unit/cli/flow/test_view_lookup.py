"""A person's `flow list`, `show` and `history` are answered by views that are ours and up to
date."""

from typing import Any

import pytest

from processor.cli.flow import view_lookup as shown
from processor.cli.flow.view_lookup import shown_flow, shown_flows, shown_history, shown_ids
from processor.contract.flow import Flow, FlowStatus
from processor.ops.conditions import parse_condition
from processor.settings import Address, Settings
from tests.support.stub_views import KATE, ShownViews, command, flow_id, showing, story


@pytest.fixture(scope="module")
def views() -> ShownViews:
    return story()


def at(url: str, **fields: Any) -> Settings:
    host, _, port = url.removeprefix("http://").partition(":")
    return Settings(views_http=Address(host, int(port)), **fields)


async def listed(settings: Settings, **wanted: object) -> list[Flow] | None:
    usual = {"owner": None, "status": None, "waiting": False, "limit": 50}
    return await shown_flows(settings, **{**usual, **wanted})  # type: ignore[arg-type]


async def test_flows_are_listed_over_all_pages(views: ShownViews) -> None:
    async with showing(views) as url:
        flows = await listed(at(url), limit=60)
        running = await listed(at(url), status=FlowStatus.RUNNING, owner=KATE)
        nobodys = await listed(at(url), owner="nobody")

    assert flows is not None
    assert len({flow.id for flow in flows}) == 60
    assert [flow.updated_at for flow in flows] == sorted(
        (flow.updated_at for flow in flows), reverse=True
    )
    assert len(running or ()) == 26
    assert nobodys == []


async def test_flows_are_found_by_conditions_and_by_the_beginning_of_their_ids(
    views: ShownViews,
) -> None:
    running = [
        parse_condition("status = running"),
        parse_condition(f'owner_session_key = "{KATE}"'),
    ]
    async with showing(views) as url:
        found = await listed(at(url), where=running)
        too_long = await listed(at(url), where=[parse_condition(f"goal ~ {'x' * 256}")])
        ids = await shown_ids(at(url), flow_id(7)[:8], 3)
        none = await shown_ids(at(url), "ffffffff", 3)
    assert len(found or ()) == 26
    assert too_long is None
    assert ids is not None
    assert len(ids) in (1, 3)
    assert ids == sorted(ids)
    assert all(one.startswith(flow_id(7)[:8]) for one in ids)
    assert none == []


async def test_views_that_did_not_look_at_all_flows_are_not_believed() -> None:
    views = story()
    views.searched_all = False
    async with showing(views) as url:
        assert await listed(at(url), where=[parse_condition("status = running")]) is None


async def test_what_waits_without_an_end_comes_last() -> None:
    views = story()
    views.send(command(24, "set_waiting", wait={"kind": "manual"}))
    async with showing(views) as url:
        flows = await listed(at(url), waiting=True)
    assert flows is not None
    assert [flow.id for flow in flows][:2] == [flow_id(7), flow_id(4)]
    assert [flow.wait_json and flow.wait_json["kind"] for flow in flows] == [
        "external_event", "timer", "manual", "steps",
    ]  # fmt: skip


async def test_a_flow_is_shown_with_its_steps(views: ShownViews) -> None:
    async with showing(views) as url:
        found = await shown_flow(at(url), flow_id(7))
        unknown = await shown_flow(at(url), "6f1f3a52-0000-4000-8000-00000000ffff")
    assert found is not None
    assert found.flow["current_step"] == "pay"
    assert [step["task"] for step in found.steps] == ["call the bank"]
    assert unknown is None  # the topics have the last word


async def test_a_history_is_shown_over_all_pages(
    views: ShownViews, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "PAGE", 2)
    async with showing(views) as url:
        events = await shown_history(at(url), flow_id(7))
        unknown = await shown_history(at(url), "6f1f3a52-0000-4000-8000-00000000ffff")
    assert events is not None
    assert [event["kind"] for event in events] == [
        *("created", "started", "state_updated", "step_observed", "waiting"),
    ]  # fmt: skip
    assert unknown is None


@pytest.mark.parametrize("why", ["nobody", "another prefix", "other brokers", "behind"])
async def test_views_that_cannot_say_are_not_believed(why: str) -> None:
    views = story()
    async with showing(views) as url:
        settings = at(url)
        if why == "another prefix":
            settings = at(url, topic_prefix="other")
        elif why == "other brokers":
            settings = at(url, bootstrap_servers="kafka-1:9092")
        elif why == "behind":
            views.behind = 3
        if why != "nobody":
            assert await listed(settings) is None
            assert await shown_flow(settings, flow_id(7)) is None
            assert await shown_history(settings, flow_id(7)) is None
    assert await listed(settings) is None
