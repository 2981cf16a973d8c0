"""The page is served as it is, and may load and run nothing but its own files."""

import re
from collections.abc import Mapping

from aiohttp import ClientSession, web

from processor.views.http.static_files import HOME, TYPES, page_routes

PAGE = (HOME / "index.html").read_text("utf-8")


async def served(path: str, **headers: str) -> tuple[int, str, Mapping[str, str]]:
    app = web.Application()
    app.add_routes(page_routes())
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        async with (
            ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}{path}", headers=headers) as response,
        ):
            return response.status, await response.text(), response.headers.copy()
    finally:
        await runner.cleanup()


async def test_the_page_and_its_files_are_served() -> None:
    status, text, headers = await served("/")
    assert (status, text) == (200, PAGE)
    assert headers["Content-Type"] == "text/html; charset=utf-8"

    status, _, headers = await served("/static/app.js")
    assert (status, headers["Content-Type"]) == (200, "text/javascript; charset=utf-8")


async def test_nothing_else_is() -> None:
    for path in ("/static/nothing.js", "/static/..%2fpage.py", "/static/%2e%2e/page.py"):
        status, text, _ = await served(path)
        assert status == 404
        assert "aiohttp" not in text


async def test_a_file_that_did_not_change_is_not_sent_again() -> None:
    _, _, headers = await served("/static/app.js")
    status, text, _ = await served("/static/app.js", **{"If-None-Match": headers["ETag"]})
    assert (status, text) == (304, "")


async def test_only_its_own_files_may_be_loaded_and_nothing_inline_runs() -> None:
    for path in ("/", "/static/app.js", "/static/nothing.js"):
        _, _, headers = await served(path)
        rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
        assert rules["default-src"] == "'none'"
        assert {rules[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {
            "'self'"
        }
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_every_file_is_of_a_known_type_and_names_no_other_place() -> None:
    for path in HOME.iterdir():
        assert path.suffix in TYPES, path
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.[a-z]", text), path


def test_no_text_becomes_markup_or_code() -> None:
    for path in HOME.glob("*.js"):
        text = path.read_text("utf-8")
        found = re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|\beval\b|new Function|document\.write", text
        )
        assert found is None, path
    assert not re.search(r"<style|style=|\son\w+=|<script(?![^>]+src=)", PAGE)
