"""Logs are JSON lines for machines, sentences for people, and hold no secrets."""

import asyncio
import gc
import io
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import closing
from enum import StrEnum

import pytest
import structlog
import uvloop
from pydantic import SecretStr

from processor.settings import Settings
from processor.telemetry.logging import configure_logs


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    configuration = structlog.get_config()
    gc.disable()  # asyncio would log here what tests before have left to the collector
    yield
    gc.enable()
    root.setLevel(level)
    root.handlers[:] = handlers
    logging.getLogger("aiokafka").setLevel(logging.NOTSET)
    structlog.configure(**configuration)


def logged(settings: Settings, *calls: tuple[str, dict[str, object]]) -> list[str]:
    stream = io.StringIO()
    configure_logs(settings, stream)
    log = structlog.stdlib.get_logger("taskflow.test")
    for event, fields in calls:
        log.info(event, **fields)
    return stream.getvalue().splitlines()


def test_a_pipe_gets_json_lines() -> None:
    (line,) = logged(Settings(), ("taken over", {"partition": 3}))

    entry = json.loads(line)
    assert entry["message"] == "taken over"
    assert entry["partition"] == 3
    assert (entry["level"], entry["logger"]) == ("info", "taskflow.test")
    assert entry["at"].endswith("Z")


def test_people_can_ask_for_sentences() -> None:
    (line,) = logged(Settings(log_format="console"), ("taken over", {"partition": 3}))
    assert "taken over" in line
    assert "partition=3" in line
    assert not line.startswith("{")


class Outcome(StrEnum):
    RESTORED = "restored"


def test_an_enum_is_written_as_its_value_wherever_it_stands() -> None:
    fields: dict[str, object] = {
        "table": Outcome.RESTORED,
        "several": [Outcome.RESTORED],
        "by": {Outcome.RESTORED: (Outcome.RESTORED,)},
    }

    (people,) = logged(Settings(log_format="console"), ("taken over", fields))
    (line,) = logged(Settings(), ("taken over", fields))

    assert "Outcome" not in people
    assert "table=restored" in people
    entry = json.loads(line)
    assert entry["table"] == "restored"
    assert (entry["several"], entry["by"]) == (["restored"], {"restored": ["restored"]})


def test_the_level_is_respected() -> None:
    assert logged(Settings(log_level="warning"), ("taken over", {})) == []


def test_no_secret_is_written() -> None:
    lines = logged(
        Settings(),
        ("connecting", {"sasl_plain_password": "hunter2", "held": SecretStr("hunter3")}),
        ("connecting", {"options": {"ssl_password": "hunter4", "client_id": "me"}}),
    )
    assert "hunter" not in "".join(lines)
    assert "me" in lines[1]


def test_libraries_are_heard_of_errors_alone() -> None:
    stream = io.StringIO()
    configure_logs(Settings(), stream)

    logging.getLogger("aiokafka.conn").warning("retrying %s", "as every day")
    logging.getLogger("aiokafka.conn").error("lost %s", "a broker")

    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "lost a broker"


def test_an_exception_is_one_line() -> None:
    stream = io.StringIO()
    configure_logs(Settings(), stream)
    try:
        raise ValueError("what")
    except ValueError:
        structlog.stdlib.get_logger().exception("failed")

    (line,) = stream.getvalue().splitlines()
    assert "ValueError: what" in json.loads(line)["exception"]


def test_a_traceback_on_a_terminal_shows_no_values() -> None:
    stream = io.StringIO()
    configure_logs(Settings(log_format="console"), stream)

    payload = "a-secret-payload"
    try:
        raise ValueError(len(payload))
    except ValueError:
        structlog.get_logger().exception("it failed")

    assert "ValueError" in stream.getvalue()
    assert "a-secret-payload" not in stream.getvalue().replace('payload = "a-secret-payload"', "")


def test_a_coordinator_that_is_not_there_yet_is_no_news() -> None:
    stream = io.StringIO()
    configure_logs(Settings(), stream)
    configure_logs(Settings(), stream)

    logger = logging.getLogger("aiokafka.consumer.group_coordinator")
    logger.error("Group Coordinator Request failed: %s", "not yet")
    logger.error("User provided listener failed")

    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["message"] == "User provided listener failed"


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_has_closed_itself_is_no_news(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """What is cancelled amid a client's first request, as by Ctrl-C, leaves one."""
    stream = io.StringIO()
    configure_logs(Settings(), stream)

    with closing(loop()) as made:
        for message in ("Unclosed AIOKafkaConnection", "Task exception was never retrieved"):
            made.call_exception_handler({"message": message, "conn": object()})

    assert "Unclosed" not in stream.getvalue()
    assert "Task exception was never retrieved" in stream.getvalue()
