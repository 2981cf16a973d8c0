"""Every command with a standard output that is closed, full or broken, and with `--help`."""

import pytest

from processor.cli.main import DONE, REFUSED, UNREACHABLE, WRONG_USE
from tests.support.forked_program import STREAMS, ForkedProgram, shared_program
from tests.support.program_tree import Words, all_commands

TREE = all_commands()
CODES = {
    "closed": (REFUSED, "Standard output cannot be written: it is closed.\n"),
    "full": (REFUSED, "Standard output cannot be written: No space left on device.\n"),
    "broken": (DONE, ""),
}


@pytest.fixture(scope="module")
def taskflow(tmp_path_factory: pytest.TempPathFactory) -> ForkedProgram:
    """Where no broker answers."""
    state = tmp_path_factory.mktemp("state")
    environment = {
        "TASKFLOW_BOOTSTRAP_SERVERS": "127.0.0.1:1",
        "TASKFLOW_STATE_DIR": str(state),
        "TASKFLOW_VIEWS_HTTP": "127.0.0.1:1",
    }
    return shared_program().where(environment)


@pytest.mark.parametrize(
    ("words", "stdout"),
    [
        # All write their help in one way: each has its turn with one stream, one with all of them.
        *(((), stdout) for stdout in STREAMS),
        *((words, STREAMS[nth % len(STREAMS)]) for nth, words in enumerate(TREE)),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_help_that_cannot_be_shown(words: Words, stdout: str, taskflow: ForkedProgram) -> None:
    done = taskflow(*words, "--help", stdout=stdout)
    assert (done.code, done.err) == CODES[stdout]


@pytest.mark.parametrize("words", [(), *TREE], ids=" ".join)
def test_help_that_can_be_shown(words: Words, taskflow: ForkedProgram) -> None:
    done = taskflow(*words, "--help")
    assert (done.code, done.err) == (DONE, "")
    assert "Usage: taskflow" in done.out


@pytest.mark.parametrize("stdout", STREAMS)
def test_the_version_that_cannot_be_shown(stdout: str, taskflow: ForkedProgram) -> None:
    done = taskflow("--version", stdout=stdout)
    assert (done.code, done.err) == CODES[stdout]


@pytest.mark.parametrize("stdout", [None, *STREAMS])
def test_what_has_nothing_to_print_needs_no_standard_output(
    stdout: str | None, taskflow: ForkedProgram
) -> None:
    done = taskflow("flow", "show", "me", stdout=stdout)
    assert done.code == WRONG_USE


def test_findings_that_nobody_reads_are_no_error(taskflow: ForkedProgram) -> None:
    done = taskflow("doctor", "--json", stdout="broken")
    assert (done.code, done.err) == (UNREACHABLE, "")


def test_a_closed_standard_input_is_said(taskflow: ForkedProgram) -> None:
    assert taskflow("send", stdin=None) == (
        WRONG_USE,
        "",
        "Standard input is closed; nothing was sent.\n",
    )
    flow_id = "6f1f3a52-0000-4000-8000-000000000001"
    done = taskflow("step", "schedule", flow_id, "r", "--task", "t", "--input", "@-", stdin=None)
    assert (done.code, "standard input is closed" in done.err) == (WRONG_USE, True)
    done = taskflow("prune", "--older-than", "30d", stdin=None)
    assert (done.code, "--yes" in done.err) == (WRONG_USE, True)
