"""Problem details (RFC 9457) for refusals and failures."""

import logging
from collections.abc import Mapping
from typing import ClassVar

from aiohttp import web
from pydantic import ValidationError

from processor.adapters.kafka.errors import BrokerUnreachable, TopicsWrong
from processor.client.errors import CommandNotSent, InvalidCommand, OutcomeTimeout
from processor.client.signals.signal_client import SignalNotAcknowledged
from processor.client.signals.signal_reader import InvalidSignal
from processor.telemetry.http.problem import ProblemError
from processor.telemetry.http.server import problem_of_http
from processor.views.model.reader_pool import Overloaded, TooExpensive
from processor.views.query.queries import BadQuery, RevisionUnknown

_log = logging.getLogger(__name__)


class ViewProblemError(ProblemError):
    """A refusal or failure of the read side's API."""

    TITLES: ClassVar[Mapping[str, tuple[int, str]]] = {
        **ProblemError.TITLES,
        "invalid_command": (400, "The processor would not take the command"),
        "revision_unknown": (404, "The flow has no such revision"),
        "not_sent": (502, "The command was not sent"),
        "not_yet": (503, "An event that must be in the answer is not projected yet"),
        "too_expensive": (503, "The question takes too long; ask a narrower one"),
        "unavailable": (503, "No view worker can answer this now"),
        "not_acknowledged": (504, "Kafka did not acknowledge in time; it may be sent"),
        "no_outcome": (504, "No outcome came in time; the command may still be applied"),
    }


def invalid(error: ValidationError) -> ProblemError:
    errors = [
        {"field": str(one["loc"][0]) if one["loc"] else "", "problem": one["msg"]}
        for one in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return ViewProblemError("bad_request", "Some parameters cannot be understood.", errors=errors)


def problem_of(error: Exception) -> ProblemError:
    """What an exception means to the caller."""
    match error:
        case ProblemError():
            return error
        case ValidationError():
            return invalid(error)
        case BadQuery():
            return ViewProblemError(
                "bad_request", f"{error}.", errors=[{"field": error.field, "problem": str(error)}]
            )
        case RevisionUnknown():
            return ViewProblemError("revision_unknown", str(error))
        case TooExpensive():
            return ViewProblemError("too_expensive", str(error))
        case InvalidCommand():
            return ViewProblemError("invalid_command", str(error), errors=error.errors)
        case InvalidSignal():
            return ViewProblemError("bad_request", str(error))
        case TopicsWrong():
            return ViewProblemError("unavailable", str(error))
        case SignalNotAcknowledged():
            return ViewProblemError("not_acknowledged", str(error))
        case OutcomeTimeout():
            command = {
                **error.command.model_dump(mode="json", exclude_unset=True),
                "kind": error.command.kind,
            }
            return ViewProblemError("no_outcome", str(error), command=command)
        case CommandNotSent():
            return ViewProblemError("not_sent", str(error))
        case BrokerUnreachable():
            return ViewProblemError("unavailable", str(error))
        case Overloaded():
            return ViewProblemError("busy", str(error))
        case web.HTTPException():
            return problem_of_http(error)
    _log.exception("a request failed", exc_info=error)
    return ViewProblemError("internal_error", "The log of the view worker says more.")
