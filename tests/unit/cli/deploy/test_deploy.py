"""`taskflow deploy`: settings and options in, files out, and what is missing in a sentence."""

from pathlib import Path

import pytest
import yaml

from processor.cli.main import DONE, WRONG_USE, main
from processor.settings import SECRET_FILES, VARIABLES

KUBERNETES = ["deploy", "kubernetes", "--image", "registry.example.org/taskflow:1"]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*VARIABLES, *SECRET_FILES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TASKFLOW_BOOTSTRAP_SERVERS", "kafka:9093")
    monkeypatch.setenv("TASKFLOW_REPLICATION_FACTOR", "3")
    return monkeypatch


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_manifests_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*KUBERNETES, "--namespace", "prod"]) == DONE

    said = capsys.readouterr()
    documents = list(yaml.safe_load_all(said.out))
    assert {document["metadata"]["namespace"] for document in documents} == {"prod"}
    assert {document["kind"] for document in documents} >= {"KafkaTopic", "StatefulSet"}
    assert said.err == ""


def test_files_go_to_a_folder_and_are_not_replaced_unless_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "deployed"
    written = [*KUBERNETES, "--output", str(folder)]
    assert main(written) == DONE
    assert names(folder) == {"topics.yaml", "workers.yaml", "views.yaml"}

    (folder / "topics.yaml").write_text("mine", "utf-8")
    assert main([*written, "--without", "keda"]) == WRONG_USE
    assert "there already; --yes replaces them." in capsys.readouterr().err
    assert (folder / "topics.yaml").read_text("utf-8") == "mine"

    assert main([*written, "--yes"]) == DONE
    assert "KafkaTopic" in (folder / "topics.yaml").read_text("utf-8")


def test_a_password_is_neither_needed_nor_shown(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("TASKFLOW_SECURITY_PROTOCOL", "SASL_SSL")
    assert main(KUBERNETES) == DONE
    without = capsys.readouterr().out
    environment.setenv("TASKFLOW_SASL_USERNAME", "somebody")
    environment.setenv("TASKFLOW_SASL_PASSWORD", "secret")

    assert main(KUBERNETES) == DONE

    assert capsys.readouterr().out == without


def test_what_to_trust_is_strimzis_or_the_systems_or_a_secrets(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("TASKFLOW_SECURITY_PROTOCOL", "SASL_SSL")
    for options, secret in (
        ([], "my-cluster-cluster-ca-cert"),
        (["--kafka-cluster", "main"], "main-cluster-ca-cert"),
        (["--ca-secret", "company-ca"], "company-ca"),
        (["--ca-secret", "system"], None),
        (["--without", "strimzi"], None),
    ):
        assert main([*KUBERNETES, *options]) == DONE
        out = capsys.readouterr().out
        assert (secret is None) == ("TASKFLOW_SSL_CAFILE" not in out)
        assert secret is None or f"secretName: {secret}\n" in out


@pytest.mark.parametrize(
    ("variables", "options", "sentence"),
    [
        ({"TASKFLOW_BOOTSTRAP_SERVERS": ""}, [], "TASKFLOW_BOOTSTRAP_SERVERS is missing"),
        ({"TASKFLOW_TOPIC_PREFIX": "_x"}, [], "The topic prefix '_x' is no name for resources"),
        ({}, ["--name", "X"], "--name 'X' is no name for resources: give a --name of 1 to 40"),
        ({}, ["--workers", "5"], "--workers is 5, but 4 have all of the 4 partitions"),
        ({}, ["--workers", "3", "--processes", "2"], "--workers is 3, but 2 have all"),
        ({}, ["--processes", "5"], "--processes is 5, but there are 4 partitions"),
        ({}, ["--storage", "much"], "--storage is 'much', but must be a size such as 10Gi."),
        (
            {"TASKFLOW_SASL_OAUTH_TOKEN_COMMAND": "fetch-token"},
            [],
            "TASKFLOW_SASL_OAUTH_TOKEN_COMMAND cannot be run in the container",
        ),
        ({"TASKFLOW_PARTITIONS": "many"}, [], "TASKFLOW_PARTITIONS is 'many', but must be"),
    ],
)
def test_what_cannot_be_is_refused(
    variables: dict[str, str],
    options: list[str],
    sentence: str,
    environment: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    assert main([*KUBERNETES, *options]) == WRONG_USE
    said = capsys.readouterr()
    assert said.err.startswith(sentence)
    assert said.out == ""


def test_tokens_of_views_that_stand_in_files_are_not_read_and_differ(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for token in ("READ_TOKEN", "OPERATOR_TOKEN", "TOKEN"):
        environment.setenv(f"TASKFLOW_VIEWS_{token}_FILE", f"/not/on/this/machine/{token}")
    assert main(KUBERNETES) == DONE
    said = capsys.readouterr()
    assert "/etc/taskflow/views/operator-token\n" in said.out
    assert "/not/on/this/machine" not in said.out
    assert said.err == (
        "TASKFLOW_VIEWS_TOKEN is left out: the views have no right to publish for services.\n"
    )


def test_what_is_doubtful_is_said(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("TASKFLOW_REPLICATION_FACTOR")
    environment.setenv("TASKFLOW_SECURITY_PROTOCOL", "SASL_SSL")
    environment.setenv("TASKFLOW_SASL_MECHANISM", "OAUTHBEARER")
    assert main(KUBERNETES) == DONE
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "warning: TASKFLOW_REPLICATION_FACTOR is 1: each topic has one copy of its data.",
        "There is no ScaledObject: KEDA takes no tokens of service accounts.",
    ]
    assert "ScaledObject" not in said.out


def test_units_are_of_the_program_that_writes_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["deploy", "systemd", "--output", str(tmp_path)]) == DONE
    assert names(tmp_path) == {"taskflow-worker.service", "taskflow-views.service"}
    assert main(["deploy", "systemd", "--program", "/opt/taskflow"]) == DONE
    assert 'ExecStart="/opt/taskflow" worker\n' in capsys.readouterr().out


def test_signals_and_an_outbox_are_added_on_request(
    environment: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--signals", "--outbox"]
    assert main(["deploy", "systemd", *more]) == WRONG_USE
    assert "TASKFLOW_OUTBOX_DSN_FILE is missing" in capsys.readouterr().err

    environment.setenv("TASKFLOW_OUTBOX_DSN_FILE", "/not/on/this/machine/dsn")
    assert main(["deploy", "systemd", *more, "--output", str(tmp_path / "units")]) == DONE
    parts = ("worker", "views", "signals", "outbox")
    assert names(tmp_path / "units") == {f"taskflow-{part}.service" for part in parts}

    manifests = ["--signals", "2", "--outbox", "1", "--output", str(tmp_path / "manifests")]
    assert main([*KUBERNETES, *manifests]) == DONE
    assert names(tmp_path / "manifests") >= {"signals.yaml", "outbox.yaml"}
    written = (tmp_path / "manifests" / "outbox.yaml").read_text("utf-8")
    assert "/not/on/this/machine" not in written


def test_a_unit_takes_no_secret_but_the_file_that_has_it(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("TASKFLOW_SECURITY_PROTOCOL", "SASL_SSL")
    environment.setenv("TASKFLOW_SASL_USERNAME", "worker")
    environment.setenv("TASKFLOW_SASL_PASSWORD", "secret")
    assert main(["deploy", "systemd"]) == WRONG_USE
    assert "name that by TASKFLOW_SASL_PASSWORD_FILE." in capsys.readouterr().err

    environment.delenv("TASKFLOW_SASL_PASSWORD")
    environment.setenv("TASKFLOW_SASL_PASSWORD_FILE", "/not/on/this/machine")
    assert main(["deploy", "systemd"]) == DONE
    assert "LoadCredential=TASKFLOW_SASL_PASSWORD_FILE:/not/on/" in capsys.readouterr().out
