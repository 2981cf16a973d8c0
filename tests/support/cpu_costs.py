"""CPU seconds of each test, those of its processes and of the brokers that work for it among them.

    pytest -p tests.support.cpu_costs tests/faults

They say on a busy machine, too, what a test costs. What a fixture starts is counted with the first
test that needs it.
"""

import os
from collections.abc import Generator
from contextlib import suppress

import psutil
import pytest

SHOWN = 25
costs: dict[str, float] = {}


def cpu_s() -> float:
    """Of this process, of what it has awaited, and of all that still runs below it."""
    own = os.times()
    total = own.user + own.system + own.children_user + own.children_system
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            spent = child.cpu_times()
            total += spent.user + spent.system + spent.children_user + spent.children_system
    return total


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    before = cpu_s()
    result = yield
    costs[item.nodeid] = cpu_s() - before
    return result


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    files: dict[str, float] = {}
    for test, spent in costs.items():
        file = test.partition("::")[0]
        files[file] = files.get(file, 0.0) + spent
    terminalreporter.section(f"{sum(costs.values()):.1f} s of CPU")
    for counted in (files, costs):
        for name, spent in sorted(counted.items(), key=lambda row: -row[1])[:SHOWN]:
            terminalreporter.write_line(f"{spent:8.2f} {name}")
