"""Problem documents (RFC 9457): how an HTTP server of ours refuses a request."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar, Final

import orjson
from aiohttp import web

TYPE: Final = "urn:taskflow:problem:"
MEDIA_TYPE: Final = "application/problem+json"
ERRORS_MAX: Final = 20
HEADERS: Final[Mapping[str, str]] = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of each response that has none of its own: nothing may be run, framed, guessed or kept."""


class ProblemError(Exception):
    """Ends a request with a problem document. `TITLES`: code → status and title."""

    TITLES: ClassVar[Mapping[str, tuple[int, str]]] = {
        "bad_request": (400, "The request cannot be understood"),
        "unauthorized": (401, "The token is missing or wrong"),
        "forbidden": (403, "The request is not allowed"),
        "not_found": (404, "There is nothing at this path"),
        "method_not_allowed": (405, "The path does not support this method"),
        "request_timeout": (408, "The request took too long to arrive"),
        "too_large": (413, "The body is too large"),
        "uri_too_long": (414, "The address is too long"),
        "unsupported_media_type": (415, "The body has the wrong media type or encoding"),
        "expectation_failed": (417, "The expectation cannot be met"),
        "misdirected": (421, "This server does not answer for this host"),
        "headers_too_large": (431, "The headers are too large"),
        "internal_error": (500, "The server failed"),
        "busy": (503, "The server has too much to do"),
    }

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[dict[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **extension: Any,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail
        self.errors = list(errors)[:ERRORS_MAX]
        self._headers = headers or {}
        self._extension = extension

    @property
    def status(self) -> int:
        return self.TITLES[self.code][0]

    def document(self) -> dict[str, Any]:
        status, title = self.TITLES[self.code]
        return {
            "type": f"{TYPE}{self.code}",
            "title": title,
            "status": status,
            "code": self.code,
            "detail": self.detail,
            "errors": self.errors,
            **self._extension,
        }

    def headers(self) -> dict[str, str]:
        headers = {**HEADERS, **self._headers}
        if self.status == 503:
            headers["Retry-After"] = "1"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self) -> web.Response:
        return web.Response(
            body=orjson.dumps(self.document()),
            status=self.status,
            content_type=MEDIA_TYPE,
            headers=self.headers(),
        )

    def closing_bytes(self) -> bytes:
        """The whole response as it goes over the wire, after which the connection is closed: for a
        client whose request was never complete."""
        body = orjson.dumps(self.document())
        headers = {
            "Content-Type": MEDIA_TYPE,
            "Content-Length": str(len(body)),
            "Connection": "close",
            **self.headers(),
        }
        head = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return head.encode() + b"\r\n" + body
