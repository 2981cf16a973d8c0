"""Profiles: the settings of several clusters by name; what the environment says comes first."""

from pathlib import Path

import pytest

from processor.cli.main import WRONG_USE, main
from processor.settings import BadSetting, load_settings
from processor.settings.profiles import apply_profile, load_profile, profiles_file

PROFILES = """
[local]
topic_prefix = "trial"
standby = true

[prod]
bootstrap_servers = "kafka-1:9093,kafka-2:9093"
topic_prefix = "billing"
partitions = 12
security_protocol = "SASL_SSL"
sasl_username = "ana"
sasl_password_file = "/run/secrets/kafka"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "profiles.toml"
    path.write_text(PROFILES)
    return path


def test_a_profile_is_settings_and_the_environment_wins(file: Path) -> None:
    environ = {"TASKFLOW_PROFILES": str(file), "TASKFLOW_TOPIC_PREFIX": "mine"}
    environ["TASKFLOW_SASL_PASSWORD"] = "typed"
    apply_profile(environ, "prod")

    assert environ.pop("TASKFLOW_PROFILES")
    settings = load_settings(environ)
    assert settings.bootstrap_servers == "kafka-1:9093,kafka-2:9093"
    assert (settings.topic_prefix, settings.partitions) == ("mine", 12)
    assert settings.sasl_password is not None
    assert settings.sasl_password.get_secret_value() == "typed"
    assert load_profile(file, "local")["TASKFLOW_STANDBY"] == "true"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a]\nsasl_password = 'x'", "holds a secret, sasl_password; put it into a file"),
        ("[a]\ntopic_prefx = 'x'", "no setting; the nearest one is topic_prefix"),
        ("[b]\n[c]", "has no profile 'a'; it has b, c"),
        ("", "has no profile 'a'; it has none"),
        ("a = 1", "has no profile 'a'"),
        ("[a", "is not TOML"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(text: str, why: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(BadSetting, match=why):
        load_profile(file, "a")


def test_the_file_is_named_or_in_the_users_configuration(tmp_path: Path) -> None:
    assert profiles_file({"TASKFLOW_PROFILES": "/x/y.toml"}) == Path("/x/y.toml")
    home = profiles_file({"XDG_CONFIG_HOME": str(tmp_path)})
    assert home == tmp_path / "taskflow" / "profiles.toml"
    assert profiles_file({"XDG_CONFIG_HOME": "relative"}).is_relative_to(Path.home())


def test_the_program_takes_a_profile_by_option_or_variable(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text("[here]\npartitions = 'many'")
    for name in ("TASKFLOW_PARTITIONS", "TASKFLOW_PROFILE"):
        monkeypatch.setenv(name, "")
    for arguments, variable in ((["--profile", "here"], ""), ([], "here")):
        monkeypatch.setenv("TASKFLOW_PROFILES", str(file))
        monkeypatch.setenv("TASKFLOW_PROFILE", variable)
        monkeypatch.setenv("TASKFLOW_PARTITIONS", "")
        assert main([*arguments, "topics", "check"]) == WRONG_USE
        assert "TASKFLOW_PARTITIONS is 'many'" in capsys.readouterr().err
