"""Problem details (RFC 9457) for refusals and failures."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import orjson
from aiohttp import web
from pydantic import ValidationError

from processor.adapters.kafka.errors import BrokerUnreachable
from processor.client.errors import CommandNotSent, InvalidCommand, OutcomeTimeout
from processor.views.database import TooExpensive
from processor.views.queries import BadQuery, RevisionUnknown

TYPE: Final = "urn:taskflow:problem:"
MEDIA_TYPE: Final = "application/problem+json"
ERRORS_MAX: Final = 20
_TITLES: Final = {
    "bad_request": (400, "A parameter cannot be understood"),
    "invalid_command": (400, "The processor would not take the command"),
    "unauthorized": (401, "The token is missing or wrong"),
    "forbidden": (403, "This is switched off"),
    "not_found": (404, "There is no such thing"),
    "revision_unknown": (404, "The flow has no such revision"),
    "method_not_allowed": (405, "This method does not go with this path"),
    "too_large": (413, "The body is too large"),
    "internal_error": (500, "We have a bug"),
    "not_sent": (502, "The command was not sent"),
    "not_yet": (503, "An event that must be in the answer is not projected yet"),
    "too_expensive": (503, "The question takes too long; ask a narrower one"),
    "unavailable": (503, "Nobody can answer this now"),
    "no_outcome": (504, "No outcome came in time; the command may still be applied"),
}
_log = logging.getLogger(__name__)


class ProblemError(Exception):
    """Ends a request with a problem document."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[dict[str, str]] = (),
        command: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code, self.detail = code, detail
        self.errors, self.command = list(errors)[:ERRORS_MAX], command

    @property
    def status(self) -> int:
        return _TITLES[self.code][0]

    def document(self) -> dict[str, Any]:
        status, title = _TITLES[self.code]
        document = {
            "type": f"{TYPE}{self.code}",
            "title": title,
            "status": status,
            "code": self.code,
            "detail": self.detail,
            "errors": self.errors,
        }
        return document if self.command is None else {**document, "command": self.command}

    def response(self) -> web.Response:
        headers = {"Retry-After": "1"} if self.status == 503 else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return web.Response(
            body=orjson.dumps(self.document()),
            status=self.status,
            content_type=MEDIA_TYPE,
            headers=headers,
        )


def invalid(error: ValidationError) -> ProblemError:
    errors = [
        {"field": str(one["loc"][0]) if one["loc"] else "", "problem": one["msg"]}
        for one in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return ProblemError("bad_request", "Some parameters cannot be understood.", errors=errors)


def problem_of(error: Exception) -> ProblemError:
    """What an exception means to the caller."""
    match error:
        case ProblemError():
            return error
        case ValidationError():
            return invalid(error)
        case BadQuery():
            return ProblemError(
                "bad_request", f"{error}.", errors=[{"field": error.field, "problem": str(error)}]
            )
        case RevisionUnknown():
            return ProblemError("revision_unknown", str(error))
        case TooExpensive():
            return ProblemError("too_expensive", str(error))
        case InvalidCommand():
            return ProblemError("invalid_command", str(error), errors=error.errors)
        case OutcomeTimeout():
            command = {
                **error.command.model_dump(mode="json", exclude_unset=True),
                "kind": error.command.kind,
            }
            return ProblemError("no_outcome", str(error), command=command)
        case CommandNotSent():
            return ProblemError("not_sent", str(error))
        case BrokerUnreachable():
            return ProblemError("unavailable", str(error))
        case web.HTTPNotFound():
            return ProblemError("not_found", "There is nothing at this path.")
        case web.HTTPMethodNotAllowed():
            return ProblemError("method_not_allowed", "Another method may do.")
        case web.HTTPRequestEntityTooLarge():
            return ProblemError("too_large", "A command has at most 512 KiB.")
        case web.HTTPException():
            return ProblemError("bad_request", error.reason)
    _log.exception("a request failed", exc_info=error)
    return ProblemError("internal_error", "The log of the view worker says more.")


@web.middleware
async def say_problems(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return problem_of(error).response()
    except ConnectionError:
        raise
    except Exception as error:
        return problem_of(error).response()
