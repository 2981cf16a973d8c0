"""Schema registries to register at: Karapace over the session's broker, and one in memory that
answers as it does."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from aiohttp import ClientError, ClientSession, web

from tests.support.machine import patience

KARAPACE: Final = Path.home() / ".cache" / "taskflow" / "karapace" / "bin" / "python"
"""Of an environment of its own: its dependencies and ours do not fit together."""
MISSING: Final = (
    f"there is no Karapace here (python3.12 -m venv {KARAPACE.parents[1]}, then its pip install "
    "git+https://github.com/Aiven-Open/karapace@6.2.0, which needs Go; it is not on PyPI)"
)


class MemoryRegistry:
    """The requests that `taskflow schemas` makes. A schema fits those of its own JSON type."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._versions: dict[str, list[str]] = {}
        self._levels: dict[str, str] = {}

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/subjects", self._subjects),
                web.post("/subjects/{subject}", self._look_up),
                web.get("/subjects/{subject}/versions/latest", self._latest),
                web.post("/subjects/{subject}/versions", self._register),
                web.post("/compatibility/subjects/{subject}/versions/latest", self._fits),
                web.get("/config/{subject}", self._level),
                web.put("/config/{subject}", self._set_level),
            ]
        )
        return app

    async def _subjects(self, _: web.Request) -> web.Response:
        return web.json_response(sorted(self._versions))

    async def _look_up(self, request: web.Request) -> web.Response:
        subject, schema = await self._asked(request)
        versions = self._versions.get(subject, [])
        if schema not in versions:
            code = 40403 if versions else 40401
            return web.json_response({"error_code": code, "message": "Not found"}, status=404)
        return web.json_response(self._shown(subject, versions.index(schema)))

    async def _latest(self, request: web.Request) -> web.Response:
        subject = request.match_info["subject"]
        if subject not in self._versions:
            return web.json_response({"error_code": 40401, "message": "Not found"}, status=404)
        return web.json_response(self._shown(subject, -1))

    async def _register(self, request: web.Request) -> web.Response:
        subject, schema = await self._asked(request)
        versions = self._versions.setdefault(subject, [])
        if schema not in versions:
            if not self._compatible(subject, schema):
                return web.json_response({"error_code": 409, "message": "Incompatible"}, status=409)
            versions.append(schema)
            if schema not in self._ids:
                self._ids.append(schema)
        return web.json_response({"id": self._ids.index(schema) + 1})

    async def _fits(self, request: web.Request) -> web.Response:
        return web.json_response({"is_compatible": self._compatible(*await self._asked(request))})

    async def _level(self, request: web.Request) -> web.Response:
        level = self._levels.get(request.match_info["subject"])
        if level is None:
            return web.json_response({"error_code": 40408, "message": "Not found"}, status=404)
        return web.json_response({"compatibilityLevel": level})

    async def _set_level(self, request: web.Request) -> web.Response:
        level = (await request.json())["compatibility"]
        self._levels[request.match_info["subject"]] = level
        return web.json_response({"compatibility": level})

    async def _asked(self, request: web.Request) -> tuple[str, str]:
        body = await request.json()
        assert body["schemaType"] == "JSON"
        return request.match_info["subject"], body["schema"]

    def _compatible(self, subject: str, schema: str) -> bool:
        versions = self._versions.get(subject, [])
        return not versions or json.loads(versions[-1]).get("type") in (
            None,
            json.loads(schema).get("type"),
        )

    def _shown(self, subject: str, at: int) -> dict[str, Any]:
        versions = self._versions[subject]
        schema = versions[at]
        return {
            "subject": subject,
            "id": self._ids.index(schema) + 1,
            "version": versions.index(schema) + 1,
            "schema": schema,
            "schemaType": "JSON",
        }


@asynccontextmanager
async def memory_registry(port: int) -> AsyncIterator[str]:
    """Its address."""
    runner = web.AppRunner(MemoryRegistry().app())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def karapace(bootstrap: str, topic: str, port: int, log: Path) -> AsyncIterator[str]:
    """The address of a Karapace that keeps its schemas in `topic`."""
    settings = {
        "BOOTSTRAP_URI": bootstrap,
        "TOPIC_NAME": topic,
        "GROUP_ID": topic,
        "HOST": "127.0.0.1",
        "PORT": f"{port}",
        "ADVERTISED_HOSTNAME": "127.0.0.1",
        "LOG_LEVEL": "WARNING",
    }
    environment = {f"KARAPACE_{name}": value for name, value in settings.items()}
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *(KARAPACE, "-m", "karapace"), env=environment, stdout=output, stderr=output
        )
    try:
        async with asyncio.timeout(patience(60)), ClientSession() as session:
            while True:
                assert process.returncode is None, f"Karapace ended; it has said why in {log}"
                with suppress(ClientError, ValueError):
                    async with session.get(f"{url}/master_available") as response:
                        if (await response.json()).get("master_available"):
                            break
                await asyncio.sleep(0.2)
        yield url
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
