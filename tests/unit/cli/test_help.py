"""The program's help: what it says of each command, what it costs, and completion in shells."""

import json
import os
import re
import shutil
import subprocess
import sys
from inspect import cleandoc
from pathlib import Path
from typing import Any, get_args

import pytest

import processor
from processor.cli.bulk.command import ActionName
from processor.cli.common.options import StatusName
from processor.cli.main import COMMANDS, DONE, WRONG_USE, main
from processor.cli.rebuild.command import SourceName
from processor.cli.rebuild.tables import TableSource
from processor.cli.replay.commands import EventKindName
from processor.cli.step.commands import StepStatusName
from processor.contract.events import EventKind
from processor.contract.flow import FlowStatus
from processor.contract.steps import StepStatus
from processor.ops.bulk import BulkAction
from tests.support.machine import patience
from tests.support.program_tree import Words, all_commands

TREE = all_commands()
ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_of_a_command_is_where_its_help_begins(name: str) -> None:
    """The list of commands is made without their modules: it must not say anything else."""
    paragraph = " ".join(cleandoc(TREE[name,].help).split("\n\n")[0].split())
    assert COMMANDS[name].summary == re.split(r"(?<=[.?])(?: |$)", paragraph)[0]


@pytest.mark.parametrize("words", TREE, ids=" ".join)
def test_no_line_of_a_help_is_taken_for_a_list_or_a_heading(words: Words) -> None:
    """Help is Markdown; a line that begins with `1.` or `#` would break a sentence apart."""
    for line in cleandoc(TREE[words].help).splitlines():
        assert not re.match(r"\s*(?:[0-9]+[.)]|[-+*#>])(?: |$)", line), line


@pytest.mark.parametrize("words", [(), *TREE], ids=" ".join)
def test_help_shows_all_that_is_written_and_no_type_of_python(
    words: Words, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main([*words, "--help"]) == DONE
    text = capsys.readouterr().out
    assert not re.findall(r"<(?:bool|str|int|float|path|list)|range>", text)
    assert "Usage: taskflow" in text
    shown = " ".join(text.replace("│", " ").split())
    command = TREE.get(words)
    for written in () if command is None else (command.help, *helps_of(command)):
        for paragraph in cleandoc(written).split("\n\n"):
            # Code loses its quotes, and nothing else is lost: neither [brackets] nor <angles>.
            assert " ".join(paragraph.replace("`", "").split()) in shown


def helps_of(command: Any) -> list[str]:
    shown = [one for one in command.params if not getattr(one, "hidden", False)]
    return [found for one in shown if (found := getattr(one, "help", None))]


def test_the_commands_stand_in_panels(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == DONE
    titles = re.findall(r"^╭─ (\w+) ─", capsys.readouterr().out, re.MULTILINE)
    assert titles == ["Options", "Run", "Use", "Look", "Repair", "Prove"]


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == DONE
    assert capsys.readouterr().out == f"taskflow {processor.__version__}\n"


def test_a_command_that_is_near_is_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flwo", "list"]) == WRONG_USE
    assert "Did you mean 'flow'?" in capsys.readouterr().err


def modules(*calls: str) -> dict[str, set[str]]:
    """What a process of its own imports for the help of each command, one after the other."""
    program = (
        "import json, sys\n"
        "from processor.cli.main import main\n"
        "calls, found, before = json.loads(sys.argv[1]), {}, set()\n"
        "for call in calls:\n"
        "    assert main([*call.split(), '--help']) == 0, call\n"
        "    found[call] = [*{*sys.modules} - before]\n"
        "    before = {*sys.modules}\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(calls)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {call: set(names) for call, names in json.loads(done.stdout.splitlines()[-1]).items()}


HEAVY = {
    *("pydantic", "aiokafka", "aiohttp", "structlog", "sqlite3", "faust", "tenacity"),
    *("rich.live", "rich.progress", "prometheus_client"),
}


def test_the_help_of_all_imports_no_command_and_nothing_that_commands_need() -> None:
    found = modules("")[""]

    ours = {name for name in found if name.startswith("processor")}
    assert ours == {
        *("processor", "processor.errors", "processor.cli", "processor.cli.main"),
        *("processor.cli.common", "processor.cli.common.lazy_group"),
    }
    heavy = {"pydantic", "aiokafka", "aiohttp", "structlog", "asyncio", "sqlite3", "orjson"}
    assert not heavy & found


def test_the_help_of_a_command_imports_nothing_that_only_running_it_needs() -> None:
    found = modules(*map(" ".join, TREE))
    assert {call: names & HEAVY for call, names in found.items() if names & HEAVY} == {}


def test_choices_that_are_written_out_are_those_of_the_models() -> None:
    assert get_args(StatusName) == tuple(FlowStatus)
    assert get_args(ActionName) == tuple(BulkAction)
    assert get_args(StepStatusName) == tuple(StepStatus)
    assert get_args(SourceName) == tuple(TableSource)
    assert list(map(str, EventKindName)) == list(map(str, EventKind))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of a shell that finds `taskflow`, and has a home of its own."""
    program = tmp_path / "bin" / "taskflow"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom processor.cli.main import entry_point\n"
        "sys.exit(entry_point())\n"
    )
    program.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("_")}
    return {
        **kept,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
    }


def shell(environment: dict[str, str], *command: str, **more: str) -> str:
    done = subprocess.run(
        command,
        env=environment | more,
        capture_output=True,
        text=True,
        check=True,
        timeout=patience(60),
    )
    assert "Traceback" not in done.stderr
    return done.stdout


COMPLETIONS = [
    ("taskflow fl", ["flow"]),
    ("taskflow flow ca", ["cancel"]),
    ("taskflow re", ["rebuild", "repartition", "replay"]),
    ("taskflow replay ", ["check", "export", "to", "group"]),
    ("taskflow flow list --st", ["--status"]),
    ("taskflow flow list --status fi", ["finished"]),
    ("taskflow bulk c", ["cancel", "cancel_step"]),
    ("taskflow --ver", ["--version"]),
]


@pytest.mark.parametrize(("line", "wanted"), COMPLETIONS)
def test_bash_completes(line: str, wanted: list[str], environment: dict[str, str]) -> None:
    """By the script that the program prints, as bash calls it."""
    script = shell(environment, "taskflow", _TASKFLOW_COMPLETE="source_bash")
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    called = (
        f"{script}\nCOMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}\n"
        "_taskflow_completion taskflow\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    assert shell(environment, "bash", "--norc", "-c", called).split() == wanted


@pytest.mark.parametrize(("line", "wanted"), COMPLETIONS[2:5])
def test_fish_completes(line: str, wanted: list[str], environment: dict[str, str]) -> None:
    """By what its script calls: the shell itself is not needed."""
    script = shell(environment, "taskflow", _TASKFLOW_COMPLETE="source_fish")
    assert "_TASKFLOW_COMPLETE=complete_fish" in script
    found = shell(
        environment,
        "taskflow",
        _TASKFLOW_COMPLETE="complete_fish",
        _TYPER_COMPLETE_ARGS=line,
        _TYPER_COMPLETE_FISH_ACTION="get-args",
    )
    assert [one.split("\t")[0] for one in found.splitlines()] == wanted


@pytest.mark.parametrize(("line", "wanted"), COMPLETIONS[2:5])
def test_zsh_completes(line: str, wanted: list[str], environment: dict[str, str]) -> None:
    script = shell(environment, "taskflow", _TASKFLOW_COMPLETE="source_zsh")
    assert "_TASKFLOW_COMPLETE=complete_zsh" in script
    found = shell(
        environment, "taskflow", _TASKFLOW_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS=line
    )
    assert re.findall(r'^(?:_arguments .*\(\()?"([^"]+)"', found, re.MULTILINE) == wanted


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("bash", ".bash_completions/taskflow.sh"),
        ("zsh", ".zfunc/_taskflow"),
        ("fish", ".config/fish/completions/taskflow.fish"),
    ],
)
def test_completion_is_installed_for_the_shell_that_calls(
    name: str, where: str, environment: dict[str, str], tmp_path: Path
) -> None:
    """A copy of bash by the shell's name stands for it: the name is what is looked at."""
    caller = tmp_path / "bin" / name
    bash: Any = shutil.which("bash")
    if name != "bash":
        shutil.copy(bash, caller)
        bash = str(caller)
    shell(environment, bash, "-c", "taskflow --install-completion; true")
    assert "_TASKFLOW_COMPLETE" in (tmp_path / where).read_text("utf-8")
