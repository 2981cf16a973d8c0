"""What is to be typed next is said so that it can be copied: the program as it was called, the
settings that are not the defaults."""

import sys
from pathlib import Path

import pytest

from processor.cli.invocation import program_as_called, settings_to_repeat
from processor.cli.up.execute import greeting
from processor.settings import Address, Settings


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "my env" / "bin" / "taskflow"
    program.parent.mkdir(parents=True)
    program.write_text("")
    monkeypatch.chdir(tmp_path)
    return program


def test_a_program_that_the_shell_finds_is_called_by_its_name(installed: Path) -> None:
    assert program_as_called(str(installed), found=str(installed)) == "taskflow"


def test_one_that_it_does_not_find_is_called_by_its_path(installed: Path) -> None:
    for called in (str(installed), "my env/bin/taskflow"):
        assert program_as_called(called, found="") == "'my env/bin/taskflow'"
        assert program_as_called(called, found="/usr/bin/taskflow") == "'my env/bin/taskflow'"


def test_a_module_is_called_as_one_unless_its_program_is_there(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(installed.with_name("python3")))
    assert program_as_called("/x/processor/__main__.py", found="") == "'my env/bin/taskflow'"
    installed.unlink()
    module = program_as_called("/x/processor/__main__.py", found="")
    assert module == f"'{installed.with_name('python3')}' -m processor"


def test_only_settings_that_differ_are_repeated() -> None:
    assert settings_to_repeat(Settings()) is None
    chosen = Settings(bootstrap_servers="127.0.0.1:9192", state_dir=Path("my data"), partitions=9)
    assert settings_to_repeat(chosen) == (
        "export TASKFLOW_BOOTSTRAP_SERVERS=127.0.0.1:9192 TASKFLOW_STATE_DIR='my data'"
    )


def test_up_greets_with_ten_lines_the_page_first() -> None:
    page = "http://127.0.0.1:8901"
    chosen = Settings(views_http=Address("127.0.0.1", 9901))
    lines = greeting(chosen, "127.0.0.1:9092", page, seen=True)
    assert page in lines[0]
    assert "  export TASKFLOW_VIEWS_HTTP=127.0.0.1:9901" in lines
    assert len(lines) <= 10
    assert "[views]" in greeting(Settings(), "127.0.0.1:9092", None, seen=False)[0]
    assert "did not start" in greeting(Settings(), "127.0.0.1:9092", page, seen=False)[0]
