"""What all tests share: one broker for the session, names of their own, repeatable examples."""

import gc
import os
import secrets
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from processor.embedded import broker as embedded
from processor.embedded.broker import EmbeddedBroker, embedded_broker, free_port
from tests.support import machine
from tests.support.own_loop import on_a_loop_of_its_own

# The same examples on every machine and no deadline: a failure is a bug, not a slow neighbour.
hypothesis.settings.register_profile("taskflow", derandomize=True, deadline=None, max_examples=30)
# What `make soak` draws for each property that does not say how many it needs.
hypothesis.settings.register_profile("soak", deadline=None, max_examples=300)
hypothesis.settings.load_profile("taskflow")

# Dozens of brokers start here, and none lives long enough to earn back what optimizing costs it.
os.environ["TASKFLOW_BROKER_JIT"] = "quick"
# Made by `make test` where it is missing; without it, each start takes three times the CPU seconds.
os.environ["TASKFLOW_BROKER_AOT"] = str(Path(sys.prefix) / "kafka.aot")


TESTS = Path(__file__).parent
MANY_TIMES = {TESTS / "simulation", TESTS / "property"}
"""They run the same lines thousands of times, which all have tests of their own."""
QUICK = {TESTS / "unit", TESTS / "property"}
"""Their tests take milliseconds; those of the other folders seconds, most of them to wait."""
STARTED_ONCE = ("secured", "postgres", "browser")
"""Fixtures of the session that one process of pytest-xdist is to have."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=3, help="of a view worker, in its longest test")
    parser.addoption(
        "--broker-kills", type=int, default=1, help="of the embedded broker under `taskflow up`"
    )
    parser.addoption(
        "--all-rights", action="store_true", help="of every role, taken away in turn; 2 minutes"
    )
    parser.addoption(
        "--foreign-records",
        type=int,
        default=200,
        help="as any sender may write them, drawn for every reader of records",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Let the deadlines of all tests grow with the slowness of the machine, and give each process
    of pytest-xdist free ports of its own: another one does not listen there meanwhile.

    This process measures the slowness before the run takes time from it; those of pytest-xdist
    inherit the figure.
    """
    own, processes = process_of(config)
    embedded.FREE_PORTS = embedded.FREE_PORTS[own::processes]
    os.environ[machine.VARIABLE] = f"{machine.slowness():.2f}"
    config.option.timeout = machine.patience(
        float(config.getoption("timeout") or config.getini("timeout"))
    )


def pytest_report_header() -> str:
    return f"deadlines are those of a quiet machine, times {machine.slowness():.2f}"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """All modules and tests stay: Python's collector looks at them neither meanwhile nor later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Have each process of pytest-xdist begin with other files, and find compiled what another has
    come by: to compile all takes as long as to collect it."""
    report = yield
    own, processes = process_of(collector.config)
    if isinstance(collector, pytest.Dir) and report.passed:
        first = len(report.result) * own // processes
        report.result = report.result[first:] + report.result[:first]
    return report


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Write out what UTF-8 cannot hold, as in a log: pytest-xdist would end the whole run."""
    report = yield
    return encodable(report)


def encodable(value: Any) -> Any:
    """The same with its texts as UTF-8 can hold them."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode()
        case dict():
            return {name: encodable(one) for name, one in value.items()}
        case list() | tuple():
            return type(value)(map(encodable, value))
    return value


def process_of(config: pytest.Config) -> tuple[int, int]:
    """Which of how many processes of pytest-xdist this one is."""
    given = getattr(config, "workerinput", {"workerid": "gw0", "workercount": 1})
    return int(given["workerid"].removeprefix("gw")) % given["workercount"], given["workercount"]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("timeout")
        if marker is not None:
            item.add_marker(pytest.mark.timeout(machine.patience(marker.args[0])), append=False)
        if MANY_TIMES.intersection(item.path.parents):
            item.add_marker(pytest.mark.no_cover)
    _, processes = process_of(config)
    if processes > 1:
        items[:] = dealt(sorted(items, key=lambda item: item.path), processes)


def dealt(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """The tests in the order in which no process of pytest-xdist is left with long ones at the end.

    It gives each process one stretch of them, and an idle one takes from the ends of others: so
    each stretch begins with files whose tests take seconds, and ends with tests of milliseconds.
    """
    files: dict[Path | str, list[pytest.Item]] = {}
    quick = []
    for item in items:
        if QUICK.intersection(item.path.parents):
            quick.append(item)
        else:
            # Files share the broker with rights, the database and Chromium: each is to be started
            # once.
            names = getattr(item, "fixturenames", ())
            shared = next((name for name in STARTED_ONCE if name in names), None)
            files.setdefault(shared or item.path, []).append(item)
    # Each of what is shared goes to another process.
    long = [files[one] for one in sorted(files, key=lambda one: isinstance(one, Path))]
    stretches = [[item for of in long[n::processes] for item in of] for n in range(processes)]
    ends = [len(items) * (n + 1) // processes for n in range(processes)]
    found: list[pytest.Item] = []
    for stretch, end in zip(stretches, ends, strict=True):
        found += stretch
        count = max(0, end - len(found))
        found += quick[:count]
        del quick[:count]
    return found + quick


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often the process that is tested is to be killed."""
    return int(request.config.getoption("--kills"))


@pytest.fixture
def foreign_records_count(request: pytest.FixtureRequest) -> int:
    """How many records are to be drawn, at least."""
    return int(request.config.getoption("--foreign-records"))


@pytest.fixture(scope="session")
def unused_tcp_port_factory() -> Callable[[], int]:
    """Ports for what a test starts in a moment. pytest-asyncio's own lie among those that systems
    hand out for outgoing connections: until then, any client may get one."""
    return free_port


@pytest.fixture
def unused_tcp_port() -> int:
    return free_port()


@pytest.fixture(scope="session")
def broker() -> Iterator[EmbeddedBroker]:
    """A real Kafka for the whole session; a test that stops or kills it starts it again.

    Its methods may be awaited from any loop.
    """
    with on_a_loop_of_its_own(embedded_broker()) as running:
        yield running


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The DSN of a PostgreSQL for the whole session; each test has a schema of its own there.

    Tests that want it are marked with `needs_postgres` of tests/support/postgres.py.
    """
    from tests.support.postgres import running_postgres

    with running_postgres() as dsn:
        yield dsn


@pytest.fixture
def prefix() -> str:
    """A topic prefix that no other test has."""
    return f"t{secrets.token_hex(4)}"
