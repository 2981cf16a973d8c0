"""Who is let in by the server of workers and view workers, and what a client may take."""

import asyncio
import contextlib
import logging
import random
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from unittest.mock import Mock

import pytest
from aiohttp import web

from processor.settings import Address
from processor.telemetry.health_server import serve
from processor.telemetry.http.hosts import HostPolicy
from processor.telemetry.http.internals import HttpConnection
from processor.telemetry.http.limits import HttpLimits
from processor.telemetry.http.problem import ProblemError
from processor.telemetry.http.server import listening, read_body
from tests.support.logged import logged
from tests.support.machine import patience, stretched
from tests.support.raw_http import ask, connected, get

LOCAL = Address("127.0.0.1", 0)
BIG = 8 * 1024 * 1024


@asynccontextmanager
async def health(**options: Any) -> AsyncIterator[tuple[str, int]]:
    async def report() -> Any:
        return {"ready": True}

    async def metrics() -> bytes:
        return b"metric 1\n"

    async with serve(LOCAL, report=report, metrics=metrics, **options) as where:
        assert where is not None
        yield where


@asynccontextmanager
async def server(
    *hosts: str, unanswered: asyncio.Semaphore | None = None, **limits: Any
) -> AsyncIterator[tuple[str, int]]:
    """One that echoes bodies, has a large one of its own, and fails when asked to; `unanswered` is
    released for each request that it does not answer."""
    bounds = HttpLimits(**{"connections": 8, "body_bytes": 1000, **limits})

    async def echo(request: web.Request) -> Any:
        return web.Response(body=await read_body(request, bounds))

    async def big(_: Any) -> Any:
        return web.Response(body=bytes(BIG))

    async def fails(_: Any) -> web.Response:
        raise RuntimeError("hidden words")

    async def worker_blocked(_: Any) -> web.Response:
        if unanswered is not None:
            unanswered.release()
        await asyncio.Event().wait()
        raise AssertionError("nothing sets the event")

    app = web.Application()
    app.add_routes(
        [
            *(web.post("/echo", echo), web.get("/big", big)),
            *(web.get("/fails", fails), web.get("/stuck", worker_blocked), web.get("/", big)),
        ]
    )
    async with listening(app, LOCAL, "nothing", limits=bounds, hosts=HostPolicy(hosts)) as where:
        yield where


# Hosts


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8900", "localhost.", "app.localhost:1", "127.0.0.1", "127.9.9.9:80",
     "[::1]:8900", "[::1]", "[::ffff:127.0.0.1]"],
)  # fmt: skip
async def test_the_names_of_the_loopback_interface_are_answered(host: str) -> None:
    async with health() as where:
        assert (await ask(where, get("/live", host=host))).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8900", "localhost.evil.example", "notlocalhost", "10.1.2.3",
     "127.0.0.1.nip.io", "128.0.0.1:8900", "[::2]", "0.0.0.0", "", "localhost:x",
     "localhost@evil.example", "localhost/evil", "127.0.0.1:80:80", "[::1", "lo calhost",
     "evil.example#localhost", "\udce9"],
)  # fmt: skip
async def test_another_host_is_refused_and_learns_nothing(host: str) -> None:
    async with health() as where:
        for path in ("/live", "/ready", "/metrics", "/nothing"):
            response = await ask(where, get(path, host=host))
            assert (response.status, response.problem()["code"]) == (421, "misdirected"), path
            assert b"true" not in response.body


async def test_an_absolute_target_counts_as_a_host_too() -> None:
    async with health() as where:
        for target in ("http://evil.example/live", "http://u@localhost/live", "ftp://[::2]/live"):
            assert (await ask(where, get(target))).status == 421
        assert (await ask(where, get("http://localhost/live"))).status == 200
        assert (await ask(where, b"GET /live HTTP/1.0\r\n\r\n")).status == 421
        response = await ask(where, b"GET /live HTTP/1.1\r\n\r\n")
        assert (response.status, response.problem()["code"]) == (400, "bad_request")
        two = get("/live", "Host: evil.example")
        assert (await ask(where, two)).status == 400


@pytest.mark.parametrize(
    ("setting", "host", "status"),
    [
        ("worker-1,worker-2", "worker-2:8900", 200),
        ("Worker-1", "worker-1", 200),
        ("worker-1", "worker-10", 421),
        ("*.svc.cluster.local", "views.prod.svc.cluster.local:8901", 200),
        ("*.svc.cluster.local", "svc.cluster.local.evil.example", 421),
        ("*.svc.cluster.local", "evilsvc.cluster.local", 421),
        ("10.2.3.4", "10.2.3.4:8900", 200),
        ("10.2.3.4", "10.2.3.5:8900", 421),
        ("::1,fd00::1", "[fd00:0::1]:8900", 200),
        ("*", "anything.example", 200),
        ("worker-1", "localhost", 200),
    ],
)
async def test_other_hosts_are_answered_if_they_are_named(
    setting: str, host: str, status: int
) -> None:
    async with health(hosts=setting.split(",")) as where:
        assert (await ask(where, get("/live", host=host))).status == status


async def test_the_address_that_a_probe_connects_to_is_a_host() -> None:
    transport = Mock(get_extra_info=lambda _: ("10.7.7.7", 8900))
    probe = Mock(headers={"Host": "10.7.7.7:8900"}, raw_path="/live", transport=transport)
    HostPolicy().check(probe)
    probe.headers["Host"] = "10.7.7.8:8900"
    with pytest.raises(ProblemError):
        HostPolicy().check(probe)


# Other sites


@pytest.mark.parametrize(
    "headers",
    [
        ["Origin: http://evil.example"],
        ["Origin: null"],
        ["Origin: "],
        ["Origin: http://localhost:3000"],
        ["Origin: http://localhost.evil.example:8900"],
        ["Sec-Fetch-Site: cross-site"],
        ["Sec-Fetch-Site: same-site"],
        ["Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: iframe"],
        ["Sec-Fetch-Site: cross-site", "Origin: http://localhost"],
        ["Sec-Fetch-Site: same-origin", "Origin: http://evil.example"],
    ],
)
async def test_a_page_of_another_site_is_refused(headers: Any) -> None:
    async with health() as where:
        response = await ask(where, get("/ready", *headers))
        assert (response.status, response.problem()["code"]) == (403, "forbidden")


@pytest.mark.parametrize(
    "headers",
    [
        [],
        ["Origin: http://localhost:8900"],
        ["Origin: https://LOCALHOST:8900", "Sec-Fetch-Site: same-origin"],
        ["Origin: https://localhost", "Sec-Fetch-Site: same-origin"],
        ["Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate"],
    ],
)
async def test_pages_of_the_server_and_programs_are_answered(headers: Any) -> None:
    async with health() as where:
        assert (await ask(where, get("/live", *headers, host="localhost:8900"))).status == 200


async def test_a_link_of_another_site_opens_the_page_and_nothing_else() -> None:
    follows = (
        *("Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"),
    )
    async with server() as where:
        async with connected(where) as connection:
            await connection.send(get("/", *follows))
            assert (await connection.response()).status == 200
        assert (await ask(where, get("/big", *follows))).status == 403


# What cannot be parsed, or is too large


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (get("/" + "x" * 20_000), 414, "uri_too_long"),
        (get("/live?" + "x" * 9_000), 414, "uri_too_long"),
        (get("/" + "x" * 400_000), 414, "uri_too_long"),
        (get("/live", "X: " + "x" * 20_000), 431, "headers_too_large"),
        (get("/live", "x" * 20_000 + ": x"), 431, "headers_too_large"),
        (get("/live", *(f"X-{n}: x" for n in range(200))), 431, "headers_too_large"),
        (get("/live", *(f"X-{n}: {'x' * 8000}" for n in range(6))), 431, "headers_too_large"),
        (get("/live", *(f"X-{n}: {'x' * 8000}" for n in range(90))), 431, "headers_too_large"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "bad_request"),
        (b"hello\r\n\r\n", 400, "bad_request"),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
        (b"GET nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "bad_request"),
        (get("/live", "Bad Header: x"), 400, "bad_request"),
        (get("/live", "X: a\x00b"), 400, "bad_request"),
        (get("/live", "Content-Length: x"), 400, "bad_request"),
        (get("/live", "Content-Length: 5", "Transfer-Encoding: chunked"), 400, "bad_request"),
        (get("/nothing"), 404, "not_found"),
        (get("/live/%2e%2e/ready"), 404, "not_found"),
        (b"POST /live HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n", 405,
         "method_not_allowed"),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, "not_found"),
        (get("/live", "Expect: 200-maybe"), 417, "expectation_failed"),
        (get("/live", "Content-Length: 1") + b"x", 413, "too_large"),
        (get("/live", "Content-Encoding: gzip"), 415, "unsupported_media_type"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)  # fmt: skip
async def test_each_refusal_is_a_problem_document(
    request_bytes: Any, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with health() as where:
        response = await ask(where, request_bytes)
        assert (response.status, response.problem()["code"]) == (status, code)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert b"xxxx" not in response.body, "nothing of the request comes back"
        if status == 405:
            assert response.headers["allow"] == "GET, HEAD"
        assert (await ask(where, get("/ready"))).status == 200
    assert logged(caplog) == []


async def test_a_bug_is_a_problem_document_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with server() as where:
        response = await ask(where, get("/fails"))
        assert (response.status, response.problem()["code"]) == (500, "internal_error")
        assert b"hidden words" not in response.body
    assert [record.levelname for record in logged(caplog)] == ["ERROR"]


POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("rest", "status", "code"),
    [
        (b"Content-Length: 1001\r\n\r\n" + b"x" * 1001, 413, "too_large"),
        (b"Content-Length: 99999999999\r\n\r\n", 413, "too_large"),
        (b"Transfer-Encoding: chunked\r\n\r\n" + b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n", 413,
         "too_large"),
        (b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "bad_request"),
    ],
)  # fmt: skip
async def test_a_body_that_is_too_large_or_broken_is_refused(
    rest: bytes, status: int, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with server() as where:
        response = await ask(where, POST + rest)
        assert (response.status, response.problem()["code"]) == (status, code)
        response = await ask(where, POST + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000)
        assert (response.status, response.body) == (200, b"x" * 1000)
    assert logged(caplog) == []


# Time


async def test_headers_that_do_not_end_are_refused_in_time() -> None:
    begun = b"GET / HTTP/1.1\r\nHost: local"
    async with (
        server(head_s=0.2) as where,
        connected(where, begun) as slow,
        connected(where) as silent,
    ):
        response = await slow.response()
        assert (response.status, response.problem()["code"]) == (408, "request_timeout")
        await slow.ends()
        await silent.ends()


async def test_headers_that_come_byte_by_byte_do_not_extend_their_time() -> None:
    async with server(head_s=0.3) as where, connected(where, b"GET /") as slow:

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in b"live HTTP/1.1\r\nX: " + b"x" * 1000:
                    await slow.send(bytes([byte]))
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        assert (await slow.response()).status == 408
        dripping.cancel()


async def test_a_second_request_of_a_connection_is_held_to_the_same_time() -> None:
    first = POST + b"Content-Length: 2\r\n\r\nhi"
    async with server(head_s=0.3) as where, connected(where, first) as slow:
        assert (await slow.response()).status == 200
        await slow.send(b"GET /")
        assert (await slow.response()).status == 408
        await slow.ends()


async def test_a_connection_that_idles_is_closed() -> None:
    async with server(idle_s=0.2) as where, connected(where) as connection:
        await connection.send(POST + b"Content-Length: 2\r\n\r\nhi")
        assert (await connection.response()).status == 200
        await connection.ends()


async def test_a_body_that_does_not_end_is_refused_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with server(body_s=0.2, linger_s=0.1) as where, connected(where) as slow:
        await slow.send(POST + b"Content-Length: 10\r\n\r\nhi")
        response = await slow.response()
        assert (response.status, response.problem()["code"]) == (408, "request_timeout")
        await slow.ends()
    assert logged(caplog) == []


async def test_a_body_may_take_longer_than_the_headers() -> None:
    begun = POST + b"Content-Length: 4\r\n\r\nhi"
    async with server(head_s=0.2) as where, connected(where, begun) as slow:
        await asyncio.sleep(0.5)  # for as long as the headers could not have taken
        await slow.send(b"ho")
        assert (await slow.response()).body == b"hiho"


async def test_a_client_that_does_not_read_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    left, drop = asyncio.Event(), HttpConnection.drop

    def noted(connection: HttpConnection) -> None:
        drop(connection)
        left.set()

    monkeypatch.setattr(HttpConnection, "drop", noted)
    async with (
        # One that reads must have all of it by then.
        server(stall_s=stretched(0.5), stall_bytes_s=100 * BIG) as where,
        connected(where) as slow,
        connected(where) as fast,
    ):
        await slow.send(get("/big"))
        await fast.send(get("/big"))
        assert len((await fast.response()).body) == BIG
        read = b""
        async with asyncio.timeout(patience(10)):
            await left.wait()
            with contextlib.suppress(ConnectionError):
                while chunk := await slow.reader.read(2**20):
                    read += chunk
        assert len(read) < BIG, "the server has kept the rest for it"


async def test_no_more_is_kept_for_clients_that_do_not_read_than_the_limit() -> None:
    async def whole(one: Any) -> Any:
        try:
            return len((await one.response()).body) == BIG
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    async with (
        server(unsent_bytes=2 * BIG, connections=20) as where,
        contextlib.AsyncExitStack() as stack,
    ):
        slow = [await stack.enter_async_context(connected(where)) for _ in range(12)]
        for one in slow:
            await one.send(get("/big"))
        async with connected(where) as fast:
            await fast.send(get("/big"))
            assert len((await fast.response()).body) == BIG
        served = [await whole(one) for one in slow]
    assert 0 < sum(served) <= 4, "the longest waits were ended, and no others"


async def test_a_client_that_leaves_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    async with server() as where:
        for request in (
            get("/big"),
            get("/stuck"),
            b"GET / HT",
            POST + b"Content-Length: 9\r\n\r\nx",
        ):
            async with connected(where) as connection:
                await connection.send(request)
                await asyncio.sleep(0.05)
                connection.writer.transport.abort()
        assert (await ask(where, get("/big"))).status == 200
    assert logged(caplog) == []


# Connections


async def test_idle_connections_do_not_keep_others_out() -> None:
    async with health() as where, contextlib.AsyncExitStack() as stack:
        for number in range(300):
            idle = await stack.enter_async_context(connected(where))
            if number % 3 == 1:
                await idle.send(b"GET /live HTTP/1.1\r\n")
            elif number % 3 == 2:
                await idle.send(get("/live"))
        async with asyncio.timeout(HttpLimits(connections=1).head_s / 2):
            assert (await ask(where, get("/ready"))).status == 200


async def test_connections_that_work_are_kept_and_one_more_is_refused() -> None:
    unanswered = asyncio.Semaphore(0)
    async with server(unanswered=unanswered) as where, contextlib.AsyncExitStack() as stack:
        busy = [await stack.enter_async_context(connected(where)) for _ in range(8)]
        async with asyncio.timeout(patience(10)):
            for one in busy:
                await one.send(get("/stuck"))
                await unanswered.acquire()
        response = await ask(where, get("/big"))
        assert (response.status, response.problem()["code"]) == (503, "busy")
        assert response.headers["retry-after"] == "1"
        busy[0].writer.transport.abort()
        async with asyncio.timeout(patience(10)):
            while (await ask(where, get("/big"))).status != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def test_a_process_with_few_descriptors_keeps_most_of_them_for_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert HttpLimits(connections=64).connections_now == 64
    monkeypatch.setattr(resource, "getrlimit", lambda _: (128, 128))
    assert HttpLimits(connections=64).connections_now == 32
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    assert HttpLimits(connections=64).connections_now == 16
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert HttpLimits(connections=64).connections_now == 64


async def test_requests_that_are_sent_at_once_are_answered_in_order() -> None:
    body = b"Content-Length: 900\r\n\r\n"
    async with server() as where, connected(where) as connection:
        await connection.send(
            b"".join(POST + body + bytes([48 + n]) * 900 for n in range(40)) + get("/nothing")
        )
        for n in range(40):
            assert (await connection.response()).body == bytes([48 + n]) * 900
        assert (await connection.response()).status == 404


HEALTH = """
import asyncio, sys, uvloop
from processor.settings import Address
from processor.telemetry.health_server import serve

async def main():
    async def report():
        return {"ready": True}

    async def metrics():
        return b""

    async with serve(Address("127.0.0.1", 0), report=report, metrics=metrics) as where:
        print(where.port, flush=True)
        await asyncio.Event().wait()

uvloop.run(main())
"""


async def test_a_worker_with_256_descriptors_is_asked_among_idle_connections() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", HEALTH),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)),
    )
    assert process.stdout is not None
    try:
        where = ("127.0.0.1", int(await process.stdout.readline()))
        async with contextlib.AsyncExitStack() as stack:
            for number in range(400):
                idle = await stack.enter_async_context(connected(where))
                if number % 2:
                    await idle.send(b"GET /ready HTTP/1.1\r\nHost: local")
            for _ in range(20):
                async with asyncio.timeout(patience(5)):
                    assert (await ask(where, get("/ready"))).status == 200
    finally:
        process.terminate()
        _, log = await process.communicate()
    assert b"Traceback" not in log


TOKENS = [
    *("GET", "HEAD", "POST", "PUT", "PATCH", "TRACE", "OPTIONS", "CONNECT", "PRI", "M-SEARCH", ""),
    *(
        " ",
        "/",
        "*",
        "/live",
        "/ready?x",
        "//",
        "/%",
        "/%00",
        "/%ff",
        "/../..",
        "http://localhost/",
    ),
    *("http://[", "localhost:80", "/\udce9", "?", "#", "/live#x", " HTTP/1.1", " HTTP/1.0"),
    *(" HTTP/2.0", " HTTP/0.9", "\r\n", "\n", "\r", "\r\n\r\n", "Host: localhost", "Host:", ":"),
    *("Host: evil.example", "Upgrade: websocket", "Connection: Upgrade", "Connection: close"),
    *("Content-Length: 0", "Content-Length: 3", "Content-Length: -1", "Content-Length: 9e9"),
    *("Transfer-Encoding: chunked", "Transfer-Encoding: gzip, chunked", "0\r\n\r\n", "5\r\nabc"),
    *("Expect: 100-continue", "Content-Encoding: br", "Origin: null", "Sec-Fetch-Site: x"),
    *("Authorization: Bearer \udcff", "Range: bytes=0-", "Cookie: " + "x" * 500, "\x00", "é"),
    *("X" * 9000, "Accept: " + "text/html," * 50, "Sec-WebSocket-Key1: x", "PROXY TCP4 1 2 3 4"),
]


def random_request(chance: random.Random) -> bytes:
    """Nearly a request, or a few, or none."""
    if chance.random() < 0.5:
        lines = [chance.choice(TOKENS[:11]) + " " + chance.choice(TOKENS[11:24]) + " HTTP/1.1"]
        lines += [chance.choice(["Host: localhost", "Host: localhost", *TOKENS])]
        lines += chance.choices(TOKENS, k=chance.randrange(4))
        text = "\r\n".join(lines) + "\r\n\r\n"
    else:
        text = "".join(chance.choices(TOKENS, k=chance.randrange(1, 12)))
    return text.encode("utf-8", "surrogateescape")


async def test_whatever_is_sent_is_answered_in_order_or_not_at_all_and_is_no_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    chance = random.Random(14)
    statuses: Counter[int] = Counter()
    # Who hears the response hangs up: a short time to linger would be for what is late alone.
    times: dict[str, Any] = {"head_s": 0.05, "idle_s": 0.1, "body_s": 0.05, "linger_s": patience(5)}
    async with server(**times) as where:
        for _ in range(400):
            request = random_request(chance)
            async with connected(where) as connection:
                response = b""
                # Where it came too late, nobody has read it when the connection is closed.
                with suppress(ConnectionError):
                    await connection.send(request)
                    async with asyncio.timeout(patience(10)):
                        response = await connection.reader.read(65536)
            if response.startswith(b"HTTP/1.1 100"):
                response = response.partition(b"\r\n\r\n")[2]
            if not response:
                continue  # it was not whole
            head, _, body = response.partition(b"\r\n\r\n")
            status = int(head.split()[1])
            statuses[status] += 1
            if status >= 400 and body:
                assert b"application/problem+json" in head, (request, response)
        async with connected(where, get("/big")) as last:
            assert (await last.response()).status == 200
    assert {400, 404, 405, 408} <= statuses.keys()
    assert 500 not in statuses
    assert logged(caplog) == []
