"""Loading the pytest plugin costs a user's test run nothing."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
import pytest
before = set(sys.modules)
import processor.testing.plugin
print(sorted(set(sys.modules) - before))
"""


def test_it_imports_nothing_but_itself() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(
        ["processor", "processor.testing", "processor.testing.plugin"]
    )


def test_pytest_finds_it_under_its_own_name() -> None:
    """So that naming it as a plugin, too, does not load it twice."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    name = "processor.testing.plugin"
    assert project["entry-points"]["pytest11"] == {name: name}
