"""Imports point one way: each room knows only those that come before it."""

import ast
import importlib
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import processor
from processor.errors import TaskflowError

ROOT = Path(__file__).parents[2]

ROOMS = (
    *("schemas", "errors", "settings", "domain"),
    *("rows", "codec", "placement"),
    *("batch", "burial", "handler", "cache"),
    *("ports", "standing", "fold", "snapshots", "recovery", "still", "rebuilding", "repair"),
    *("leftover", "loading", "metrics", "tracing"),
    *("timers", "retention", "errands", "outbound", "partition", "standby", "worker"),
    *(
        "logs",
        "http",
        "interpreter",
        "stopping",
        "adapters",
        "client",
        "faults",
        "bootstrap",
        "processes",
    ),
    *("embedded", "broker", "views", "ops", "torture", "program", "cli", "__main__"),
)
"""From the innermost to the outermost. A new module gets its place here, and a line in
processor/README.md."""

ADAPTERS_KNOW = {
    *("schemas", "domain", "errors", "settings", "rows", "codec", "batch", "ports", "adapters"),
}
KNOW_ADAPTERS = {
    *(
        "adapters",
        "client",
        "faults",
        "bootstrap",
        "processes",
        "torture",
        "views",
        "program",
        "cli",
    ),
}
VERIFIES = {
    *("answers", "contract", "folding", "history", "letters", "levels"),
    *("ports", "reading", "report", "scratch", "verify"),
}
"""The modules of `ops` that verify: they must share no rule with what they verify. Its other tools
replay, explain and repair, and use the processor's own."""
VERIFIERS_KNOW = {"schemas", "errors", "ops"}
KNOW_KAFKA = {"adapters", "views", "placement", "client", "broker", "torture", "program"}
SCRATCH = {
    ROOT / "processor" / "ops" / "scratch.py",
    ROOT / "processor" / "ops" / "replay" / "store.py",
}
"""Temporary files of their own, and no tables."""
VIEW = ROOT / "processor" / "views"
"""An application of its own, on Faust: it has its own adapters."""
NOT_IN_PURE_VIEWS = {
    "asyncio",
    "time",
    "logging",
    "os",
    "sqlite3",
    "aiosqlite",
    "aiokafka",
    "faust",
}
NOT_IN_THE_DOMAIN = {
    *("asyncio", "threading", "time", "random", "logging", "structlog"),
    *("os", "pathlib", "socket", "sqlite3", "aiosqlite", "aiokafka"),
}


def files(*packages: str) -> list[Path]:
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            # `from processor.cli import flow` may name a module or what one holds.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str | None:
    """The room of a module's full name; None if it is not ours."""
    package, *inner = module.split(".")
    if package == "schemas":
        return "schemas"
    return inner[0] if package == "processor" and inner else None


def own_room(path: Path) -> str | None:
    return room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))


def known(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    return {room for module in imported(path) if (room := room_of(module)) is not None}


OURS = [path for path in files("schemas", "processor") if own_room(path) != "__init__"]


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_knows_only_those_before_it(path: Path):
    room = own_room(path)
    assert room in ROOMS, f"{room} has no place among the rooms yet"
    before = set(ROOMS[: ROOMS.index(room) + 1])
    assert known(path) <= before


def test_adapters_import_inward_and_only_the_outermost_import_them():
    for path in OURS:
        if own_room(path) == "adapters":
            assert known(path) <= ADAPTERS_KNOW, path
        if "adapters" in known(path):
            assert own_room(path) in KNOW_ADAPTERS, path


def test_what_verifies_knows_the_contract_alone():
    for name in VERIFIES:
        path = ROOT / "processor" / "ops" / f"{name}.py"
        assert known(path) <= VERIFIERS_KNOW, path
        within = {m.split(".")[2] for m in imported(path) if m.startswith("processor.ops.")}
        assert within <= VERIFIES, path


def test_the_domain_has_no_clock_no_io_and_no_logs():
    for path in files("processor/domain"):
        assert not {name.split(".")[0] for name in imported(path)} & NOT_IN_THE_DOMAIN, path


def test_clients_of_kafka_and_sqlite_stay_in_their_rooms():
    for path in OURS:
        top = {name.split(".")[0] for name in imported(path)}
        if "aiokafka" in top:
            assert own_room(path) in KNOW_KAFKA, path
        if top & {"sqlite3", "aiosqlite"} and path not in SCRATCH | {VIEW / "database.py"}:
            assert path.parent == ROOT / "processor" / "adapters" / "sqlite", path


def test_what_views_make_of_events_and_answers_is_pure():
    for name in ("projection", "aggregates", "answers", "cursors", "letters"):
        path = VIEW / f"{name}.py"
        assert not {module.split(".")[0] for module in imported(path)} & NOT_IN_PURE_VIEWS, path


def test_the_published_language_needs_pydantic_only():
    for path in files("schemas"):
        top = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names
        generator = {"yaml"} if path.name == "generate.py" else set()
        assert top <= {"schemas", "pydantic"} | generator, path


def test_every_error_stands_in_the_table_of_errors():
    for module in pkgutil.walk_packages(processor.__path__, "processor."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    text = (ROOT / "processor" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.+?) \| (yes|no|says itself|no; `JarUnavailable` yes) \|", text, re.M)
    told = {name: retriable for names, retriable in rows for name in re.findall(r"`(\w+)`", names)}

    for error in subclasses(TaskflowError):
        if error.__module__.startswith(("processor.cli", "processor.embedded", "tests")):
            continue
        assert error.__name__ in told, error
        if told[error.__name__] != "says itself":
            assert told[error.__name__] == ("yes" if error.retriable else "no"), error


def subclasses(error: type[TaskflowError]) -> Iterator[type[TaskflowError]]:
    for inner in error.__subclasses__():
        yield inner
        yield from subclasses(inner)


TOP = {
    *("processor", "schemas", "tests"),
    *("README.md", "CHANGELOG.md", "LICENSE", "Makefile"),
    *("pyproject.toml", "requirements.lock", "docker-compose.yml"),
}
"""What stands at the top of the repository, besides files whose name begins with a dot."""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="only a checkout knows what belongs to it")
def test_nothing_lies_about_at_the_top():
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tops = {path.split("/")[0] for path in listed.split("\0") if path}

    assert {name for name in tops if not name.startswith(".")} == TOP
