"""The program's help, its exit codes, and what it takes on the command line."""

import re

import pytest

from processor.adapters.kafka.errors import AccessDenied, BrokerUnreachable, TopicsWrong
from processor.cli.common.options import duration_ms, flow_id_of, since_ms
from processor.cli.common.runner import Refused, WrongUse, embedded_port
from processor.cli.main import DONE, REFUSED, UNREACHABLE, WRONG_USE, exit_code, main
from processor.cli.send.pipeline import accepted
from processor.cli.tail import as_text
from processor.contract.outcomes import Outcome
from processor.contract.values import PARTITIONS_MAX
from processor.errors import TaskflowError
from processor.settings import VARIABLES, BadSetting, Settings

COMMANDS = (
    *("demo", "up", "broker", "topics create", "topics check", "worker", "send"),
    *("audit", "outcomes", "deadletters"),
    *("flow create", "flow start", "flow finish", "flow watch"),
    *("flow list", "flow show", "flow history", "flow cancel", "flow resume"),
    *("prune", "rebuild", "verify", "torture"),
)
FLOW_ID = "6f1f3a52-0000-4000-8000-000000000001"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_each_command_has_an_example_and_names_its_settings(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), "--help"]) == DONE

    text = capsys.readouterr().out
    assert "Example: " in text
    assert f"taskflow {command}" in " ".join(text.split())
    assert "ettings" in text
    named = set(re.findall(r"TASKFLOW_[A-Z_]+[A-Z]", text.split("Settings:")[-1]))
    assert named - {"TASKFLOW_SASL", "TASKFLOW_SSL"} <= set(VARIABLES)


def test_the_help_of_all_says_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == DONE
    text = " ".join(capsys.readouterr().out.split())
    assert "0 done; 1 refused, or a check failed; 2 wrong use; 3 broker unreachable" in text


@pytest.mark.parametrize(
    ("arguments", "about"),
    [
        (["nope"], "nope"),
        (["flow"], ""),
        (["flow", "show"], "flow_id"),
        (["flow", "show", "me"], "'me' is no flow id"),
        (["flow", "list", "--status", "asleep"], "asleep"),
        (["flow", "list", "--limit", "0"], "--limit"),
        (["flow", "list", "--waiting", "--status", "finished"], "--waiting and --status finished"),
        (["flow", "cancel", FLOW_ID, "--timeout", "soon"], "--timeout is 'soon'"),
        (["prune"], "--older-than"),
        (["prune", "--older-than", "soon", "--yes"], "--older-than is 'soon'"),
        (["prune", "--older-than", "30d"], "take --yes, or --dry-run"),
        (["audit", "--since", "yesterday"], "--since is 'yesterday'"),
        (["audit", "--since", "1h", "--from-beginning"], "take one"),
        (["outcomes", "--flow", "x"], "'x' is no flow id"),
        (["send", "/nowhere/at.all"], "is no file"),
        (["torture", "--kills", "0"], "--kills"),
        (["torture", "--bootstrap", "127.0.0.1:1"], "take --yes"),
        (["torture", "--brokers", "2"], "of two, none can be lost"),
        (["torture", "--brokers", "3", "--bootstrap", "127.0.0.1:1"], "not go with --bootstrap"),
    ],
)
def test_wrong_use_is_code_2_and_says_what(
    arguments: list[str], about: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == WRONG_USE

    captured = capsys.readouterr()
    assert about in captured.err
    assert "Traceback" not in captured.err


def test_a_bad_setting_is_code_2_and_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASKFLOW_PARTITIONS", "many")

    assert main(["topics", "check"]) == WRONG_USE

    assert capsys.readouterr().err == (
        "TASKFLOW_PARTITIONS is 'many', but must be a whole number of 1 to 8192.\n"
    )


def test_a_copy_has_no_more_partitions_than_a_deployment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = ["repartition", "--prefix", "copy", "--dry-run", "--to"]

    assert main([*copy, str(PARTITIONS_MAX + 1)]) == WRONG_USE

    said = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert f"less than or equal to {PARTITIONS_MAX}" in said


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BrokerUnreachable("x"), UNREACHABLE),
        (AccessDenied("x"), UNREACHABLE),
        (TopicsWrong("x"), REFUSED),
        (Refused("x"), REFUSED),
        (TaskflowError("x"), REFUSED),
        (BadSetting("x"), WRONG_USE),
        (WrongUse("x"), WRONG_USE),
    ],
)
def test_every_error_has_its_exit_code(error: TaskflowError, code: int) -> None:
    assert exit_code(error) == code


def test_times_are_points_or_durations_ago() -> None:
    assert since_ms("1970-01-01T00:00:01Z") == 1000
    assert since_ms("100d") < since_ms("1s")
    assert since_ms("999999d") == 0
    assert duration_ms("2s", "--timeout") == 2000


def test_a_flow_id_is_written_in_lower_case() -> None:
    assert flow_id_of(FLOW_ID.upper()) == FLOW_ID


def test_the_embedded_broker_serves_this_machine_in_plaintext_only() -> None:
    assert embedded_port(Settings(bootstrap_servers="localhost:9999")) == 9999
    with pytest.raises(BadSetting, match=r"listens on 127\.0\.0\.1 only"):
        embedded_port(Settings(bootstrap_servers="kafka:9092"))
    with pytest.raises(BadSetting, match="PLAINTEXT only"):
        embedded_port(Settings(security_protocol="SSL"))


def test_bytes_are_texts_where_they_can_be() -> None:
    assert as_text(b"\xc3\xa9") == "é"
    assert as_text(b"\xff") == {"base64": "/w=="}
    assert as_text(None) is None


@pytest.mark.parametrize(
    ("verdict", "original", "in_force"),
    [
        ("accepted", None, True),
        ("duplicate", "accepted", True),
        ("duplicate", "rejected", False),
        ("rejected", None, False),
        ("quarantined", None, False),
    ],
)
def test_a_command_is_in_force_if_it_was_accepted_now_or_before(
    verdict: str, original: str | None, in_force: bool
) -> None:
    outcome = Outcome.model_validate_json(
        f"""{{"command_id": null, "flow_id": null, "kind": null, "verdict": "{verdict}",
        "code": null, "message": "", "revision": null, "status": null, "event_ids": [],
        "allowed": null, "details": {{}}, "dry_run": false, "command_digest": null,
        "source": {{"topic": "t", "partition": 0, "offset": 0}},
        "at": "2026-11-22T21:02:08.123Z",
        "original": {"null" if original is None else f'"{original}"'}}}"""
    )
    assert accepted(outcome) is in_force
