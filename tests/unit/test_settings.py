"""Settings mean one thing, and what means nothing is said in a sentence."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from processor.settings import (
    SECRET_FILES,
    SECRET_MAX_BYTES,
    VARIABLES,
    Address,
    BadSetting,
    Settings,
    load_settings,
    parse_duration,
)


def refused(**environ: str) -> str:
    with pytest.raises(BadSetting) as no:
        load_settings(environ)
    assert no.value.__suppress_context__  # a traceback of pydantic's would show the input
    return str(no.value)


def test_without_an_environment_the_defaults_are_those_of_the_contract() -> None:
    settings = load_settings({})

    assert settings.bootstrap_servers == "127.0.0.1:9092"
    assert (settings.topic_prefix, settings.group_id) == ("taskflow", "taskflow")
    assert (settings.partitions, settings.replication_factor) == (4, 1)
    assert settings.state_dir == Path("data")
    assert settings.http == Address("127.0.0.1", 8900)
    assert settings.retain_terminal_ms == settings.timer_max_horizon_ms == 30 * 24 * 3_600_000
    assert settings.dedupe_window_ms == 3_600_000
    assert settings == Settings()


def test_the_group_is_the_prefix_unless_named() -> None:
    assert load_settings({"TASKFLOW_TOPIC_PREFIX": "mine"}).group_id == "mine"
    assert load_settings({"TASKFLOW_GROUP_ID": "other"}).group_id == "other"


@pytest.mark.parametrize(
    ("text", "ms"),
    [("250ms", 250), ("5s", 5000), ("10m", 600_000), ("24h", 86_400_000), ("30d", 2_592_000_000)],
)
def test_a_duration_has_a_number_and_a_unit(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "5", "s", "1.5s", "-5s", "5 s", "5S", "1w", "٣s", "1e3s"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


def test_durations_are_held_in_milliseconds_and_some_can_be_off() -> None:
    settings = load_settings(
        {
            "TASKFLOW_DEDUPE_WINDOW": "90s",
            "TASKFLOW_RETAIN_TERMINAL": "off",
            "TASKFLOW_HTTP": "off",
        }
    )
    assert settings.dedupe_window_ms == 90_000
    assert settings.retain_terminal_ms is None
    assert settings.http is None


def test_an_ipv6_address_stands_in_brackets() -> None:
    settings = load_settings(
        {"TASKFLOW_HTTP": "[::1]:0", "TASKFLOW_BOOTSTRAP_SERVERS": "[::1]:9092, kafka-2:9093"}
    )
    assert settings.http == Address("::1", 0)
    assert str(settings.http) == "[::1]:0"
    assert settings.bootstrap_servers == "[::1]:9092,kafka-2:9093"


def test_an_empty_value_counts_as_absent() -> None:
    assert load_settings({"TASKFLOW_INSTANCE_ID": "", "TASKFLOW_PARTITIONS": ""}) == Settings()


def test_settings_never_change() -> None:
    with pytest.raises(ValidationError):
        Settings().partitions = 5  # type: ignore[misc]


def test_made_in_code_they_look_at_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKFLOW_PARTITIONS", "7")
    assert Settings().partitions == 4
    assert load_settings().partitions == 7


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PARTITIONS", "0", "a whole number of 1 to 8192"),
        ("PARTITIONS", "four", "a whole number of 1 to 8192"),
        ("PARTITIONS", "8193", "a whole number of 1 to 8192"),
        ("PARTITIONS", "4.0", "a whole number of 1 to 8192"),
        ("FLOW_STEPS_MAX", "1_0", "a whole number of 1 to 1000000"),
        ("FLOW_CACHE_BYTES", "2_000_000", "a whole number of at least 1048576"),
        ("BOOTSTRAP_SERVERS", "localhost", "addresses host:port"),
        ("BOOTSTRAP_SERVERS", "a:1,", "addresses host:port"),
        ("BOOTSTRAP_SERVERS", "a:70000", "addresses host:port"),
        ("TOPIC_PREFIX", "a b", "1 to 237 letters"),
        ("TOPIC_PREFIX", "x" * 238, "1 to 237 letters"),
        ("TOPIC_PREFIX", "x\n", "1 to 237 letters"),
        ("GROUP_ID", "a/b", "1 to 249 letters"),
        ("INSTANCE_ID", "a/b", "1 to 249 letters"),
        ("DEDUPE_WINDOW", "soon", "a duration such as"),
        ("DEDUPE_WINDOW", "31d", "from 1ms to 30d"),
        ("DEDUPE_WINDOW", "0s", "from 1ms to 30d"),
        ("RETAIN_TERMINAL", "never", "or off"),
        ("RETAIN_TERMINAL", "0s", "at least 1ms"),
        ("HTTP", "8900", "an address host:port, or off"),
        ("SECURITY_PROTOCOL", "TLS", "PLAINTEXT, SSL"),
        ("SASL_MECHANISM", "GSSAPI", "SCRAM-SHA-512"),
        ("SSL_CHECK_HOSTNAME", "maybe", "true or false"),
        ("BROKER_HEAP", "plenty", "512m"),
        ("BROKER_JIT", "none", "full or quick"),
        ("COMPRESSION", "brotli", "lz4, zstd"),
        ("LOG_LEVEL", "loud", "debug, info"),
        ("FLOW_CACHE_BYTES", "1", "at least 1048576"),
    ],
)
def test_a_bad_value_is_one_sentence_with_the_variable_the_value_and_what_it_must_be(
    name: str, value: str, expected: str
) -> None:
    sentence = refused(**{f"TASKFLOW_{name}": value})

    assert sentence.startswith(f"TASKFLOW_{name} is {value!r}, but must be ")
    assert expected in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_bad_secret_is_not_told() -> None:
    sentence = refused(TASKFLOW_VIEWS_TOKEN="hunter2")

    assert sentence == "TASKFLOW_VIEWS_TOKEN must be at least 16 characters."


@pytest.mark.parametrize("other", ["VIEWS_READ_TOKEN", "VIEWS_TOKEN"])
def test_who_reads_or_publishes_cannot_act(other: str) -> None:
    token = "the same for two things"
    sentence = refused(**{"TASKFLOW_VIEWS_OPERATOR_TOKEN": token, f"TASKFLOW_{other}": token})

    assert sentence.startswith(f"TASKFLOW_VIEWS_OPERATOR_TOKEN is the same as TASKFLOW_{other}")
    assert token not in sentence


def test_a_rule_of_the_flows_may_be_as_short_as_the_shortest_duration() -> None:
    names = ("DEDUPE_WINDOW", "TIMER_MAX_HORIZON", "RETAIN_TERMINAL")
    settings = load_settings({f"TASKFLOW_{name}": "250ms" for name in names})

    assert settings.dedupe_window_ms == settings.timer_max_horizon_ms == 250
    assert settings.retain_terminal_ms == 250


def test_each_bad_value_has_a_sentence_of_its_own() -> None:
    sentences = refused(TASKFLOW_PARTITIONS="0", TASKFLOW_TOPIC_PREFIX="a b").splitlines()

    assert [sentence.split()[0] for sentence in sentences] == [
        "TASKFLOW_TOPIC_PREFIX",
        "TASKFLOW_PARTITIONS",
    ]


def test_sasl_needs_a_name_and_a_password_and_no_secret_is_told() -> None:
    sentence = refused(TASKFLOW_SECURITY_PROTOCOL="sasl_ssl", TASKFLOW_SASL_PASSWORD="hunter2")

    assert sentence == (
        "TASKFLOW_SASL_USERNAME is missing, but TASKFLOW_SECURITY_PROTOCOL is SASL_SSL."
    )


def test_a_key_needs_its_certificate() -> None:
    assert "TASKFLOW_SSL_CERTFILE is missing" in refused(TASKFLOW_SSL_KEYFILE="/key.pem")


def test_secrets_are_not_shown() -> None:
    settings = load_settings(
        {"TASKFLOW_SASL_PASSWORD": "hunter2", "TASKFLOW_SSL_PASSWORD": "hunter3"}
    )
    assert "hunter" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.sasl_password is not None
    assert settings.sasl_password.get_secret_value() == "hunter2"


def test_an_unknown_name_is_a_warning_with_the_nearest_known_one() -> None:
    received: list[str] = []

    load_settings({"TASKFLOW_PARTITONS": "9", "TASKFLOWER": "1"}, warn=received.append)

    assert received == [
        "TASKFLOW_PARTITONS is no setting of taskflow and is ignored; "
        "the nearest one is TASKFLOW_PARTITIONS."
    ]


def test_names_that_kubernetes_injects_do_not_stop_it(capsys: pytest.CaptureFixture[str]) -> None:
    settings = load_settings({"TASKFLOW_PORT": "tcp://10.0.0.1:80", "TASKFLOW_SERVICE_HOST": "x"})

    assert settings == Settings()
    assert capsys.readouterr().err.count("warning: ") == 2


def test_the_variables_carry_no_units() -> None:
    assert "TASKFLOW_DEDUPE_WINDOW" in VARIABLES
    assert not [name for name in VARIABLES if name.endswith("_MS")]


def test_each_secret_may_stand_in_a_file() -> None:
    secrets = {name for name, info in VARIABLES.items() if "SecretStr" in str(info.annotation)}

    assert set(SECRET_FILES.values()) == secrets
    assert {"TASKFLOW_SASL_PASSWORD_FILE", "TASKFLOW_SSL_PASSWORD_FILE"} < SECRET_FILES.keys()
    assert not SECRET_FILES.keys() & VARIABLES.keys()


@pytest.mark.parametrize("line_end", ["", "\n", "\r\n"])
def test_a_secret_of_a_file_is_its_content_without_the_line_end(
    tmp_path: Path, line_end: str
) -> None:
    path = tmp_path / "password"
    path.write_bytes(f" hunter2\n {line_end}".encode())

    settings = load_settings({"TASKFLOW_SASL_PASSWORD_FILE": str(path)}, warn=pytest.fail)

    assert settings.sasl_password is not None
    assert settings.sasl_password.get_secret_value() == " hunter2\n "


def test_a_secret_is_given_once(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text("hunter2")

    sentence = refused(TASKFLOW_SASL_PASSWORD="hunter3", TASKFLOW_SASL_PASSWORD_FILE=str(path))

    assert sentence == (
        "TASKFLOW_SASL_PASSWORD and TASKFLOW_SASL_PASSWORD_FILE are both given; keep one of them."
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file or directory"),
        (b"", "empty"),
        (b"\n", "empty"),
        (b"hunter2\xff", "not UTF-8"),
        (b"hunter2" * SECRET_MAX_BYTES, "over 64 KiB"),
    ],
)
def test_a_file_that_holds_no_secret_is_a_sentence_without_its_content(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)

    sentence = refused(TASKFLOW_SASL_PASSWORD_FILE=str(path))

    assert sentence == (
        f"TASKFLOW_SASL_PASSWORD_FILE is {str(path)!r}, which cannot be used: {why}."
    )


def test_a_directory_is_no_secret(tmp_path: Path) -> None:
    assert "is a directory" in refused(TASKFLOW_SSL_PASSWORD_FILE=str(tmp_path))


def test_a_bad_secret_of_a_file_is_said_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("hunter2")

    sentence = refused(TASKFLOW_VIEWS_TOKEN_FILE=str(path))

    assert sentence == "TASKFLOW_VIEWS_TOKEN_FILE must hold at least 16 characters."


def test_oauthbearer_needs_one_source_of_tokens() -> None:
    oauth = {"TASKFLOW_SECURITY_PROTOCOL": "SASL_SSL", "TASKFLOW_SASL_MECHANISM": "oauthbearer"}
    file = {"TASKFLOW_SASL_OAUTH_TOKEN_FILE": "/run/token"}
    command = {"TASKFLOW_SASL_OAUTH_TOKEN_COMMAND": "fetch-token --client 'the worker'"}

    assert load_settings(oauth | file).sasl_oauth_token_file == Path("/run/token")
    assert "fetch-token" not in repr(load_settings(oauth | command))
    assert "TASKFLOW_SASL_OAUTH_TOKEN_FILE is missing" in refused(**oauth)
    assert "both given" in refused(**oauth, **file, **command)


@pytest.mark.parametrize("command", [" ", "fetch 'hunter2"])
def test_what_is_no_command_is_not_shown(command: str) -> None:
    sentence = refused(TASKFLOW_SASL_OAUTH_TOKEN_COMMAND=command)

    assert sentence == (
        "TASKFLOW_SASL_OAUTH_TOKEN_COMMAND must be a command and its arguments, quoted as for a "
        "shell."
    )


def test_a_value_that_is_not_utf_8_is_refused_and_a_path_is_any_bytes() -> None:
    with pytest.raises(BadSetting) as refused:
        load_settings({"TASKFLOW_SASL_PASSWORD": "\udcff", "TASKFLOW_GROUP_ID": "g\udcff"})
    assert set(str(refused.value).splitlines()) == {
        "TASKFLOW_SASL_PASSWORD is not UTF-8.",
        "TASKFLOW_GROUP_ID is not UTF-8.",
    }
    settings = load_settings({"TASKFLOW_STATE_DIR": "a\udcff", "TASKFLOW_SSL_CAFILE": "b\udcff"})
    assert (str(settings.state_dir), str(settings.ssl_cafile)) == ("a\udcff", "b\udcff")
