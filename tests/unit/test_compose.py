"""docker-compose.yml and the Dockerfile say what the program, its settings and the embedded broker
say, too.

They are read here, not run: that takes a container engine.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from processor.embedded.maven import KAFKA_VERSION
from processor.settings import VARIABLES, Settings, load_settings, parse_duration
from tests.support.program_tree import all_commands

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
DOCKERFILE = ROOT / COMPOSE["x-taskflow"]["build"]["dockerfile"]
RECIPE = DOCKERFILE.read_text("utf-8")
COPIED = [
    name for line in RECIPE.splitlines() if line.startswith("COPY") for name in line.split()[1:-1]
]


def settings_of(service: str) -> Settings:
    def no(sentence: str) -> None:
        raise AssertionError(sentence)

    given = SERVICES[service]["environment"].items()
    # What the user's own environment has nothing for is empty.
    return load_settings(
        {name: re.sub(r"\$\{\w+-\}", "", str(value)) for name, value in given}, warn=no
    )


def test_the_services_are_kafka_its_topics_workers_and_views_and_others_by_their_profiles() -> None:
    by_profile: dict[str, set[str]] = {}
    for name, service in SERVICES.items():
        (profile,) = service.get("profiles", ["always"])
        by_profile.setdefault(profile, set()).add(name)
    assert by_profile == {
        "always": {"kafka", "topics", "worker", "views"},
        "signals": {"signal-topics", "signals"},
        "outbox": {"outbox"},
    }
    assert set(OURS) == SERVICES.keys() - {"kafka"}


@pytest.mark.parametrize("service", OURS)
def test_what_a_service_runs_is_a_command_of_the_program(service: str) -> None:
    words = [word for word in SERVICES[service]["command"] if not word.startswith("--")]
    command = all_commands()[tuple(words)]
    options = {option for one in command.params for option in one.opts}
    assert set(SERVICES[service]["command"]) - set(words) <= options
    assert not hasattr(command, "commands"), "it is a group of commands"
    assert 'ENTRYPOINT ["taskflow"]' in RECIPE


@pytest.mark.parametrize("service", OURS)
def test_every_variable_is_a_setting_and_has_a_meaning(service: str) -> None:
    environment = SERVICES[service]["environment"]
    assert set(environment) <= set(VARIABLES)
    settings = settings_of(service)
    listeners = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert f"INSIDE://{settings.bootstrap_servers}" in listeners


def test_all_services_mean_the_same_topics() -> None:
    topics, worker = settings_of("topics"), settings_of("worker")
    for field in ("topic_prefix", "partitions", "bootstrap_servers", "dedupe_window_ms"):
        assert getattr(topics, field) == getattr(worker, field)


def test_kafka_is_the_version_that_everything_else_runs_on() -> None:
    assert SERVICES["kafka"]["image"].partition("@")[0] == f"apache/kafka:{KAFKA_VERSION}"


@pytest.mark.parametrize("service", SERVICES)
def test_no_container_may_do_more_than_run(service: str) -> None:
    documented = SERVICES[service]
    assert documented["cap_drop"] == ["ALL"]
    assert documented["read_only"] is True
    assert documented["security_opt"] == ["no-new-privileges:true"]
    assert "/tmp" in documented["tmpfs"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "userns_mode"} & documented.keys()


def test_what_it_runs_is_named_by_digest() -> None:
    lines = RECIPE.splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    stages = {line.split()[3] for line in lines if line.startswith("FROM ") and " AS " in line}
    images = [SERVICES["kafka"]["image"], *(base for base in bases if base not in stages)]
    assert len(images) == 2
    for container_image in images:
        assert re.fullmatch(r"[a-z/]+:[0-9a-z.-]+@sha256:[0-9a-f]{64}", container_image), (
            container_image
        )


def test_nothing_is_installed_that_was_not_held_to_its_hash() -> None:
    pips = re.findall(r"pip (download|install|wheel) ([^\n]*)", RECIPE)
    (first, *others) = pips
    assert first[0] == "download"
    assert {"--require-hashes", "--only-binary", "--no-deps"} <= set(first[1].split())
    assert others
    for _, arguments in others:
        assert "--no-index" in arguments.split()


def test_from_outside_kafka_answers_where_taskflow_looks_for_it() -> None:
    environment = SERVICES["kafka"]["environment"]
    address = Settings().bootstrap_servers
    assert f"HOST://{address}" in environment["KAFKA_ADVERTISED_LISTENERS"].split(",")
    host, port = address.split(":")
    assert SERVICES["kafka"]["ports"] == [f"{host}:{port}:{port}"]
    assert f"HOST://:{port}" in environment["KAFKA_LISTENERS"].split(",")


def test_each_waits_for_what_it_needs() -> None:
    assert "healthcheck" in SERVICES["kafka"]
    assert SERVICES["topics"]["depends_on"] == {"kafka": {"condition": "service_healthy"}}
    assert SERVICES["worker"]["depends_on"] == {
        "kafka": {"condition": "service_healthy"},
        "topics": {"condition": "service_completed_successfully"},
    }
    assert SERVICES["topics"]["restart"] == "no"


def test_workers_can_be_many() -> None:
    worker = SERVICES["worker"]
    assert "container_name" not in worker
    assert "hostname" not in worker
    assert "TASKFLOW_INSTANCE_ID" not in worker["environment"]
    settings = settings_of("worker")
    # A volume without a name is each container's own; a named one would be shared.
    assert worker["volumes"] == [str(settings.state_dir)]
    # No fixed port on the host.
    assert settings.http is not None
    assert worker["ports"] == [f"127.0.0.1::{settings.http.port}"]


def test_views_are_where_a_browser_looks_for_them_and_can_be_many() -> None:
    views = SERVICES["views"]
    assert "container_name" not in views
    assert views["volumes"] == [str(settings_of("views").state_dir)]
    address = settings_of("views").views_http
    assert address.host == "0.0.0.0"
    assert views["ports"] == [f"127.0.0.1:{Settings().views_http.port}-8909:{address.port}"]
    assert views["depends_on"] == SERVICES["worker"]["depends_on"]
    assert "[views,postgres]" in RECIPE


def test_views_are_healthy_while_they_catch_up_however_long_that_takes() -> None:
    """Compose counts each failure after the start period, and `up --wait` then gives up: so it asks
    for what holds from the start, and not /ready, which waits for all that was there before."""
    check = SERVICES["views"]["healthcheck"]
    kind, python, _, code = check["test"]
    assert (kind, python) == ("CMD", "python")
    assert f"http://127.0.0.1:{settings_of('views').views_http.port}/live" in code
    compile(code, "healthcheck", "exec")
    # From the start period on, what fails has to fail for a while.
    interval_ms = parse_duration(check["interval"])
    assert parse_duration(check["start_period"]) >= 30_000
    assert check["retries"] * interval_ms >= 15_000


def test_a_worker_is_asked_whether_it_is_ready_and_given_time_to_stop() -> None:
    worker = SERVICES["worker"]
    settings = settings_of("worker")
    assert settings.http is not None
    assert settings.http.host == "0.0.0.0"
    kind, python, _, code = worker["healthcheck"]["test"]
    assert (kind, python) == ("CMD", "python")
    assert f"http://127.0.0.1:{settings.http.port}/ready" in code
    compile(code, "healthcheck", "exec")
    assert parse_duration(worker["stop_grace_period"]) >= 10_000


@pytest.mark.parametrize(("service", "path"), [("signals", "ready"), ("outbox", "live")])
def test_signals_and_relays_are_asked_where_they_listen_and_can_be_many(
    service: str, path: str
) -> None:
    """A relay that stands by is not ready."""
    documented, address = SERVICES[service], getattr(settings_of(service), f"{service}_http")
    assert address == ("0.0.0.0", getattr(Settings(), f"{service}_http").port)
    assert documented["ports"] == [f"127.0.0.1::{address.port}"]
    assert f"http://127.0.0.1:{address.port}/{path}'" in documented["healthcheck"]["test"][3]
    assert "container_name" not in documented
    waits_for = {"signals": "signal-topics", "outbox": "topics"}[service]
    assert documented["depends_on"] == {
        "kafka": {"condition": "service_healthy"},
        waits_for: {"condition": "service_completed_successfully"},
    }


def test_a_relay_without_a_database_ends_with_its_reason_and_is_not_restarted() -> None:
    """Compose fills in all services before it selects profiles: `:?` would end each `up`."""
    assert ":?" not in str(SERVICES)
    assert SERVICES["outbox"]["restart"] == "${TASKFLOW_OUTBOX_DSN:+unless-stopped}"


def test_all_services_are_built_by_the_same_dockerfile() -> None:
    for service in OURS:
        assert SERVICES[service]["build"] == COMPOSE["x-taskflow"]["build"]
    assert ROOT / COMPOSE["x-taskflow"]["build"]["context"] == ROOT


def test_what_the_image_takes_in_is_there() -> None:
    for name in COPIED:
        assert (ROOT / name).exists(), name
    # What the build reads of pyproject.toml's files has to be among them.
    assert {"pyproject.toml", "README.md", "LICENSE", "processor"} <= set(COPIED)


def test_nothing_else_is_sent_to_the_builder() -> None:
    lines = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text("utf-8").splitlines()
    assert lines[0] == "*"
    assert {line.removeprefix("!") for line in lines if line.startswith("!")} == set(COPIED)


def test_the_container_runs_as_nobody_else() -> None:
    """By the id that its directory belongs to; a name would be no proof for Kubernetes."""
    (user,) = re.findall(r"^USER (\d+)$", RECIPE, re.M)
    assert f"useradd --uid {user} " in RECIPE
    assert user != "0"
