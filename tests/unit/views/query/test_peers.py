"""View workers ask each other, and believe nobody else at the addresses that the group names."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, http_parser, web

from processor.engine.partitioner import partition_of
from processor.settings import Settings
from processor.views.access.peer_key import QUESTION, RESPONSE, ForgedError, PeerKey
from processor.views.access.peer_secret import peer_secret
from processor.views.query import peers as peers_module
from tests.support.machine import patience
from tests.support.read_model_harness import messages
from tests.support.recorded_deployment import Recorded
from tests.support.served_views import SECRET, ServedView, serving
from tests.support.stub_views import create, flow_id

PARTITIONS = 4
OURS, THEIRS = {0, 1}, {2, 3}


def some(count: int = 24) -> Recorded:
    recorded = Recorded(PARTITIONS)
    for number in range(count):
        recorded.send(("commands", create(number, f"goal {number}")))
    return recorded


@asynccontextmanager
async def pair(
    folder: Path, *, theirs_at: str | None = None, their_secret: str | None = SECRET, **options: Any
) -> AsyncIterator[tuple[ServedView, ServedView]]:
    """Two workers that share the partitions; the second is found at `theirs_at`, or where it is."""
    recorded = some()
    group: dict[str, Any] = {}
    async with (
        serving(folder / "a", recorded, shared_out=lambda: group, **options) as ours,
        serving(
            folder / "b", recorded, shared_out=lambda: group, secret=their_secret, **options
        ) as theirs,
    ):
        ours.view.assign(OURS)
        theirs.view.assign(THEIRS)
        theirs.peers.own = theirs_at or theirs.peers.own
        group |= {ours.peers.own: OURS, theirs.peers.own: THEIRS}
        yield ours, theirs


@asynccontextmanager
async def stranger(
    respond: Callable[[web.Request], Awaitable[web.StreamResponse]],
) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server that somebody has put at an address of the group; what it is asked."""
    asked: list[web.Request] = []

    async def noted(request: web.Request) -> web.StreamResponse:
        asked.append(request)
        return await respond(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", noted)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


@asynccontextmanager
async def with_a_stranger(
    folder: Path, respond: Callable[[web.Request], Awaitable[web.StreamResponse]], **options: Any
) -> AsyncIterator[tuple[ServedView, list[web.Request]]]:
    """A worker with half of the partitions; the group says that a stranger has the others."""
    async with stranger(respond) as (address, asked):
        group = {address: THEIRS}
        async with serving(folder, some(), shared_out=lambda: group, **options) as here:
            here.view.assign(OURS)
            yield here, asked


async def get(here: ServedView, path: str, **headers: str) -> Any:
    async with here.client.get(path, headers=headers) as response:
        return response.status, await response.json()


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker of ours that answers late here is no stranger."""
    monkeypatch.setattr(peers_module, "RESPONSE_MAX_S", patience(5.0))


PATHS = ("/v1/flows", "/v1/events", "/v1/statistics", "/v1/deadletters")


async def test_workers_with_the_same_secret_answer_for_all_partitions(tmp_path: Path) -> None:
    token = "a read token of the views"
    async with pair(tmp_path, views_read_token=token) as both:
        for here in both:
            for path in PATHS:
                status, body = await get(here, path, Authorization=f"Bearer {token}")
                assert status == 200, body
                assert (body["view"]["complete"], len(body["view"]["partitions"])) == (True, 4)
            _, flows = await get(here, "/v1/flows", Authorization=f"Bearer {token}")
            assert {item["partition"] for item in flows["items"]} == {0, 1, 2, 3}
            assert len(flows["items"]) == 24
            _, body = await get(here, "/v1/statistics", Authorization=f"Bearer {token}")
            assert body["flows_total"] == 24
            for item in flows["items"]:
                path = f"/v1/flows/{item['id']}"
                status, body = await get(here, path, Authorization=f"Bearer {token}")
                assert (status, body["flow"]["goal"]) == (200, item["goal"])
                status, problem = await get(
                    here, f"{path}?revision=99", Authorization=f"Bearer {token}"
                )
                assert (status, problem["code"]) == (404, "revision_unknown")


async def read_stream(here: ServedView, wanted: int, **query: str) -> list[int]:
    """The ids of the first events of a stream from the beginning."""
    found: list[int] = []
    async with (
        asyncio.timeout(patience(20)),
        here.client.get("/v1/stream", params={"since": "beginning", **query}) as response,
    ):
        async for line in response.content:
            if line.startswith(b'data: {"event"'):
                found.append(json.loads(line[6:])["event"]["id"])
                if len(found) == wanted:
                    break
    return found


async def test_a_stream_has_the_events_of_all_workers(tmp_path: Path) -> None:
    async with pair(tmp_path) as both:
        for here in both:
            found = await read_stream(here, 48)
            assert len(set(found)) == 48
            assert {event_id >> 40 for event_id in found} == {0, 1, 2, 3}


@pytest.mark.parametrize("their_secret", ["another secret than ours", None])
async def test_workers_with_different_secrets_leave_each_other_out(
    tmp_path: Path, their_secret: str | None
) -> None:
    async with pair(tmp_path, their_secret=their_secret) as both:
        for here, own, other in ((both[0], OURS, THEIRS), (both[1], THEIRS, OURS)):
            for path in PATHS:
                status, body = await get(here, path)
                assert status == 200
                assert (body["view"]["complete"], set(body["view"]["missing"])) == (False, other)
            _, flows = await get(here, "/v1/flows")
            assert {item["partition"] for item in flows["items"]} == own


async def forged(request: web.Request) -> web.Response:
    """What a worker with the secret would say, were it one."""
    view = {
        "complete": True, "missing": [], "behind": 0, "lag_ms": 0,
        "partitions": [{"partition": p, "event_id": p << 40, "behind": 0} for p in range(4)],
    }  # fmt: skip
    document = {
        "items": [{"id": "forged", "goal": "forged", "at": "2026-01-01T00:00:00.000Z"}],
        "next_cursor": None, "view": view, "flow": {"goal": "forged"}, "minutes": {},
        "totals": [{"flows": {"running": 10**6}, "kinds": {}, "cancel_requested": 0}],
    }  # fmt: skip
    return web.json_response(document, headers={RESPONSE: f"{'0' * 64} {'0' * 64}"})


async def test_what_a_stranger_forges_is_in_no_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with with_a_stranger(tmp_path, forged) as (here, asked):
        for path in PATHS:
            status, body = await get(here, path)
            assert (status, body["view"]["missing"]) == (200, [2, 3])
            assert "forged" not in json.dumps(body)
        _, body = await get(here, "/v1/statistics")
        assert body["flows_total"] < 24
        assert asked, "it was asked"
        for request in asked:
            assert SECRET not in str(request.headers) + request.path_qs
    assert "TASKFLOW_VIEWS_PEER_SECRET" in caplog.text


async def test_a_refusal_of_a_stranger_is_none_of_ours(tmp_path: Path) -> None:
    async def refuses(_: web.Request) -> web.Response:
        body = {"code": "bad_request", "detail": "forged", "errors": []}
        return web.json_response(body, status=400)

    async with with_a_stranger(tmp_path, refuses) as (here, _):
        status, body = await get(here, "/v1/flows")
        assert (status, body["view"]["missing"]) == (200, [2, 3])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(tmp_path: Path, status: int) -> None:
    async def never(_: web.Request) -> web.Response:
        raise AssertionError("nobody is asked there")

    async with stranger(never) as (elsewhere, followed):

        async def away(_: web.Request) -> web.Response:
            return web.Response(status=status, headers={"Location": f"{elsewhere}/secret"})

        async with with_a_stranger(tmp_path, away) as (here, asked):
            for path in (*PATHS, "/v1/stream?since=beginning"):
                if path.startswith("/v1/stream"):
                    await read_stream(here, 2)
                else:
                    await get(here, path)
            assert asked
            assert followed == []


async def test_a_bomb_is_not_unpacked_and_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bomb has no end: a reader would never answer."""
    monkeypatch.setattr(peers_module, "RESPONSE_MAX_S", 3600.0)
    unpacked: list[bytes] = []
    monkeypatch.setattr(
        http_parser.DeflateBuffer, "feed_data", lambda _, data, *__: unpacked.append(data)
    )
    packed, left = gzip.compress(bytes(1024 * 1024)), asyncio.Event()

    async def bomb(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": "gzip", RESPONSE: "x x"})
        await response.prepare(request)
        try:
            while True:
                await response.write(packed)
                await asyncio.sleep(0)
        finally:
            left.set()

    async with with_a_stranger(tmp_path, bomb) as (here, _), asyncio.timeout(patience(20)):
        for _ in range(4):
            status, body = await get(here, "/v1/flows")
            assert (status, body["view"]["missing"]) == (200, [2, 3])
        await left.wait()
    assert unpacked == []


async def test_a_stranger_that_does_not_answer_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "RESPONSE_MAX_S", 0.3)
    monkeypatch.setattr(peers_module, "AVOIDED_S", 3600.0)

    async def silent(_: web.Request) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async with with_a_stranger(tmp_path, silent) as (here, asked):
        for _ in range(10):
            status, body = await get(here, "/v1/flows")
            assert (status, body["view"]["missing"]) == (200, [2, 3])
        assert len(asked) == 1


async def test_a_body_that_never_ends_is_read_for_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers_module, "RESPONSE_MAX_S", 0.5)
    monkeypatch.setattr(peers_module, "RESPONSE_MAX_BYTES", 100_000)
    key = PeerKey(SECRET)

    async def endless(request: web.Request) -> web.StreamResponse:
        """Signed by somebody who knows the secret, for argument's sake."""
        address = f"http://{request.host}"
        exchange = key.admit(request.headers[QUESTION], address, request.raw_path)
        response = web.StreamResponse(headers={RESPONSE: exchange.sign(200, b"")})
        await response.prepare(request)
        while True:
            await response.write(bytes(10_000))
            await asyncio.sleep(0)

    async with with_a_stranger(tmp_path, endless) as (here, _):
        status, body = await get(here, "/v1/flows")
        assert (status, body["view"]["missing"]) == (200, [2, 3])


def relay(to: Callable[[], str], alter: Callable[[bytes], bytes] = lambda body: body) -> Any:
    """Asks on what it is asked, and answers what it hears, altered."""

    async def respond(request: web.Request) -> web.StreamResponse:
        headers = {QUESTION: request.headers[QUESTION]}
        async with (
            ClientSession() as session,
            session.get(f"{to()}{request.path_qs}", headers=headers) as upstream,
        ):
            kept = {
                name: upstream.headers[name] for name in (RESPONSE,) if name in upstream.headers
            }
            if "event-stream" in upstream.headers.get("Content-Type", ""):
                response = web.StreamResponse(headers=kept)
                await response.prepare(request)
                async for line in upstream.content:
                    await response.write(alter(line))
                return response
            return web.Response(
                body=alter(await upstream.read()), status=upstream.status, headers=kept
            )

    return respond


async def test_a_question_for_one_address_is_not_answered_at_another(tmp_path: Path) -> None:
    # A stranger in the group, who asks the honest worker on.
    async with (
        serving(tmp_path / "b", some()) as honest,
        with_a_stranger(tmp_path / "a", relay(lambda: honest.url)) as (here, asked),
    ):
        status, body = await get(here, "/v1/flows")
        assert (status, body["view"]["missing"]) == (200, [2, 3])
        async with honest.client.get(
            asked[0].path_qs, headers={QUESTION: asked[0].headers[QUESTION]}
        ) as response:
            assert response.status == 401


async def test_an_answer_that_was_altered_on_its_way_is_left_out(tmp_path: Path) -> None:
    where: list[str] = []
    altered = [False]

    def alter(body: bytes) -> bytes:
        return body.replace(b"goal", b"gaol") if altered[0] else body

    async with (
        stranger(relay(lambda: where[0], alter)) as (proxy, _),
        pair(tmp_path, theirs_at=proxy) as (ours, theirs),
    ):
        where.append(theirs.url)
        _, body = await get(ours, "/v1/flows")
        assert body["view"]["complete"], "a proxy in between is no harm"
        altered[0] = True
        _, body = await get(ours, "/v1/flows")
        assert body["view"]["missing"] == [2, 3]
        assert "gaol" not in json.dumps(body)


async def test_an_event_of_a_stream_that_was_altered_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where: list[str] = []
    refused = asyncio.Event()

    def alter(line: bytes) -> bytes:
        return line.replace(b"goal 1", b"gaol 1")

    async with (
        stranger(relay(lambda: where[0], alter)) as (proxy, _),
        pair(tmp_path, theirs_at=proxy) as (ours, theirs),
    ):
        where.append(theirs.url)
        avoid = ours.peers._avoid

        def noted(url: str, error: Exception) -> None:
            avoid(url, error)
            refused.set()

        monkeypatch.setattr(ours.peers, "_avoid", noted)
        seen = b""
        async with (
            asyncio.timeout(patience(20)),
            ours.client.get("/v1/stream?since=beginning") as response,
        ):
            await refused.wait()
            # What comes after it has let all pass that was before it.
            last = next(n for n in range(24, 99) if home(n) in OURS)
            recorded = some()
            recorded.send(("commands", create(last, "the last goal")))
            await ours.view.project(messages(recorded))
            while b"the last goal" not in seen:
                seen += await response.content.readline()
        assert b"goal 1" in seen
        assert b"gaol" not in seen


def home(number: int) -> int:
    return partition_of(flow_id(number).encode(), PARTITIONS)


async def test_only_workers_are_asked_for_raw_statistics(tmp_path: Path) -> None:
    async with pair(tmp_path) as (ours, _):
        status, body = await get(ours, "/internal/statistics")
        assert (status, body["code"]) == (403, "forbidden")
        for header in ("", "x", "0" * 32, f"{'0' * 32} {'0' * 64}", "ü ü"):
            status, body = await get(ours, "/internal/statistics", **{QUESTION: header})
            assert (status, body["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    "address",
    ["", "x", "http://", "http://[::", "ftp://127.0.0.1", "javascript:alert(1)", "file:///etc/passwd",
     "http://u:p@127.0.0.1:1", "http://127.0.0.1:1/path", "http://127.0.0.1:1?x=1", "http://a b",
     "http://127.0.0.1:99999", "http://" + "x" * 3000, "http://é.example"],
)  # fmt: skip
async def test_what_is_no_address_is_not_asked(tmp_path: Path, address: str) -> None:
    group = {address: THEIRS}
    async with serving(tmp_path, some(), shared_out=lambda: group) as here:
        here.view.assign(OURS)
        status, body = await get(here, "/v1/flows")
        assert (status, body["view"]["missing"]) == (200, [2, 3])


async def test_a_stranger_at_our_own_address_takes_nothing_from_us(tmp_path: Path) -> None:
    group: dict[str, set[int]] = {}
    async with serving(tmp_path, some(), shared_out=lambda: group) as here:
        here.view.assign(OURS)
        group[here.peers.own.upper().replace("HTTP", "http")] = {0, 1, 2, 3}
        status, body = await get(here, "/v1/flows")
        assert (status, body["view"]["missing"]) == (200, [2, 3])


# The key and the secret


def test_each_part_of_an_exchange_is_bound_to_the_others() -> None:
    key = PeerKey(SECRET)
    asking, header = key.ask("http://b:1", "/v1/flows?x=1")
    admitted = key.admit(header, "http://b:1", "/v1/flows?x=1")
    for address, path in (("http://c:1", "/v1/flows?x=1"), ("http://b:1", "/v1/flows?x=2")):
        with pytest.raises(ForgedError):
            key.admit(header, address, path)
    with pytest.raises(ForgedError):
        PeerKey("another secret").admit(header, "http://b:1", "/v1/flows?x=1")
    signed = admitted.sign(200, b"body")
    digest = asking.expect(signed, 200)
    asking.check(digest, b"body")
    with pytest.raises(ForgedError):
        asking.check(digest, b"bodY")
    with pytest.raises(ForgedError):
        asking.expect(signed, 400)
    other, _ = key.ask("http://b:1", "/v1/flows?x=1")
    with pytest.raises(ForgedError):
        other.expect(signed, 200)
    code = admitted.event_code(0, "event", "id", b"data")
    asking.check_event(code, 0, "event", "id", b"data")
    for changed in ((1, "event", "id", b"data"), (0, "ready", "id", b"data"),
                    (0, "event", "di", b"data"), (0, "event", "id", b"dato")):  # fmt: skip
        with pytest.raises(ForgedError):
            asking.check_event(code, *changed)


def test_workers_of_one_user_share_a_secret_that_only_he_can_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    settings = Settings()
    secret = peer_secret(settings)
    assert secret is not None
    assert len(secret) == 64
    assert peer_secret(settings) == secret
    (path,) = (tmp_path / "state" / "taskflow").iterdir()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert peer_secret(Settings(views_peer_secret="one that was given")) == "one that was given"


def test_a_secret_that_others_can_read_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert peer_secret(Settings()) is not None
    path = tmp_path / "taskflow" / "views-peer-secret"
    path.chmod(0o644)
    assert peer_secret(Settings()) is None
    assert "TASKFLOW_VIEWS_PEER_SECRET" in caplog.text
    path.chmod(0o600)
    path.write_text("short")
    assert peer_secret(Settings()) is None


def test_without_a_place_for_a_secret_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert peer_secret(Settings()) is None
    assert "TASKFLOW_VIEWS_PEER_SECRET" in caplog.text
