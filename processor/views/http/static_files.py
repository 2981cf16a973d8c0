"""Serve the page at `/` and its files; nothing else may be loaded or run."""

import hashlib
from pathlib import Path
from typing import Final

from aiohttp import web

from processor.telemetry.http.problem import ProblemError

HOME: Final = Path(__file__).parent / "static"
TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text cannot be made into markup or code, not even by a mistake of ours.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Asked for each time, and answered by 304: an upgrade is seen at once.
    "Cache-Control": "no-cache",
}


def page_routes() -> list[web.RouteDef]:
    """Routes for the page, at `/` and under `/static/`; files are read now and held in memory."""
    files = {path.name: path.read_bytes() for path in sorted(HOME.iterdir())}
    tags = {name: hashlib.blake2b(body, digest_size=12).hexdigest() for name, body in files.items()}

    def respond(request: web.Request, name: str) -> web.Response:
        body = files.get(name)
        if body is None:
            return ProblemError("not_found", "There is no such file.", headers=HEADERS).response()
        tag = f'"{tags[name]}"'
        headers = {**HEADERS, "ETag": tag}
        if request.headers.get("If-None-Match") == tag:
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=body, content_type=TYPES[Path(name).suffix], charset="utf-8", headers=headers
        )

    async def page(request: web.Request) -> web.Response:
        return respond(request, "index.html")

    async def static(request: web.Request) -> web.Response:
        return respond(request, request.match_info["name"])

    return [web.get("/", page), web.get("/static/{name}", static)]
