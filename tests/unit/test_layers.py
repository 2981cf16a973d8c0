"""Imports point one way: each layer imports only from those before it."""

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
import processor.client
from processor.errors import TaskflowError

ROOT = Path(__file__).parents[2]

LAYERS = tuple(
    frozenset(layer.split())
    for layer in (
        "contract errors runtime",
        "settings domain embedded",
        "engine",
        "recovery adapters telemetry",
        "partition client failpoints",
        "ops",
        "a2a mcp sink outbox worker views",
        "signals",
        "testing",
        "cli",
        "__main__",
    )
)
"""From the innermost to the outermost, as processor/README.md draws them. A folder imports from
itself and from the layers before its own."""
KNOW_ADAPTERS = {
    *("adapters", "client", "failpoints"),
    *("sink", "outbox", "worker", "views", "signals", "testing", "cli"),
}
VERIFIERS_KNOW = {"contract", "errors", "ops"}
"""What verifies must share no rule with what it verifies."""
KNOW_KAFKA = {"adapters", "views", "signals", "engine", "client", "embedded", "testing", "cli"}
KNOW_SQLITE = {
    ROOT / "processor" / "adapters" / "sqlite",
    ROOT / "processor" / "adapters" / "sqlite" / "readonly",
    ROOT / "processor" / "ops" / "verify" / "scratch_store.py",
    ROOT / "processor" / "ops" / "verify" / "steps" / "store.py",
    ROOT / "processor" / "ops" / "replay" / "store.py",
    ROOT / "processor" / "views" / "model" / "database.py",
    ROOT / "processor" / "views" / "model" / "reader_pool.py",
}
"""The table's adapter; temporary files; and the views, which are an application of their own."""
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


def folder_of(module: str) -> str | None:
    """The folder of a module's full name, or its own name in the root; None if it is not ours.

    Failpoints are a layer of their own: a worker loads them, and the rest of `testing` runs whole
    workers and clients.
    """
    package, *inner = module.split(".")
    if inner[:2] == ["testing", "failpoints"]:
        return "failpoints"
    return inner[0] if package == "processor" and inner else None


def own_folder(path: Path) -> str | None:
    return folder_of(".".join(path.relative_to(ROOT).with_suffix("").parts))


def known(path: Path) -> set[str]:
    """The folders that a file imports from."""
    return {folder for module in imported(path) if (folder := folder_of(module)) is not None}


def layer_of(folder: str) -> int:
    return next(rank for rank, layer in enumerate(LAYERS) if folder in layer)


OURS = [path for path in files("processor") if own_folder(path) != "__init__"]


def breaches(folder: str, imports: set[str]) -> set[str]:
    """The folders among `imports` that `folder` may not import from."""
    return {name for name in imports if name != folder and layer_of(name) >= layer_of(folder)}


@pytest.mark.parametrize("path", OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_folder_imports_from_the_layers_before_its_own(path: Path) -> None:
    folder = own_folder(path)
    assert folder is not None
    assert not breaches(folder, known(path))


def test_a_planted_breach_is_found() -> None:
    assert breaches("domain", {"contract", "engine", "domain"}) == {"engine"}
    assert breaches("ops", {"views", "adapters"}) == {"views"}


def test_only_the_outermost_import_adapters() -> None:
    for path in OURS:
        if "adapters" in known(path):
            assert own_folder(path) in KNOW_ADAPTERS, path


def test_what_verifies_knows_the_contract_alone() -> None:
    home = "processor.ops.verify."
    for path in files("processor/ops/verify"):
        assert known(path) <= VERIFIERS_KNOW, path
        ours = {module for module in imported(path) if module.startswith("processor.ops.")}
        assert all(module.startswith(home) for module in ours), path


def test_what_speaks_a_protocol_of_agents_knows_the_public_client_alone() -> None:
    public = {f"processor.client.{name}" for name in processor.client.__all__}
    for path in files("processor/a2a"):
        ours = {module for module in imported(path) if folder_of(module) is not None}
        assert {m for m in ours if folder_of(m) == "client"} <= public, path
        assert known(path) <= {"a2a", "client", "contract", "errors", "runtime", "settings"}, path


def test_the_domain_has_no_clock_no_io_and_no_logs() -> None:
    for path in files("processor/domain"):
        assert not {name.split(".")[0] for name in imported(path)} & NOT_IN_THE_DOMAIN, path


def test_clients_of_kafka_and_sqlite_stay_in_their_rooms() -> None:
    for path in OURS:
        top = {name.split(".")[0] for name in imported(path)}
        if "aiokafka" in top:
            assert own_folder(path) in KNOW_KAFKA, path
        if top & {"sqlite3", "aiosqlite"}:
            assert {path, path.parent} & KNOW_SQLITE, path
        if "asyncpg" in top:
            assert path == ROOT / "processor" / "adapters" / "postgres" / "connection.py"


def test_what_views_make_of_events_and_outcomes_is_pure() -> None:
    pure = (
        *("model/projection", "model/aggregates", "model/dead_letters"),
        *("query/scatter_gather", "http/pagination"),
    )
    for name in pure:
        path = ROOT / "processor" / "views" / f"{name}.py"
        assert not {module.split(".")[0] for module in imported(path)} & NOT_IN_PURE_VIEWS, path


def test_the_published_language_needs_pydantic_only() -> None:
    for path in files("processor/contract"):
        top = {name.split(".")[0] for name in imported(path)} - sys.stdlib_module_names
        generator = {"yaml"} if path.name == "generate.py" else set()
        assert top <= {"processor", "pydantic"} | generator, path
        assert known(path) <= {"contract"}, path


def test_only_what_all_layers_share_stands_in_the_root() -> None:
    names = {path.stem for path in (ROOT / "processor").glob("*.py")}
    assert names == {"__init__", "__main__", "errors", "runtime"}


def test_every_error_stands_in_the_table_of_errors() -> None:
    for module in pkgutil.walk_packages(processor.__path__, "processor."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    text = (ROOT / "processor" / "README.md").read_text("utf-8")
    rows = re.findall(r"^\| (`.+?) \| (yes|no|says itself|no; `JarUnavailable` yes) \|", text, re.M)
    documented = {
        name: retriable for names, retriable in rows for name in re.findall(r"`(\w+)`", names)
    }

    for error in subclasses(TaskflowError):
        if error.__module__.startswith(NO_TABLE):
            continue
        assert error.__name__ in documented, error
        if documented[error.__name__] != "says itself":
            assert documented[error.__name__] == ("yes" if error.retriable else "no"), error


NO_TABLE = ("processor.cli", "processor.embedded", "processor.testing.memory", "tests")
"""Their errors are explained where they are raised."""


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
def test_nothing_lies_about_at_the_top() -> None:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tops = {path.split("/")[0] for path in listed.split("\0") if path}

    assert {name for name in tops if not name.startswith(".")} == TOP
