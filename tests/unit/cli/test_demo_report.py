"""The demo says at once what it does, then a line for each stage; --verbose shows every event."""

import re
from typing import Any

import pytest
from rich.console import Console

from processor.cli.demo.command import ABOUT
from processor.cli.demo.report import DemoReport

EVENT: dict[str, Any] = {
    "at": "2026-11-22T21:02:08.123Z",
    "flow_id": "6f1f3a52-0000-4000-8000-000000000001",
    "kind": "created",
    "status": "created",
    "revision": 0,
    "actor": "session:first",
}


def printed(*, verbose: bool, is_terminal: bool) -> str:
    out = Console(width=80, color_system=None, force_terminal=is_terminal, legacy_windows=False)
    with out.capture() as captured:
        report = DemoReport(out, verbose=verbose)
        with report.stage("Starting Apache Kafka") as done:
            report.progress("fetching Apache Kafka: 1 of 46 jars, 0.0 of 45.0 MB")
            report.progress("fetching Apache Kafka: 46 of 46 jars, done")
            report.event(EVENT)
            done += ["Kafka answers", "with its topics"]
        report.only_verbose("details")
    return captured.get()


def test_what_it_does_fits_into_lines_of_80_columns() -> None:
    assert all(len(line) <= 80 for line in ABOUT)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_stage_is_a_line_with_its_time_and_events_are_not_kept(is_terminal: bool) -> None:
    text = printed(verbose=False, is_terminal=is_terminal)
    assert re.search(r"✓ Kafka answers  \d+\.\d s", text)
    assert text.rstrip().endswith("  with its topics")
    assert "details" not in text
    if not is_terminal:
        assert text.startswith("Starting Apache Kafka ...\n")
        assert "46 of 46 jars, done" in text
        assert "1 of 46 jars, 0.0" not in text
        assert "6f1f3a52" not in text


def test_verbose_prints_each_event_and_all_details() -> None:
    text = printed(verbose=True, is_terminal=True)
    assert "21:02:08 6f1f3a52 created" in text
    assert "r0  session:first" in text
    assert "details" in text
