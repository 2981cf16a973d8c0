"""The pytest plugin: fixtures for tests of services. Loading it imports nothing but pytest."""

import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, NoReturn

import pytest

if TYPE_CHECKING:
    from processor.testing.broker import TaskflowBroker
    from processor.testing.fake import TaskflowFake

BROKERS = "TASKFLOW_BOOTSTRAP_SERVERS"


class _AsCompiled(MetaPathFinder):
    """Finds taskflow's modules before pytest's own finder, which would rewrite the asserts of all
    of a plugin's distribution: a second of CPU for modules that no test looks into, at each run
    where no bytecode is written."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        own = fullname.startswith("processor.")
        return PathFinder.find_spec(fullname, path, target) if own else None


sys.meta_path.insert(0, _AsCompiled())


def _fail_without(extras: str, error: ModuleNotFoundError) -> NoReturn:
    from processor.errors import install_line

    pytest.fail(f"{error.name} is not installed: {install_line(extras)}", pytrace=False)


@pytest.fixture
def taskflow_fake(monkeypatch: pytest.MonkeyPatch) -> Iterator["TaskflowFake"]:
    """The real engine on Kafka in memory, for one test; its time can be moved.

    Clients that take their settings from the environment are connected to it, and all others that
    are given `taskflow_fake.settings`.
    """
    try:
        from processor.testing.fake import TaskflowFake
    except ModuleNotFoundError as error:
        _fail_without("testing", error)
    from processor.settings import load_settings

    fake = TaskflowFake(load_settings())
    monkeypatch.setenv(BROKERS, fake.settings.bootstrap_servers)
    with fake.connected():
        yield fake


@pytest.fixture(scope="session")
def taskflow_broker() -> Iterator["TaskflowBroker"]:
    """A real Kafka with its topics and a worker, for the whole session.

    Clients are connected to it that are given `taskflow_broker.settings`. Tests share it: give
    each flow an id of its own.
    """
    try:
        from processor.testing.broker import running_broker
    except ModuleNotFoundError as error:
        _fail_without("testing,broker", error)
    with running_broker() as broker:
        yield broker
