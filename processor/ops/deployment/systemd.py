"""Units of systemd for the services of a machine, confined as far as they can be."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from processor.ops.deployment.plan import (
    GRACE_S,
    OUTBOX_MIB,
    SIGNALS_MIB,
    VIEWS_MIB,
    Component,
    memory_mib,
    passed_on,
)
from processor.settings import SECRET_FILES, Settings, variable

FILES_MAX: Final = 65_536
"""Open files: a server takes connections for a quarter of them."""
CREDENTIALS: Final = (
    *SECRET_FILES,
    *map(variable, ("ssl_cafile", "ssl_certfile", "ssl_keyfile")),
)
"""Files that systemd reads as root and shows to the service alone."""
OF_ONE: Final = {
    "_VIEWS_": frozenset({Component.VIEWS}),
    "_OUTBOX_": frozenset({Component.OUTBOX}),
    "_SINK_": frozenset[Component](),
    "_MCP_": frozenset[Component](),
}
"""Credentials of one service, by what is in their variables; sinks and MCP servers have no unit."""
OWN_FILES: Final = frozenset({"TASKFLOW_SASL_OAUTH_TOKEN_FILE", "TASKFLOW_SASL_USERNAME"})
"""Passed on as they are. A token changes while the service runs, which reads the file itself."""
ADDRESSES: Final = (
    *("TASKFLOW_HTTP", "TASKFLOW_VIEWS_HTTP", "TASKFLOW_VIEWS_ADVERTISE"),
    *("TASKFLOW_SIGNALS_HTTP", "TASKFLOW_OUTBOX_HTTP"),
)

_CONFINED: Final = """\
DynamicUser=yes
UMask=0077
CapabilityBoundingSet=
LockPersonality=yes
PrivateDevices=yes
ProcSubset=pid
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
"""
"""DynamicUser implies ProtectSystem=strict, PrivateTmp, RemoveIPC, NoNewPrivileges and
RestrictSUIDSGID."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What is to run on one machine, and with which settings."""

    name: str
    settings: Settings
    environ: Mapping[str, str]
    program: PurePath
    processes: int = 1
    signals: bool = False
    outbox: bool = False


def units(machine: Machine) -> dict[str, str]:
    """The text of each unit, by its file's name."""
    processes = machine.processes
    worker = ["worker"] if processes == 1 else ["worker", "--processes", str(processes)]
    wanted = {
        Component.WORKER: (worker, memory_mib(machine.settings, processes)),
        Component.VIEWS: (["views"], VIEWS_MIB),
    }
    if machine.signals:
        wanted[Component.SIGNALS] = ["signals"], SIGNALS_MIB
    if machine.outbox:
        wanted[Component.OUTBOX] = ["outbox"], OUTBOX_MIB
    return {
        f"{machine.name}-{component}.service": _unit(machine, component, arguments, max_mib)
        for component, (arguments, max_mib) in wanted.items()
    }


def _unit(machine: Machine, component: Component, arguments: list[str], max_mib: int) -> str:
    service = f"{machine.name}-{component}"
    lines = [
        "[Unit]",
        f"Description=taskflow {component} of the topics {_escaped(machine.settings.topic_prefix)}",
        "Wants=network-online.target",
        "After=network-online.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=exec",
        " ".join([f"ExecStart={_quoted(str(machine.program))}", *arguments]),
        *(f"Environment={_quoted(line)}" for line in _environment(machine, component, service)),
        *(
            f"LoadCredential={name}:{_escaped(path)}"
            for name, path in _credentials(machine, component).items()
        ),
        f"StateDirectory={service}",
        "StateDirectoryMode=0700",
        "Restart=on-failure",
        "RestartSec=2",
        "# A setting that is wrong stays wrong.",
        "RestartPreventExitStatus=2",
        "KillMode=mixed",
        f"TimeoutStopSec={GRACE_S}",
        f"MemoryMax={max_mib}M",
        f"LimitNOFILE={FILES_MAX}",
        *_CONFINED.splitlines(),
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _environment(machine: Machine, component: Component, service: str) -> list[str]:
    """Settings, with the specifiers %S (/var/lib), %d (credentials) and %H (host name)."""
    given = passed_on(machine.environ)
    given |= {
        name: machine.environ[name]
        for name in (*OWN_FILES, *ADDRESSES, "TASKFLOW_HTTP_HOSTS")
        if machine.environ.get(name)
    }
    found = {name: _escaped(value) for name, value in sorted(given.items())}
    found["TASKFLOW_STATE_DIR"] = f"%S/{service}"
    if component is Component.WORKER:
        found["TASKFLOW_INSTANCE_ID"] = "%H"
    elif component is Component.VIEWS:
        # Where it keeps the secret that it would share with others of its user.
        found["XDG_STATE_HOME"] = f"%S/{service}"
    found |= {name: f"%d/{name}" for name in _credentials(machine, component)}
    return [f"{name}={value}" for name, value in found.items()]


def _credentials(machine: Machine, component: Component) -> dict[str, str]:
    """The files that a service needs, by their variables."""
    return {
        name: machine.environ[name]
        for name in CREDENTIALS
        if machine.environ.get(name)
        and all(component in only for part, only in OF_ONE.items() if part in name)
    }


def _escaped(value: str) -> str:
    """What systemd would take for a specifier, as itself."""
    return value.replace("%", "%%")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
