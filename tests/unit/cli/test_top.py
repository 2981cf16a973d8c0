"""`taskflow top` shows what the views know, however small the terminal and hostile the text."""

import re
import time
from pathlib import Path

import pytest
from aiohttp import web
from pydantic import SecretStr
from rich.console import Console

from processor.cli.common.output import plain
from processor.cli.common.runner import Refused, WrongUse
from processor.cli.common.service_address import views_url
from processor.cli.top.execute import _snapshot, press, refresh
from processor.cli.top.screen import QUESTIONS, Shown, bars, screen
from processor.client.http.views_client import NoViews, asking
from processor.contract.values import parse_timestamp
from processor.settings import Address, Settings
from tests.support.recorded_deployment import Recorded
from tests.support.served_views import NOWHERE, serving
from tests.support.stub_views import ShownViews, command, create, flow_id, showing, story


def now_ms() -> int:
    """Asked when it is needed: the story, too, is told as of the moment that it is asked for."""
    return time.time_ns() // 1_000_000


@pytest.fixture(scope="module")
def views() -> ShownViews:
    return story()


def rendered(
    shown: Shown, width: int = 140, height: int = 50, at_ms: int | None = None
) -> list[str]:
    """The lines as of `at_ms`, or as of now."""
    out = Console(width=width, height=height, color_system=None, legacy_windows=False)
    with out.capture() as captured:
        out.print(screen(shown, width, height, now_ms() if at_ms is None else at_ms))
    return captured.get().splitlines()


async def test_counts_partitions_flows_and_events_are_shown(views: ShownViews) -> None:
    async with showing(views) as url:
        shown = await _snapshot(url)
    ends_at = next(f["wait_ends_at"] for f in shown.flows["items"] if f["id"] == flow_id(7))
    lines = rendered(shown, at_ms=parse_timestamp(ends_at) + 303_000)

    text = "\n".join(lines)
    assert "up to date" in lines[0]
    assert "1 created  26 running  3 waiting  50 finished  1 failed" in text
    assert "events 12.0/s" in text
    assert "over 5 min 3 s, payments.settled" in text
    assert any(line.split()[:3] == ["1", "no", "worker"] and "1,200" in line for line in lines)
    assert "state_updated" in text


@pytest.mark.parametrize(("key", "count"), [("a", 82), ("w", 2), ("o", 1), ("c", 0), ("f", 1)])
async def test_each_question_has_its_flows(views: ShownViews, key: str, count: int) -> None:
    async with showing(views) as url, asking(url) as asked:
        shown = Shown(url, asked=key)
        await refresh(asked, shown, now_ms())
    assert len(shown.flows["items"]) == count
    assert any(line.startswith(f"flows: {QUESTIONS[key][0]}") for line in rendered(shown))


@pytest.mark.parametrize("size", [(200, 60), (80, 24), (40, 12), (20, 5)])
async def test_it_fits_into_the_terminal(views: ShownViews, size: tuple[int, int]) -> None:
    async with showing(views) as url:
        shown = await _snapshot(url)
    lines = rendered(shown, *size)
    assert len(lines) <= size[1]
    assert max(map(len, lines)) <= size[0]


async def test_80_by_24_has_room_for_flows_and_what_they_are_about(views: ShownViews) -> None:
    async with showing(views) as url:
        lines = rendered(await _snapshot(url), 80, 24)
    at = next(n for n, line in enumerate(lines) if line.startswith("flows: "))
    assert lines[at].endswith("of 82")
    head = lines[at + 1]
    assert head.split()[0] == "id"
    assert head.split()[-1] == "goal"
    flows = lines[at + 2 : next(n for n, line in enumerate(lines) if line == "events")]
    assert len(flows) >= 8
    assert all(len(line[head.index("goal") :]) >= 4 for line in flows)
    assert lines[-1].endswith("? help  q end")


async def test_a_flow_is_selected_and_looked_at(views: ShownViews) -> None:
    async with showing(views) as url, asking(url) as asked:
        shown = await _snapshot(url)
        ids = [flow["id"] for flow in shown.flows["items"]]
        for key, at in (("k", 0), ("j", 1), ("j", 2), ("k", 1), *[("j", 81)] * 90):
            assert not press(shown, key)
            if len(ids) > at:
                assert key == "k" or shown.selected in ids[: at + 1]
        assert shown.selected == ids[-1]
        shown.select(-100)
        assert shown.selected == ids[0]
        assert press(shown, "\r")
        await refresh(asked, shown, now_ms())
        text = "\n".join(rendered(shown, 80, 24))
        assert shown.flow is not None
        assert f"flow {ids[0]}" in text
        assert shown.flow["goal"][:40] in text
        assert "events, the newest first" in text
        assert "created" in text

        press(shown, "\x1b")
        assert not shown.opened
        assert press(shown, "w")
        assert (shown.asked, shown.selected) == ("w", None)
        assert press(shown, ""), "each second it asks again"


async def test_help_names_all_keys_and_any_key_leaves_it(views: ShownViews) -> None:
    async with showing(views) as url:
        shown = await _snapshot(url)
    press(shown, "?")
    text = "\n".join(rendered(shown, 80, 24))
    for key, (words, _) in QUESTIONS.items():
        assert re.search(rf"^  {key} +{words}", text, re.MULTILINE)
    press(shown, "w")
    assert (shown.helps, shown.asked) == (False, "a")


async def test_what_a_terminal_would_obey_is_written_out(views: ShownViews) -> None:
    async with showing(views) as url:
        text = "\n".join(rendered(await _snapshot(url), 400))
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "<img src=x" in text
    assert plain("a\u202eb\x1bc").plain == "a\\u202eb\\x1bc"


async def test_views_that_went_away_leave_what_was_there_and_are_missed() -> None:
    views = story()
    async with showing(views) as url:
        shown = await _snapshot(url)
        views.send(command(1, "start_running"))
    async with asking(url) as asked:
        await refresh(asked, shown, now_ms())
    lines = rendered(shown)
    assert "No views answer at" in lines[0]
    assert "26 running" in "\n".join(lines)


async def test_where_no_views_answer_it_says_what_to_do() -> None:
    with pytest.raises(
        Refused, match=r"connection refused.*taskflow views.*--views.*taskflow flow list"
    ):
        await _snapshot(f"http://{NOWHERE}")


async def test_somebody_else_at_the_address_is_no_view(views: ShownViews) -> None:
    async with showing(views) as url, asking(url) as asked:
        with pytest.raises(NoViews, match="no answer of theirs"):
            await asked.get("../static/app.js")
        assert await asked.get("flows/6f1f3a52-0000-4000-8000-000000000001") == {}


async def test_views_that_want_a_token_are_asked_with_it(tmp_path: Path) -> None:
    token = SecretStr("a read token of the views")
    recorded = Recorded()
    recorded.send(("commands", create(1, "settle invoice")))
    async with serving(tmp_path, recorded, views_read_token=token) as here:
        async with asking(here.url, token) as asked:
            assert len((await asked.get("flows"))["items"]) == 1
        for wrong in (None, SecretStr("another token than that")):
            with pytest.raises(Refused, match="TASKFLOW_VIEWS_READ_TOKEN") as refused:
                await _snapshot(here.url, wrong)
            assert "another token" not in str(refused.value)


async def test_a_redirect_is_no_answer_of_the_views() -> None:
    async def away(_: web.Request) -> web.Response:
        raise web.HTTPFound("http://127.0.0.1:1/")

    app = web.Application()
    app.add_routes([web.get("/{path:.*}", away)])
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with asking(f"http://127.0.0.1:{runner.addresses[0][1]}") as asked:
            with pytest.raises(NoViews, match="no answer of theirs"):
                await asked.get("flows")
    finally:
        await runner.cleanup()


def test_where_views_are() -> None:
    anywhere = Settings(views_http=Address("0.0.0.0", 9))
    assert views_url(anywhere) == "http://127.0.0.1:9"
    assert views_url(anywhere, "views-1:8901") == "http://views-1:8901"
    assert views_url(anywhere, "https://views/taskflow/") == "https://views/taskflow"
    for wrong in (
        "ftp://views",
        "http://",
        "views-1:port",
        "views:0",
        "http://[::1",
        "http://v?x=1",
    ):
        with pytest.raises(WrongUse, match="--views is"):
            views_url(anywhere, wrong)


def test_bars() -> None:
    assert bars([0, 1, 4, 8]) == " ▁▄█"
    assert bars([]) == ""
