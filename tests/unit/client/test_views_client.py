"""ViewsClient beside the API that a view worker serves, over the engine in memory."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from pydantic import SecretStr

from processor.client import FlowClient
from processor.client.http.views_client import NoViews, StreamedEvent, asking
from processor.testing.fake import TaskflowFake
from tests.support.served_views import acting

OPERATOR = SecretStr("a token of the operators")


async def next_event(events: AsyncIterator[StreamedEvent]) -> StreamedEvent:
    """The next one that is a FlowEvent; `ready` comes once what was there is sent."""
    return await anext(event async for event in events if event.name == "event")


async def test_a_stream_gives_an_owners_events_and_goes_on_behind_the_last_one(
    taskflow_fake: TaskflowFake, tmp_path: Path
) -> None:
    async with (
        acting(tmp_path, taskflow_fake) as here,
        asking(here.url) as views,
        FlowClient(session="ann") as ann,
        FlowClient(session="bob") as bob,
    ):
        async with aclosing(views.stream(owner="ann")) as events:
            assert (await anext(events)).name == "ready"
            await bob.create("of another one")
            flow = await ann.create("tidy up")
            first = await next_event(events)
        await flow.start()
        async with aclosing(views.stream(owner="ann", last_event_id=first.id)) as events:
            second = await next_event(events)

    assert first.data["event"]["flow_id"] == flow.id
    assert first.data["event"]["kind"] == "created"
    assert second.data["event"]["kind"] == "started"


async def test_what_is_written_can_be_read_and_posted_about(
    taskflow_fake: TaskflowFake, tmp_path: Path
) -> None:
    async with (
        acting(tmp_path, taskflow_fake, views_operator_token=OPERATOR) as here,
        asking(here.url) as views,
        FlowClient(session="ann") as ann,
    ):
        flow = await ann.create("tidy up")
        (event,) = taskflow_fake.events(flow.id)
        read = await views.get(f"flows/{flow.id}", after=event.id)
        body = {"kind": "cancel", "flow_id": flow.id, "issued_by": "operator:k", "reason": "x"}
        preview = {**body, "dry_run": True}
        posted = await views.post("control", preview, OPERATOR, wait="10s")
        with pytest.raises(NoViews, match="401"):
            await views.post("control", body, SecretStr("not the right token"), wait="10s")

    assert read["flow"]["goal"] == "tidy up"
    outcome = posted["outcome"]
    assert (outcome["verdict"], outcome["status"]) == ("accepted", "cancelled")


async def test_a_stream_that_cannot_begin_says_where(tmp_path: Path) -> None:
    async with asking("http://127.0.0.1:1") as views:
        with pytest.raises(NoViews, match=r"127\.0\.0\.1:1 has ended"):
            await anext(views.stream())
