"""Log to standard error: for people on a terminal, as JSON lines anywhere else."""

import logging
import sys
from collections.abc import MutableMapping
from enum import Enum
from io import StringIO
from typing import Any, TextIO

import structlog
from pydantic import SecretStr
from structlog.typing import ExcInfo, Processor

from processor.settings import Settings
from processor.telemetry.log_repetition import RepetitionFilter
from processor.telemetry.terminal import visible, visible_json

HIDDEN = "**********"
_SECRET_WORDS = ("password", "secret", "token", "passphrase")

# What libraries say of their own accord: reconnects and retries are their daily life.
_QUIET = {"aiokafka": logging.ERROR, "asyncio": logging.WARNING, "aiohttp.access": logging.ERROR}
_DAILY = {
    "aiokafka.consumer.group_coordinator": "Group Coordinator Request failed",
    "asyncio": "Unclosed AIOKafkaConnection",
}
"""Errors that are none: a coordinator that is not there yet is asked again at once; a connection
whose client was cancelled amid its first request has just closed itself."""


def configure_logs(settings: Settings, stream: TextIO | None = None) -> None:
    """Send our own logs and those of the libraries to `stream` (standard error if None).

    Replaces what an earlier call set up. Secrets are never written: neither what is held as one,
    nor anything under a name that speaks of one.
    """
    stream = sys.stderr if stream is None else stream
    human = settings.log_format == "console" or (settings.log_format == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        hide_secrets,
        write_out_enums,
    ]
    last: list[Processor] = (
        [
            visible_values,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                timestamp_key="at",
                exception_formatter=_traceback,
            ),
        ]
        if human
        else [
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(ensure_ascii=False, default=str),
            *([_visible_line] if stream.isatty() else []),
        ]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.PositionalArgumentsFormatter()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    handler.addFilter(RepetitionFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    root.setLevel(level)
    for name, quiet in _QUIET.items():
        logging.getLogger(name).setLevel(max(level, quiet))
    for name, beginning in _DAILY.items():
        logging.getLogger(name).addFilter(_Unless(beginning))


class _Unless(logging.Filter):
    """Lets everything through but what begins like this."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self._beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith(self._beginning)

    def __eq__(self, other: object) -> bool:
        # Set up twice, a logger keeps one of them.
        return isinstance(other, _Unless) and other._beginning == self._beginning

    def __hash__(self) -> int:
        return hash(self._beginning)


def visible_values(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Write out in every text what a terminal would obey; other values are shown by `repr`."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = visible(value)
    return event


def _visible_line(_logger: object, _method: str, line: Any) -> Any:
    return visible_json(line)


def _traceback(stream: TextIO, error: ExcInfo) -> None:
    # The renderer's own shows local variables: payloads, and what connects us.
    shown = StringIO()
    structlog.dev.plain_traceback(shown, error)
    stream.write(visible(shown.getvalue(), keep="\n\t"))


def hide_secrets(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Put stars in the place of every value that is a secret or is named like one."""
    for name, value in event.items():
        event[name] = _hidden(name, value)
    return event


def write_out_enums(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Put the value of an enum's member in its place: a renderer that shows texts with spaces by
    `repr` would show the member's name and class."""
    for name, value in event.items():
        event[name] = _written_out(value)
    return event


def _written_out(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {_written_out(inner): _written_out(held) for inner, held in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_written_out, value))
    return value


def _hidden(name: object, value: Any) -> Any:
    named_so = isinstance(name, str) and any(word in name.lower() for word in _SECRET_WORDS)
    if isinstance(value, SecretStr) or (named_so and isinstance(value, str | bytes)):
        return HIDDEN
    if isinstance(value, dict):
        return {inner: _hidden(inner, held) for inner, held in value.items()}
    return value
