"""`taskflow schemas register` at a registry in memory, and the same at Karapace."""

import json
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from processor.cli.main import DONE, REFUSED, WRONG_USE
from processor.cli.schemas.registry import connected
from processor.contract.publication.subjects import subjects
from tests.support.forked_program import Result, inherited, program
from tests.support.schema_registry import KARAPACE, MISSING, karapace, memory_registry

KARAPACE_PARAM = pytest.param(
    "karapace",
    marks=[pytest.mark.soak, pytest.mark.skipif(not KARAPACE.exists(), reason=MISSING)],
)


@pytest.fixture(params=["memory", KARAPACE_PARAM])
async def registry(
    request: pytest.FixtureRequest,
    prefix: str,
    tmp_path: Path,
    unused_tcp_port_factory: Callable[[], int],
) -> AsyncIterator[str]:
    port = unused_tcp_port_factory()
    if request.param == "memory":
        async with memory_registry(port) as url:
            yield url
        return
    broker: Any = request.getfixturevalue("broker")
    async with karapace(broker.bootstrap, f"{prefix}-schemas", port, tmp_path / "log") as url:
        yield url


async def register(url: str, prefix: str, *options: str) -> Result:
    environment = {**inherited(), "TASKFLOW_TOPIC_PREFIX": prefix}
    return await program(environment, "schemas", "register", "--registry", url, *options)


def lines(done: Result) -> dict[str, dict[str, Any]]:
    return {one["subject"]: one for one in map(json.loads, done.out.splitlines())}


async def get(url: str, path: str) -> Any:
    async with ClientSession() as session, session.get(f"{url}/{path}") as response:
        return await response.json(content_type=None)


async def test_schemas_are_registered_once_and_what_does_not_fit_changes_nothing(
    registry: str, prefix: str
) -> None:
    expected = subjects(prefix)
    assert f"{prefix}.audit-value" in expected
    assert f"{prefix}.state-StepSnapshot" in expected

    dry = await register(registry, prefix, "--dry-run")
    assert (dry.code, {one["state"] for one in lines(dry).values()}) == (DONE, {"new"}), dry.err
    assert await get(registry, "subjects") == []

    first = await register(registry, prefix)
    assert first.code == DONE, first.err
    made = lines(first)
    assert made.keys() == expected.keys()
    assert {one["version"] for one in made.values()} == {1}
    assert sorted(await get(registry, "subjects")) == sorted(expected)
    for subject, schema in expected.items():
        latest = await get(registry, f"subjects/{subject}/versions/latest")
        assert json.loads(latest["schema"]) == json.loads(schema)
        assert latest["schemaType"] == "JSON"
        assert latest["id"] == made[subject]["id"]
        level = await get(registry, f"config/{subject}")
        assert level["compatibilityLevel"] == "BACKWARD"

    again = await register(registry, prefix, "--compatibility", "FULL")
    assert again.code == DONE, again.err
    assert {(one["state"], one["version"]) for one in lines(again).values()} == {("there", 1)}
    assert (await get(registry, f"config/{prefix}.audit-value"))["compatibilityLevel"] == "FULL"
    assert f"0 schemas were registered, {len(expected)} were there already." in again.err

    # A subject of another prefix holds another schema.
    other = f"{prefix}x"
    async with ClientSession() as session:
        body = {"schema": '{"type": "integer"}', "schemaType": "JSON"}
        async with session.post(
            f"{registry}/subjects/{other}.outcomes-value/versions", json=body
        ) as response:
            assert response.status == 200, await response.text()
    refused = await register(registry, other)
    assert refused.code == REFUSED
    assert f"{other}.outcomes-value" in refused.err
    assert lines(refused)[f"{other}.outcomes-value"]["state"] == "incompatible"
    there = await get(registry, "subjects")
    assert [subject for subject in there if subject.startswith(f"{other}.")] == [
        f"{other}.outcomes-value"
    ]


async def test_an_address_that_is_none_or_does_not_answer_is_said_without_the_password() -> None:
    wrong = await register("registry.example", "t")
    assert wrong.code == WRONG_USE
    silent = await register("http://user:secret@127.0.0.1:1", "t")
    assert silent.code == REFUSED
    assert "http://127.0.0.1:1" in silent.err
    assert "secret" not in silent.err
    missing = await program(inherited(), "schemas", "register")
    assert missing.code == WRONG_USE
    assert "TASKFLOW_SCHEMA_REGISTRY" in missing.err


async def test_user_and_password_are_read_as_an_address_writes_them() -> None:
    given: list[str | None] = []

    async def config(request: web.Request) -> web.Response:
        given.append(request.headers.get("Authorization"))
        return web.json_response({})

    app = web.Application()
    app.router.add_get("/config/{subject}", config)
    async with TestServer(app, host="127.0.0.1") as server:
        url = f"http://us%25er:p%2Fa%40ss@127.0.0.1:{server.port}"
        async with connected(url) as registry:
            await registry.level("t.audit-value")
    assert given == [f"Basic {b64encode(b'us%er:p/a@ss').decode()}"]
