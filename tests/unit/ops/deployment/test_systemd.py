"""Units that systemd takes, with settings as they were given and no secrets."""

import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePath

import pytest

from processor.ops.deployment.plan import Component, memory_mib
from processor.ops.deployment.systemd import Machine, units
from processor.settings import VARIABLES, Settings, load_settings
from processor.worker.supervisor import END_TIMEOUT_S
from tests.support.machine import patience

ENVIRON = {
    "TASKFLOW_BOOTSTRAP_SERVERS": "kafka-1:9093,kafka-2:9093",
    "TASKFLOW_SECURITY_PROTOCOL": "SASL_SSL",
    "TASKFLOW_SASL_USERNAME": 'shop "50%"',
    "TASKFLOW_SASL_PASSWORD_FILE": "/etc/taskflow/password",
    "TASKFLOW_SSL_CAFILE": "/etc/taskflow/ca.crt",
    "TASKFLOW_VIEWS_READ_TOKEN_FILE": "/etc/taskflow/read-token",
    "TASKFLOW_OUTBOX_DSN_FILE": "/etc/taskflow/dsn",
    "TASKFLOW_MCP_TOKEN_FILE": "/etc/taskflow/mcp-token",
    "TASKFLOW_HTTP": "0.0.0.0:8900",
    "PATH": "/usr/bin",
}
SPECIFIERS = {"%S": "/var/lib", "%d": "/run/credentials", "%H": "box", "%%": "%"}


def machine(
    program: str = "/opt/taskflow/bin/taskflow", processes: int = 1, **services: bool
) -> Machine:
    settings = load_settings(
        {name: value for name, value in ENVIRON.items() if name.startswith("TASKFLOW_")}
        | {"TASKFLOW_SASL_PASSWORD_FILE": "", "TASKFLOW_SASL_PASSWORD": "unknown here"}
        | {"TASKFLOW_VIEWS_READ_TOKEN_FILE": "", "TASKFLOW_OUTBOX_DSN_FILE": ""}
        | {"TASKFLOW_MCP_TOKEN_FILE": ""}
    )
    return Machine("shop", settings, ENVIRON, PurePath(program), processes, **services)


def environment(unit: str) -> dict[str, str]:
    """As the service has it on the host `box`."""
    found = {}
    for line in re.findall(r'^Environment="(.*)"$', unit, re.M):
        name, _, value = line.partition("=")
        value = re.sub(r"\\(.)", r"\1", value)
        found[name] = re.sub("%.", lambda match: SPECIFIERS[match[0]], value)
    return found


def test_systemd_takes_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian: apt-get install systemd)")
    paths = []
    every = machine(program=sys.executable, signals=True, outbox=True)
    for name, text in units(every).items():
        paths.append(tmp_path / name)
        paths[-1].write_text(text, "utf-8")

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *paths],
        capture_output=True,
        text=True,
        timeout=patience(60),
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_there_is_one_for_workers_and_one_for_views() -> None:
    found = units(machine(processes=2))
    assert list(found) == ["shop-worker.service", "shop-views.service"]
    worker, views = found.values()
    assert 'ExecStart="/opt/taskflow/bin/taskflow" worker --processes 2\n' in worker
    assert 'ExecStart="/opt/taskflow/bin/taskflow" views\n' in views


@pytest.mark.parametrize("component", [Component.SIGNALS, Component.OUTBOX])
def test_there_is_one_for_signals_and_for_an_outbox_if_they_are_wanted(
    component: Component,
) -> None:
    wanted = machine(signals=component is Component.SIGNALS, outbox=component is Component.OUTBOX)
    found = units(wanted)
    assert list(found)[2:] == [f"shop-{component}.service"]
    unit = found[f"shop-{component}.service"]
    assert f'ExecStart="/opt/taskflow/bin/taskflow" {component}\n' in unit
    credentials = set(re.findall(r"^LoadCredential=(\w+):", unit, re.M))
    own = {"TASKFLOW_OUTBOX_DSN_FILE"} if component is Component.OUTBOX else set()
    assert credentials == {"TASKFLOW_SASL_PASSWORD_FILE", "TASKFLOW_SSL_CAFILE"} | own


@pytest.mark.parametrize("role", [Component.WORKER, Component.VIEWS])
def test_settings_stand_in_it_as_they_were_given(role: Component) -> None:
    found = environment(units(machine())[f"shop-{role}.service"])

    for name in ("TASKFLOW_BOOTSTRAP_SERVERS", "TASKFLOW_SASL_USERNAME", "TASKFLOW_HTTP"):
        assert found[name] == ENVIRON[name]
    assert found["TASKFLOW_STATE_DIR"] == f"/var/lib/shop-{role}"
    assert f"StateDirectory=shop-{role}\n" in units(machine())[f"shop-{role}.service"]
    assert found.get("TASKFLOW_INSTANCE_ID") == ("box" if role is Component.WORKER else None)
    assert "PATH" not in found


@pytest.mark.parametrize(
    ("role", "more"),
    [(Component.WORKER, ()), (Component.VIEWS, ("TASKFLOW_VIEWS_READ_TOKEN_FILE",))],
)
def test_files_are_given_to_the_service_as_credentials(
    role: Component, more: tuple[str, ...]
) -> None:
    unit = units(machine())[f"shop-{role}.service"]
    found = environment(unit)
    credentials = dict(re.findall(r"^LoadCredential=(\w+):(.*)$", unit, re.M))
    names = {"TASKFLOW_SASL_PASSWORD_FILE", "TASKFLOW_SSL_CAFILE", *more}
    assert credentials == {name: ENVIRON[name] for name in names}
    assert found.keys() >= names
    for name in credentials:
        assert found[name] == f"/run/credentials/{name}"


def test_a_wrong_setting_is_not_tried_again_and_a_stop_has_its_time() -> None:
    unit = units(machine())["shop-worker.service"]
    assert "Restart=on-failure\n" in unit
    assert "RestartPreventExitStatus=2\n" in unit
    (stop_s,) = re.findall(r"^TimeoutStopSec=(\d+)$", unit, re.M)
    assert int(stop_s) >= 2 * END_TIMEOUT_S
    assert f"MemoryMax={memory_mib(Settings(), 1)}M\n" in unit


def test_every_name_is_a_setting() -> None:
    for unit in units(machine(signals=True, outbox=True)).values():
        names = {name.removesuffix("_FILE") for name in environment(unit)}
        assert names - {"XDG_STATE_HOME"} <= VARIABLES.keys()
