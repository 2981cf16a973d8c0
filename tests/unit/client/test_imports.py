"""Importing the client changes nothing in a process, and needs the base dependencies alone."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
UNCHANGED = """
from aiokafka.consumer import fetcher
before = fetcher.MemoryRecords
import processor.client
assert fetcher.MemoryRecords is before
"""
LOADED = """
import sys
import processor.client
files = [m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "processor"]
print("\\n".join(filter(None, files)))
"""


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_client_replaces_no_class_of_aiokafka() -> None:
    run(UNCHANGED)


def test_the_client_imports_the_base_dependencies_and_no_others() -> None:
    base = {re.split(r"[\[<>=;]", line)[0].replace("-", "_") for line in PROJECT["dependencies"]}
    imported = {
        name
        for path in run(LOADED).splitlines()
        for node in ast.parse(Path(path).read_text("utf-8")).body
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    tops = {name.split(".")[0] for name in imported} - sys.stdlib_module_names - {"processor"}
    # pydantic-core is pydantic's own half.
    assert tops - {"pydantic_core"} == base
