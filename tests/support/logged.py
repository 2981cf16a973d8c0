"""What was logged in a test, without what a test before it has left to the collector of garbage."""

import logging

import pytest

COLLECTED = ("Unclosed ", "Task was destroyed but it is pending", "never retrieved")
"""How asyncio and aiohttp speak of an object that is collected: in whatever test that is."""


def logged(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """All other records so far, by whomever."""

    def is_of_this_test(record: logging.LogRecord) -> bool:
        first = record.getMessage().partition("\n")[0]
        return not any(words in first for words in COLLECTED)

    return list(filter(is_of_this_test, caplog.records))
